"""The running Space: every endpoint, asked as its users ask, who need not be friendly."""

from __future__ import annotations

import base64
import io
import json
import struct
import threading
import time
import urllib.request
import zipfile
import zlib

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from moon2_space import live_catalogue
from moon2_space.search_tab import Form, found, found_like
from moon2_space.space import SpaceOptions, launch_space, open_catalogue
from moon2_space.understand_tab import Product, explained
from moon2_training.encode import Encoder
from moon2_training.saved_encoder import encoder_fingerprint

TOKEN = "a token of some length"
ENDPOINTS = {
    "search_text", "search_image", "search_both", "search_batch", "more_like_this", "filter_choices", "understand",
    "heatmap", "expert_load", "modality_gap", "status", "catalogue_add", "catalogue_delete", "catalogue_swap_model",
    "catalogue_errors", "catalogue_cancel",
}  # fmt: skip


@pytest.fixture(scope="module")
def products(drawn_products):
    return drawn_products


@pytest.fixture(scope="module")
def space(running_space, products, tmp_path_factory):
    """A Space with 30 products, and a client of it."""
    with running_space(tmp_path_factory.mktemp("space") / "data", TOKEN, products) as space:
        space.client = Client(space.url, verbose=False)
        yield space


@pytest.fixture
def call(space):
    def call(endpoint, *arguments, **named):
        return space.client.predict(*arguments, api_name=f"/{endpoint}", **named)

    return call


@pytest.fixture
def unchanged(space, products):
    """The catalogue as it was, whatever the test does to it."""
    yield
    index = space.catalogue.now.index
    index.delete(set(index.ids()) - {product["product_id"] for product in products})
    space.catalogue.put(products)


@pytest.fixture
def picture(products, tmp_path):
    file = tmp_path / "product.jpg"
    Image.open(io.BytesIO(products[4]["images"][0]["bytes"])).convert("RGB").save(file)
    return file


def ids(found):
    return [product["product_id"] for product in found]


def told(error):
    return str(error.value)


def bomb(width=30_000, height=30_000):
    """A PNG that unpacks to a hundred times what it is, by its header and its pixels: a line of zeros and again."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    pixels = zlib.compressobj(1)
    body = b"".join(pixels.compress(bytes(1 + width // 8)) for _ in range(height)) + pixels.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_every_action_is_a_named_endpoint_with_types(space):
    told = space.client.view_api(return_format="dict")["named_endpoints"]
    assert {name.removeprefix("/") for name in told} == ENDPOINTS
    for name, endpoint in told.items():
        assert all(parameter["python_type"]["type"] != "Any" for parameter in endpoint["parameters"]), name
        assert endpoint["description"], name
        assert [answer["python_type"]["type"] for answer in endpoint["returns"]] not in ([], ["Any"]), name
    names = [parameter["parameter_name"] for parameter in told["/search_both"]["parameters"]]
    assert names == ["text", "image", "balance", "k", "category", "attributes"]


def test_search_by_words(call, space, products):
    wanted = products[7]
    hits = call("search_text", wanted["title"], k=5)
    assert ids(hits) == [hit.product_id for hit in space.catalogue.now.hybrid.by_text(wanted["title"], 5)]
    assert wanted["product_id"] in ids(hits)
    (hit,) = (hit for hit in hits if hit["product_id"] == wanted["product_id"])
    assert hit["title"] == wanted["title"] and hit["category_path"] == wanted["category_path"]
    assert hit["attributes"] == wanted["attributes"] and hit["ranks"]["words"] == 1
    vectors = call("search_text", wanted["title"], k=5, hybrid=False)
    assert ids(vectors) == [hit.product_id for hit in space.catalogue.now.vectors.by_text(wanted["title"], 5)]
    assert all(list(hit["ranks"]) == ["vectors"] for hit in vectors)


def test_search_with_curls_two_requests(space):
    body = json.dumps({"text": "red shoes", "k": 3}).encode()
    request = urllib.request.Request(
        f"{space.url}gradio_api/call/v2/search_text", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{space.url}gradio_api/call/search_text/{event}") as answer:
        lines = answer.read().decode().splitlines()
    assert "event: complete" in lines
    (hits,) = json.loads(lines[lines.index("event: complete") + 1].removeprefix("data: "))
    assert ids(hits) == [hit.product_id for hit in space.catalogue.now.hybrid.by_text("red shoes", 3)]


def test_search_by_picture_and_by_both(call, space, picture):
    data = picture.read_bytes()
    hybrid = space.catalogue.now.hybrid
    expected = [hit.product_id for hit in hybrid.by_image(data, 4)]
    assert ids(call("search_image", handle_file(str(picture)), k=4)) == expected
    address = {"url": f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"}
    assert ids(call("search_image", address, k=4)) == expected
    for balance in (0, 0.3, 1):
        expected = [hit.product_id for hit in hybrid.by_both("red shoes", data, balance, 4)]
        assert ids(call("search_both", "red shoes", handle_file(str(picture)), balance, 4)) == expected


def test_many_searches_at_once(call):
    texts = ["red shoes", "a mug", "navy"]
    assert list(map(ids, call("search_batch", texts, 3))) == [ids(call("search_text", text, 3)) for text in texts]
    for wrong in ([], "red", ["a"] * 101):
        with pytest.raises(AppError, match="texts: give a list of 1 to 100"):
            call("search_batch", wrong)


def test_filters(call, products):
    choices = call("filter_choices")
    assert choices["attributes"]["colour"] and sum(choices["categories"].values()) > len(products)
    colour = next(iter(choices["attributes"]["colour"]))
    category = " > ".join(products[0]["category_path"][:1])
    hits = call("search_text", "shoes", k=30, category=category, attributes={"colour": [colour]})
    right = {
        product["product_id"]
        for product in products
        if product["category_path"][:1] == products[0]["category_path"][:1]
        and {"name": "colour", "value": colour} in product["attributes"]
    }
    assert set(ids(hits)) == right
    assert call("search_text", "shoes", attributes={"colour": ["red' OR 1=1 --"]}) == []
    assert call("search_text", "shoes", attributes={"colour') OR (1=1": ["x"]}) == []
    with pytest.raises(AppError, match="no value for attribute 'colour'"):
        call("search_text", "shoes", attributes={"colour": []})
    with pytest.raises(AppError, match="attributes: give an object"):
        call("search_text", "shoes", attributes="colour=red")


def test_more_like_this(call, space, products):
    wanted = products[3]["product_id"]
    hits = call("more_like_this", wanted, 4)
    assert wanted not in ids(hits)
    assert ids(hits) == [hit.product_id for hit in space.catalogue.now.hybrid.like(wanted, 4)]
    with pytest.raises(AppError, match='product "\' OR 1=1" is not in the catalogue'):
        call("more_like_this", "' OR 1=1")


def test_understand(call, products, picture):
    meaning = call("understand", products[4]["title"], handle_file(str(picture)), 30)
    path = tuple(label["label"] for label in meaning["category_path"])
    assert path in {tuple(product["category_path"]) for product in products}
    assert {"colour", "brand"} <= set(meaning["attributes"])
    for labels in meaning["attributes"].values():
        scores = [label["score"] for label in labels]
        assert scores == sorted(scores, reverse=True) and 0 < sum(scores) <= 1 + 1e-6
    assert all(hit["score"] >= 0.9 for hit in meaning["near_duplicates"])
    assert call("understand", title=products[4]["title"])["category_path"]
    with pytest.raises(AppError, match="neither text nor image"):
        call("understand")


def test_heatmap(call, picture):
    found = call("heatmap", "red shoes", "Lumo red mug", handle_file(str(picture)))
    assert [word["word"] for word in found["words"]] == ["Lumo", "red", "mug"]
    assert len(found["cells"]) >= 8 and len(found["cells"][0]) >= 8 and -1 <= found["similarity"] <= 1
    drawn = Image.open(io.BytesIO(base64.b64decode(found["picture"].partition(",")[2])))
    assert drawn.format == "JPEG" and max(drawn.size) >= 480
    words_alone = call("heatmap", "red shoes", "Lumo red mug")
    assert words_alone["cells"] is None and words_alone["picture"] is None
    by_picture = call("heatmap", title="Lumo red mug", query_image=handle_file(str(picture)))
    assert by_picture["similarity"] != words_alone["similarity"]


def test_balance(call, space, products):
    load = call("expert_load", 30)
    assert list(load["load"]) == ["text", "image", "multimodal"] and load["layers"]
    for view in load["load"].values():
        for layer in view:
            assert sum(layer) == pytest.approx(1, abs=1e-5)
    assert load["tokens"]["text"] + load["tokens"]["image"] == load["tokens"]["multimodal"]
    gap = call("modality_gap")
    assert gap["distances"]["text-image"] > 0 and len(gap["points"]["image"]) == len(products)
    with pytest.raises(AppError, match="sample=0; give 1 to 1,000"):
        call("expert_load", 0)


def test_status(call, space, models, products):
    status = call("status")
    assert status["products"] == len(products) and status["models"] == ["first", "second"]
    assert status["model"] == "first" and not any(model in json.dumps(status) for model in models)
    assert status["fingerprint"] == space.catalogue.now.index.manifest["fingerprint"] and status["dimension"] == 48


def catalogue_csv(folder, rows, name="more.csv"):
    file = folder / name
    file.write_text("product_id,title,colour\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return handle_file(str(file))


def test_a_catalogue_with_two_bad_rows(call, tmp_path, products, unchanged):
    rows = ["n1,Lumo green mug,green", "n2,,red", "n3,Nordvik grey shoes,grey", "n1,again,red"]
    job = call("catalogue_add", TOKEN, catalogue_csv(tmp_path, rows))
    assert job["state"] == "done" and job["added"] == 2 and job["message"].startswith("2 added")
    assert [(error["row"], error["product_id"], error["dropped"]) for error in job["errors"]] == [
        (1, "n2", True), (3, "n1", True),
    ]  # fmt: skip
    assert call("catalogue_errors", TOKEN) == job["errors"]
    assert "neither" in job["errors"][0]["message"] and "earlier row" in job["errors"][1]["message"]
    assert call("search_text", "Lumo green mug", k=1)[0]["product_id"] == "n1"
    job = call("catalogue_add", TOKEN, catalogue_csv(tmp_path, ["n1,Lumo green cup,green"]))
    assert (job["added"], job["replaced"]) == (0, 1)
    assert call("catalogue_delete", TOKEN, ["n1", "absent"]) == 1
    assert call("status")["products"] == len(products) + 1


def test_a_catalogue_that_replaces_all(call, tmp_path, unchanged):
    job = call("catalogue_add", TOKEN, catalogue_csv(tmp_path, ["a,Red mug,red", "b,Blue mug,blue"]), replace_all=True)
    assert job["state"] == "done" and job["message"].endswith("30 deleted")
    assert call("status")["products"] == 2


@pytest.mark.parametrize("token", ["", "wrong", None])
def test_changes_need_the_token(call, tmp_path, products, token):
    changes = [
        ("catalogue_add", catalogue_csv(tmp_path, ["x,Mug,red"])),
        ("catalogue_delete", [products[0]["product_id"]]),
        ("catalogue_swap_model", "second"),
        ("catalogue_errors",),
        ("catalogue_cancel",),
    ]
    for endpoint, *arguments in changes:
        with pytest.raises(AppError, match="that is not the administrator's token"):
            call(endpoint, token, *arguments)
    assert call("status")["products"] == len(products)


def test_without_a_token_the_space_is_read_only(space, models, tmp_path):
    app, url = launch_space(SpaceOptions(space.data_dir, models[0]), catalogue=space.catalogue, block=False)
    try:
        client = Client(url, verbose=False)
        assert client.predict("red shoes", api_name="/search_text")
        for given in ("", "None", TOKEN):
            with pytest.raises(AppError, match="read-only; start it with MOON2_ADMIN_TOKEN"):
                client.predict(given, ["a"], api_name="/catalogue_delete")
    finally:
        app.get_blocks().close(verbose=False)


def test_another_model_answers_when_all_is_encoded(call, space, models, products, monkeypatch, unchanged):
    begun, go_on = threading.Event(), threading.Event()
    real = live_catalogue.load_encoder

    def slow(model):
        begun.set()
        go_on.wait(30)
        return real(model)

    monkeypatch.setattr(live_catalogue, "load_encoder", slow)
    before = call("search_text", "red shoes", 5)
    assert call("catalogue_swap_model", TOKEN, "second")["state"] == "running"
    assert begun.wait(30)
    assert call("search_text", "red shoes", 5) == before and call("status")["job"]["state"] == "running"
    with pytest.raises(AppError, match="another change of the catalogue is under way"):
        call("catalogue_swap_model", TOKEN, "second")
    go_on.set()
    assert space.catalogue.job.wait(60)
    status = call("status")
    assert status["model"] == "second" and status["job"]["message"].endswith("second answers")
    expected = encoder_fingerprint(*real(models[1]))
    assert status["fingerprint"] == expected and call("search_text", "red shoes", 5) != before
    assert call("understand", "red shoes")["category_path"]  # with labels of the new encoder
    with pytest.raises(AppError, match="answers already"):
        call("catalogue_swap_model", TOKEN, "second")
    assert call("catalogue_swap_model", TOKEN, "first", True)["state"] == "done"
    assert call("search_text", "red shoes", 5) == before


def test_a_change_is_cancelled(call, space, models, unchanged):
    release = threading.Event()

    def waits(job):
        release.wait(30)
        job.state = "cancelled" if job._cancelled.is_set() else "done"

    job = space.catalogue._start("add", waits)
    assert call("catalogue_cancel", TOKEN).startswith("asked to stop")
    release.set()
    assert job.wait(30) and job.state == "cancelled"
    with pytest.raises(AppError, match="no change is under way"):
        call("catalogue_cancel", TOKEN)


@pytest.mark.parametrize("model", ["evil/model", "/etc", "../first", "", "First"])
def test_a_model_that_is_not_listed_is_not_loaded(call, model, monkeypatch):
    monkeypatch.setattr(live_catalogue, "load_encoder", lambda model: pytest.fail("it was loaded"))
    with pytest.raises(AppError, match="is not allowed here; choose one of"):
        call("catalogue_swap_model", TOKEN, model)


HOSTILE_PICTURES = {
    "bomb.png": (bomb, "an image has over 50,000,000 pixels"),
    "page.png": (lambda: b"<!DOCTYPE html><script>alert(1)</script>", "a web page"),
    "drawing.svg": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>', "an SVG drawing"),
    "cut.jpg": (lambda: b"\xff\xd8\xff\xe0 and no more", "none of the formats"),
}


@pytest.mark.parametrize("name", HOSTILE_PICTURES)
def test_hostile_pictures(call, space, tmp_path, name):
    make, message = HOSTILE_PICTURES[name]
    file = tmp_path / name
    file.write_bytes(make())
    for endpoint, arguments in (("search_image", {}), ("search_both", {"text": "mug"}), ("understand", {})):
        with pytest.raises(AppError) as error:
            call(endpoint, image=handle_file(str(file)), **arguments)
        assert message in told(error) and str(space.data_dir) not in told(error)


def test_no_path_is_read_that_was_not_uploaded(call, space, tmp_path):
    secret = tmp_path / "secret.jpg"
    Image.new("RGB", (40, 40)).save(secret)
    for path in (str(secret), "/etc/passwd", str(space.data_dir / "catalogue.json")):
        for payload in ({"path": path}, {"path": path, "meta": {"_type": "gradio.FileData"}, "url": path}):
            body = json.dumps({"data": [payload, 3, "", None]}).encode()
            request = urllib.request.Request(
                f"{space.url}gradio_api/call/search_image", body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request) as answer:
                event = json.load(answer)["event_id"]
            with urllib.request.urlopen(f"{space.url}gradio_api/call/search_image/{event}") as answer:
                assert "event: error" in answer.read().decode()
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{space.url}gradio_api/file={path}")


@pytest.fixture
def fetched(monkeypatch):
    """Addresses that Gradio would have fetched."""
    addresses = []

    async def fetch(url, cache_dir):
        addresses.append(url)
        raise OSError("nothing is fetched in a test")

    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_download", fetch)
    return addresses


@pytest.mark.parametrize("address", ["http://169.254.169.254/latest/meta-data", "https://shop.example/a.jpg"])
@pytest.mark.parametrize("endpoint", ["search_image", "understand", "catalogue_add"])
def test_no_address_is_fetched(call, space, fetched, endpoint, address):
    before, behind = {"search_image": ([], [3, "", None]), "understand": (["mug"], [3]),
                      "catalogue_add": ([TOKEN], ["", False, True])}[endpoint]  # fmt: skip
    meta = {"_type": "gradio.FileData"}
    for file in ({"path": address, "meta": meta}, {"path": "x", "url": address, "meta": meta}, {"url": address}):
        body = json.dumps({"data": [*before, file, *behind]}).encode()
        request = urllib.request.Request(
            f"{space.url}gradio_api/call/{endpoint}", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            event = json.load(answer)["event_id"]
        with urllib.request.urlopen(f"{space.url}gradio_api/call/{endpoint}/{event}") as answer:
            assert "event: error" in answer.read().decode()
    assert fetched == []


@pytest.mark.parametrize("address", ["https://shop.example/a.jpg", "http:%2F%2F169.254.169.254/x", "HTTPS://x/"])
def test_no_address_is_fetched_and_handed_on(space, monkeypatch, address):
    async def fetch(url, request):
        pytest.fail(f"{url} was fetched")

    monkeypatch.setattr("gradio.routes.secure_url_stream_response", fetch)
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(f"{space.url}gradio_api/file={address}")
    assert error.value.code == 403 and "addresses are not fetched" in error.value.read().decode()


def a_zip(entries):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_a_zip_that_leads_out_of_its_folder(call, space, tmp_path, products, unchanged):
    file = tmp_path / "catalogue.zip"
    shoe = products[0]["images"][0]["bytes"]
    file.write_bytes(a_zip({"../../../out.jpg": shoe, "/abs.jpg": shoe, "Shoes/red shoe.jpg": shoe}))
    job = call("catalogue_add", TOKEN, handle_file(str(file)))
    assert job["added"] == 1 and len(job["errors"]) == 2
    assert all("leads out of the ZIP" in error["message"] for error in job["errors"])
    assert not list(space.data_dir.parent.rglob("out.jpg")) and not list((space.data_dir / "uploads").iterdir())


def test_a_zip_bomb(call, tmp_path):
    file = tmp_path / "bomb.zip"
    file.write_bytes(a_zip({"a.csv": b"0" * (40 << 20)}))
    with pytest.raises(AppError, match="unpacks to over 200 times its packed size"):
        call("catalogue_add", TOKEN, handle_file(str(file)))


@pytest.mark.parametrize("name", ["a/b; rm -rf ~", "a/$(id)", "../../etc/passwd", "a/b`id`", "a/b|c", "https://x/y"])
def test_names_of_data_sets_that_are_none(call, name):
    with pytest.raises(AppError, match="no name of a data set on the Hub"):
        call("catalogue_add", TOKEN, None, name)


def test_formulas_and_scripts_in_a_catalogue(call, space, tmp_path, products, unchanged):
    title = "<script>alert(1)</script><img src=x onerror=alert(2)> mug"
    attributes = [{"name": "<b>colour", "value": "<b>red</b>"}]
    space.catalogue.put([products[0] | {"product_id": '"<i>', "title": title, "attributes": attributes}])
    bad = '=HYPERLINK("http://x")'
    rows = [f'n1,"{title}",<b>red</b>', f'"{bad.replace(chr(34), chr(34) * 2)}",,red']
    job = call("catalogue_add", TOKEN, catalogue_csv(tmp_path, rows))
    assert job["added"] == 1 and job["errors"][0]["product_id"] == bad
    shown = [
        found(space.catalogue, Form(text="mug alert")),
        found(space.catalogue, Form(text="<script>alert(3)</script>", attributes=["colour=<b>red</b>"])),
        found(space.catalogue, Form(text="mug", attributes=["<script>"])),
        found_like(space.catalogue, '"<i>', Form()),
        found_like(space.catalogue, "<script>", Form()),
        *explained(space.catalogue, Product(title=title, asked="<script>")),
    ]
    for html in shown:
        assert "<script" not in html and "<img src=x" not in html and "<b>" not in html.replace("<b>0.", "")
        assert '"<i>' not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown[0]


def test_fifty_users_get_answers(space):
    clients = [Client(space.url, verbose=False) for _ in range(5)]
    begin = time.perf_counter()
    jobs = [clients[n % 5].submit(f"red shoes {n}", 3, api_name="/search_text") for n in range(50)]
    assert all(len(job.result(timeout=60)) == 3 for job in jobs)
    assert time.perf_counter() - begin < 60


def test_a_restart_finds_everything(space, models, products):
    again = open_catalogue(SpaceOptions(space.data_dir, models[1]))  # an index that is there keeps its encoder
    assert len(again.now.index) == len(products) and again.now.index.manifest["model"] == models[0]
    encoder = Encoder(*live_catalogue.load_encoder(models[0]))
    assert again.now.index.manifest["fingerprint"] == encoder_fingerprint(encoder.model, encoder.processor)
