"""The Space as a visitor sees it, in a headless browser; a picture of each tab is left in $MOON2_ARTIFACTS."""

from __future__ import annotations

import io
import os
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright; pip install playwright")
pytest.importorskip("gradio", reason="the Space needs gradio; pip install 'moon2[space]'")
if shutil.which("chromium") is None:
    pytest.skip("browser tests need chromium; install the distribution's package", allow_module_level=True)

TOKEN = "a token of some length"
DESK, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
FOCUS_SHOWS = """() => {
  const {outlineStyle, outlineWidth, boxShadow} = getComputedStyle(document.activeElement);
  return (outlineStyle !== 'none' && outlineWidth !== '0px') || boxShadow !== 'none';
}"""
SECONDS = 60_000  # that a slow machine may take, in milliseconds


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    folder = Path(os.environ.get("MOON2_ARTIFACTS") or tmp_path_factory.mktemp("artifacts"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def space(running_space, drawn_products, tmp_path_factory):
    with running_space(tmp_path_factory.mktemp("browser") / "data", TOKEN, drawn_products) as space:
        yield space


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, space):
    """Opens the Space and waits until it shows something; afterwards, that no script of the page has failed."""
    pages, failures = [], []

    def open_page(query="", viewport=DESK, scheme="light", url=None):
        page = browser.new_page(viewport=viewport, color_scheme=scheme)
        page.set_default_timeout(SECONDS)
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.on("dialog", lambda dialog: (failures.append(dialog.message), dialog.dismiss()))
        page.goto((url or space.url) + query)
        page.wait_for_selector("#results .m2-grid, #results .m2-message:not(:empty)")
        page.wait_for_function("document.querySelectorAll('#results .m2-card').length > 0")
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert failures == []


def search(page, text):
    page.locator("#words input, #words textarea").first.fill(text)
    page.locator("#go").click()
    page.wait_for_function(
        "text => document.querySelector('#results .m2-header')?.textContent.includes(text)", arg=text
    )


def titles(page, where="#results"):
    return [heading.strip() for heading in page.locator(f"{where} .m2-card h3").all_text_contents()]


def upload(page, selector, picture):
    file = {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": picture}
    page.locator(f"{selector} input[type=file]").first.set_input_files(file)


def jpeg(product):
    buffer = io.BytesIO()
    Image.open(io.BytesIO(product["images"][0]["bytes"])).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


def scrolls_sideways(page):
    return page.evaluate("document.documentElement.scrollWidth > window.innerWidth")


def test_start_and_search_by_words(open_page, space, drawn_products, artifacts):
    page = open_page()
    assert "Search 30 products" in page.locator("#results h2").first.text_content()
    examples = page.locator("#results .m2-chip")
    assert examples.count() >= 3
    page.screenshot(path=artifacts / "start.png")
    wanted = drawn_products[5]["title"]
    search(page, wanted)
    assert wanted in titles(page)
    assert titles(page) == [hit.title for hit in space.catalogue.now.hybrid.by_text(wanted, 12)]
    card = page.locator("#results .m2-card").first
    assert card.locator("img").get_attribute("alt") and "#" in card.locator(".m2-score").text_content()
    assert card.locator(".m2-attributes li").count() >= 2
    page.screenshot(path=artifacts / "search.png")
    assert page.url.endswith("?q=" + wanted.replace(" ", "+"))
    open_page(page.url.removeprefix(space.url)).wait_for_selector("#results .m2-header")  # whoever gets the address


def test_all_of_a_search_is_in_reach_of_the_keyboard(open_page, drawn_products):
    """From the words to the explanation of a hit without a mouse, and every stop shows that it has the focus."""

    def reach(selector, limit=60):
        for _ in range(limit):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                assert page.evaluate(FOCUS_SHOWS), selector
                return
        raise AssertionError(f"{selector} is not reached in {limit} steps")

    page = open_page()
    page.locator("#words input, #words textarea").first.focus()
    page.keyboard.type(drawn_products[5]["title"])
    page.keyboard.press("Enter")
    page.wait_for_selector("#results .m2-header")
    assert drawn_products[5]["title"] in titles(page)
    before = titles(page)
    reach('#results [data-action="similar"]')
    page.keyboard.press("Enter")
    page.wait_for_function(
        "first => document.querySelector('#results .m2-card h3')?.textContent !== first", arg=before[0]
    )
    page.locator("#words input, #words textarea").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_function(
        "first => document.querySelector('#results .m2-card h3')?.textContent === first", arg=before[0]
    )
    reach('#results [data-action="explain"]')
    page.keyboard.press("Space")
    page.wait_for_function(
        "document.querySelector('[role=tab][aria-selected=true]').textContent.trim() === 'Understand'"
    )


def test_an_example_is_a_search(open_page):
    page = open_page()
    text = page.locator("#results .m2-chip").first.text_content()
    page.locator("#results .m2-chip").first.click()
    page.wait_for_selector("#results .m2-header")
    assert text in page.locator("#results .m2-header").text_content()
    assert page.locator("#words input, #words textarea").first.input_value() == text


def test_search_by_upload_and_by_both(open_page, space, drawn_products):
    picture = jpeg(drawn_products[8])
    page = open_page()
    upload(page, "#picture", picture)
    page.wait_for_selector("#results .m2-header")
    assert "your picture" in page.locator("#results .m2-header").text_content()
    assert titles(page) == [hit.title for hit in space.catalogue.now.hybrid.by_image(picture, 12)]
    search(page, "red shoes")
    assert titles(page) == [hit.title for hit in space.catalogue.now.hybrid.by_both("red shoes", picture, 0.5, 12)]
    page.locator("#balance input[type=number]").fill("0")
    page.locator("#balance input[type=number]").press("Enter")
    page.locator("#go").click()
    text_alone = [hit.title for hit in space.catalogue.now.vectors.by_text("red shoes", 12)]
    page.wait_for_function(
        "wanted => document.querySelector('#results .m2-card h3')?.textContent === wanted", arg=text_alone[0]
    )
    assert titles(page) == text_alone


def test_a_page_that_pretends_to_be_a_picture_is_told(open_page):
    page = open_page()
    upload(page, "#picture", b"<!DOCTYPE html><script>alert(1)</script>")
    page.wait_for_selector("#results .m2-error")
    assert "a web page" in page.locator("#results .m2-error").text_content()


def test_filters(open_page, drawn_products):
    page = open_page()
    colour = next(a["value"] for a in drawn_products[0]["attributes"] if a["name"] == "colour")
    page.locator("#colour input").click()
    page.locator("#colour [role=option]", has_text=re.compile(rf"^\W*{colour} \(")).first.click()
    page.keyboard.press("Escape")
    search(page, "shoes")
    page.wait_for_function("location.search.includes('filter=')")
    right = {p["title"] for p in drawn_products if {"name": "colour", "value": colour} in p["attributes"]}
    assert set(titles(page)) == right
    category = drawn_products[0]["category_path"][0]
    page = open_page(f"?q=shoes&category={category}&k=30&filter=colour%3D{colour}&filter=%3Cscript%3E")
    page.wait_for_selector("#results .m2-header, #results .m2-message")
    assert set(titles(page)) == {
        p["title"] for p in drawn_products if p["title"] in right and p["category_path"][0] == category
    }


def test_more_like_this(open_page, space, drawn_products):
    page = open_page(f"?q={drawn_products[5]['title']}")
    page.wait_for_selector("#results .m2-header")
    first = titles(page)[0]
    page.locator("#results button[data-action=similar]").first.press("Enter")  # with the keyboard
    page.wait_for_function("document.querySelector('#results .m2-header').textContent.includes('products like')")
    assert first not in titles(page) and first in page.locator("#results .m2-header").text_content()
    page.wait_for_function("location.search.includes('like=')")


def test_why_this(open_page, drawn_products, artifacts):
    page = open_page(f"?q={drawn_products[5]['title']}")
    page.wait_for_selector("#results .m2-header")
    page.locator("#results button[data-action=explain]").first.click()
    page.wait_for_selector("#match img.m2-map")
    assert "match" in page.locator("#match img.m2-map").get_attribute("alt")
    words = page.locator("#match mark").all_text_contents()
    assert words == page.locator("#product-title input, #product-title textarea").first.input_value().split()
    assert page.locator("#meaning .m2-row").count() >= 4
    page.wait_for_timeout(500)
    page.screenshot(path=artifacts / "understand.png", full_page=True)


def test_why_this_after_a_search_by_picture(open_page, drawn_products):
    page = open_page()
    upload(page, "#picture", jpeg(drawn_products[8]))
    page.wait_for_selector("#results .m2-header")
    page.locator("#results button[data-action=explain]").first.click()
    page.wait_for_selector("#match img.m2-map")
    assert "match with the picture" in page.locator("#match h3").first.text_content()
    page.locator("#duplicates button[data-action=similar], #duplicates .m2-message").first.wait_for()


def test_balance(open_page, artifacts):
    page = open_page()
    page.get_by_role("tab", name="Balance").click()
    page.locator("#measure").click()
    for place, told in (("#expert-load", "Expert load"), ("#modality-gap", "apart")):
        page.wait_for_selector(f"{place} img.m2-on-light")
        assert told in page.locator(f"{place} img.m2-on-light").get_attribute("alt")
        assert not page.locator(f"{place} img.m2-on-dark").is_visible()
    page.wait_for_timeout(500)
    page.screenshot(path=artifacts / "balance.png", full_page=True)


def test_a_catalogue_with_two_bad_rows_is_there_after_a_restart(
    open_page, running_space, drawn_products, tmp_path, artifacts
):
    rows = ["product_id,title,colour", "n1,<b>Teal</b> kettle,teal", "n2,,red", "n3,湯呑み 青,blue", "n1,again,red"]
    file = {"name": "more.csv", "mimeType": "text/csv", "buffer": "\n".join(rows).encode()}
    with running_space(tmp_path / "data", TOKEN, drawn_products[:8]) as space:
        page = open_page(url=space.url)
        page.get_by_role("tab", name="Catalogue").click()
        page.wait_for_selector("#state dl")
        page.locator("#catalogue-file input[type=file]").set_input_files(file)
        page.wait_for_selector("#catalogue-file [class*=file-preview], #catalogue-file table")
        page.locator("#add").click()
        page.wait_for_selector("#progress .m2-error")
        assert "not the administrator's token" in page.locator("#progress").text_content()
        page.locator("#token input").fill(TOKEN)
        page.locator("#add").click()
        page.wait_for_selector("#progress table tbody tr")
        told = page.locator("#progress").text_content()
        assert "2 added" in told and page.locator("#progress tbody tr").count() == 2 and "n2" in told
        with page.expect_download() as download:
            page.locator("#errors-csv").click()
        lines = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
        assert len(lines) == 3 and lines[0] == "row,product_id,message,dropped"
        page.screenshot(path=artifacts / "catalogue.png", full_page=True)
        page.locator("#delete-ids textarea").fill("n3\nabsent")
        page.locator("#delete").click()
        page.wait_for_function("document.querySelector('#progress').textContent.includes('1 of 2 products deleted')")
        page.get_by_role("tab", name="Search").click()
        page.locator("#colour input").click()
        page.locator("#colour [role=option]", has_text="teal (1)").wait_for()  # the filters have followed
    with running_space(tmp_path / "data", TOKEN) as space:
        page = open_page("?q=teal+kettle", url=space.url)
        page.wait_for_selector("#results .m2-header")
        assert "kettle" in titles(page)[0] and len(space.catalogue.now.index) == 9


def test_titles_are_never_html(open_page, space, drawn_products):
    title = "<img src=x onerror=alert(1)><script>alert(2)</script> ${alert(3)} {{alert}} مصباح"
    space.catalogue.put([drawn_products[0] | {"product_id": "<i>", "title": title}])
    try:
        page = open_page("?q=مصباح alert")
        page.wait_for_selector("#results .m2-header")
        assert title in titles(page)
        card = page.locator("#results .m2-card", has_text="onerror").first
        card.locator("button[data-action=explain]").click()
        page.wait_for_selector("#match mark")
        assert page.locator("#match script, #match img[src=x], #results img[src=x]").count() == 0
    finally:
        space.catalogue.delete(["<i>"])


def test_on_a_phone(open_page, drawn_products, artifacts):
    page = open_page(f"?q={drawn_products[5]['title']}", PHONE)
    page.wait_for_selector("#results .m2-header")
    assert not scrolls_sideways(page)
    left, right = (page.locator("#results .m2-card").nth(n).bounding_box() for n in (0, 1))
    assert left["y"] == right["y"] and left["width"] > 150  # two in a row
    page.screenshot(path=artifacts / "phone.png")
    page.locator("#results button[data-action=explain]").first.click()
    page.wait_for_selector("#match img.m2-map")
    assert not scrolls_sideways(page)
    page.screenshot(path=artifacts / "phone-understand.png", full_page=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(open_page, drawn_products, artifacts, scheme):
    page = open_page(f"?q={drawn_products[5]['title']}", scheme=scheme)
    page.wait_for_selector("#results .m2-header")
    page.wait_for_timeout(500)
    for selector in ("#results .m2-card h3", "#results .m2-path", "#results .m2-attributes li span", ".m2-head p",
                     "#results .m2-action"):  # fmt: skip
        ratio = page.locator(selector).first.evaluate(CONTRAST)
        assert ratio >= 4.5, (selector, ratio)
    if scheme == "dark":
        page.screenshot(path=artifacts / "dark.png")
        page.get_by_role("button", name="Switch between light and dark").click()
        assert not page.evaluate("document.body.classList.contains('dark')")


# The contrast of an element's text with what lies under it, as WCAG 2 reckons it.
CONTRAST = """element => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  let under = element;
  const ground = e => numbers(getComputedStyle(e).backgroundColor);
  while (under.parentElement && (ground(under)[3] ?? 1) === 0) under = under.parentElement;
  const [a, b] = [light(numbers(getComputedStyle(element).color)), light(ground(under))];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""
