from __future__ import annotations

import copy
import csv
from itertools import groupby

import numpy as np
import pytest
from PIL import Image

from moon2_dataset.build.builder import BuildArguments, build_dataset
from moon2_dataset.build.report import MEANINGS, count_split, discrepancies, hints, markdown


def shop(folder, make_image, pictures: bool = True):
    folder.mkdir()
    for number in range(4):
        make_image(number).save(folder / f"{number}.jpg")
    with open(folder / "shop.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "title", "category", "image"])
        for row in range(12):
            title = ["Mug | red", "", "Shoe\nblue", f"Lamp {row}"][row % 4]
            writer.writerow(
                [f"i{row}", title, ["Home > A|B", "Shoes", ""][row % 4 % 3], f"{row % 4}.jpg" if pictures else ""]
            )
    return folder / "shop.csv"


@pytest.fixture(scope="module")
def built(tmp_path_factory, make_image):
    folder = tmp_path_factory.mktemp("report")
    (folder / "log.csv").write_text("query,product_id,event\nmug,i0,click\nmug,i3,view\nlamp,gone,buy\n")
    given = BuildArguments(
        str(shop(folder / "shop", make_image)), str(folder / "data"), log=str(folder / "log.csv"), splits=["train=1"]
    )
    return folder / "data", build_dataset(given, progress=False)


def test_a_split_is_counted_down_its_categories():
    leaf = np.array([5, 5, 6, 7, 0, 5], np.uint64)
    paths = {5: ("Home", "Mugs"), 6: ("Home",), 7: ("Shoes", "Boots", "Red"), 0: ()}
    counts = count_split(np.array([1, 1, 1, 1, 1, 0], bool), leaf, np.array([2, 0, 1, 0, 0, 9]), paths)
    assert counts == {
        "products": 5,
        "with_image": 2,
        "images": 3,
        "without_category": 1,
        "categories": [
            {"Home": 3, "Shoes": 1},
            {"Home > Mugs": 2, "Shoes > Boots": 1},
            {"Shoes > Boots > Red": 1},
        ],
    }


def change(report, path, by):
    changed = copy.deepcopy(report)
    *parents, last = path
    place = changed
    for name in parents:
        place = place[name]
    place[last] += by
    return changed


@pytest.mark.parametrize(
    ("path", "told"),
    [
        (("catalogue", "rows"), "rows of the catalogue: 13, but the parts make 12"),
        (("products",), "products: 9, but the parts make 8"),
        (("over_category_limit",), "cleaned products: 12, but the parts make 13"),
        (("splits", "train", "without_category"), "products of train: 8, but the parts make 9"),
        (("log", "used"), "lines of the log: 3, but the parts make 4"),
        (("log", "positives", "pairs"), "positives: 1, but the parts make 0"),
        (("log", "negatives", "written"), "negatives: 0, but the parts make 1"),
        (("splits", "train", "query_rows"), "positives written: 0, but the parts make 1"),
    ],
)
def test_a_number_that_does_not_add_up_is_told(built, path, told):
    report = built[1]
    assert discrepancies(report) == []
    assert told in discrepancies(change(report, path, 1))


def test_what_looks_wrong_is_told_with_the_way_out(built):
    report = built[1]
    assert (
        hints(report)
        == report["hints"]
        == ["the log has clicks and no purchases: give --positive_events purchase click"]
    )
    unknown = change(report, ("log", "dropped", "unknown_product", "rows"), 5)
    assert any("6 of 3 log lines name a product that is not" in hint for hint in hints(unknown))
    assert any("500 products hang together" in hint for hint in hints(change(report, ("groups", "largest"), 497)))
    assert any("train has no products" in hint for hint in hints(change(report, ("splits", "train", "products"), -8)))
    urls = copy.deepcopy(report)
    urls["catalogue"]["notes"]["image_url_not_fetched"] = {"rows": 1, "examples": []}
    assert any("give their folder as image_root" in hint for hint in hints(urls))
    assert hints(report | {"log": None}) == ["no log was given, so there are no queries: give log=FILE for those"]


def test_the_page_has_tables_that_hold_and_a_meaning_for_every_reason(built):
    out, report = built
    page = (out / "build_report.md").read_text(encoding="utf-8")
    assert page == markdown(report)
    assert "- **the log has clicks and no purchases" in page
    assert "| Home > A\\|B | 4 |" in page
    assert "unknown_product | 1 | the product is not in the catalogue" in page
    width = 0
    for line in page.splitlines():
        cells = line.replace("\\|", "").count("|")
        assert cells in (0, width) or not width
        width = cells
    reasons = [*report["catalogue"]["dropped"], *report["catalogue"]["notes"], *report["duplicates"]]
    reasons += [
        *report["log"]["dropped"],
        *report["log"]["notes"],
        *report["log"]["positives"],
        *report["log"]["negatives"],
    ]
    assert len(reasons) > 10 and set(reasons) - {"pairs", "written"} <= set(MEANINGS)


def test_the_sheet_shows_what_was_kept_and_what_was_dropped(built):
    out, report = built
    assert report["duplicates"]["same_title_and_image"]["rows"] == 4
    with Image.open(out / "contact_sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    changes = np.abs(np.diff(pixels, axis=1)).sum(axis=2) > 60
    busy = (changes.mean(axis=1) > 0.1).tolist()  # pixel rows that run through pictures of noise, or through letters
    heights = [len(list(run)) for noise, run in groupby(busy) if noise]
    assert sum(height > 100 for height in heights) == 1 + 1 + 1  # kept; dropped; in one group


def test_a_catalogue_without_pictures_has_no_sheet(tmp_path, make_image):
    given = BuildArguments(str(shop(tmp_path / "shop", make_image, pictures=False)), str(tmp_path / "data"))
    report = build_dataset(given, progress=False)
    assert not (tmp_path / "data" / "contact_sheet.png").exists()
    assert report["products"] and discrepancies(report) == []
