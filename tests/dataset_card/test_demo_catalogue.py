from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from moon2_dataset import PRODUCT_FEATURES, QUERY_FEATURES, demo_catalogue, join, normalise_title
from moon2_dataset.demo_catalogue import KINDS, render_demo_catalogue, split_demo_catalogue

FINGERPRINT = """
import hashlib
from moon2_dataset.demo_catalogue import render_demo_catalogue
products, queries = render_demo_catalogue(12, seed=5)
print(hashlib.sha256(repr((products[:], queries[:])).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def catalogue():
    return render_demo_catalogue(80)


def test_it_fits_the_schema_and_joins(catalogue):
    products, queries = catalogue
    assert list(products.features) == [*PRODUCT_FEATURES, "visible_in", "image_noise", "title_noise"]
    assert list(queries.features) == [*QUERY_FEATURES, "slice", "label_noise"]
    assert PRODUCT_FEATURES.items() <= products.features.items() and QUERY_FEATURES.items() <= queries.features.items()
    data = join(products, queries)
    assert len(data.products) == 80 and 80 <= len(data) <= 160
    assert {tuple(path) for path in products["category_path"]} <= {kind.path for kind in KINDS}
    assert len(np.unique(data.leaf)) >= 12


def test_titles_are_unique_and_attributes_complete(catalogue):
    products, _ = catalogue
    assert len({normalise_title(title) for title in products["title"]}) == 80
    for product in products:
        names = [attribute["name"] for attribute in product["attributes"]]
        assert names[:4] == ["brand", "colour", "pattern", "material"]
        assert ("audience" in names) == (product["category_path"][0] != "Home")


def test_some_traits_show_in_the_picture_alone(catalogue):
    products, _ = catalogue
    silent = 0
    for product in products:
        colour = next(a["value"] for a in product["attributes"] if a["name"] == "colour")
        silent += colour not in product["title"].lower()
    assert 8 < silent < 60


def test_every_product_has_two_or_three_different_pictures(catalogue):
    products, queries = catalogue
    pictures = [picture["bytes"] for images in products["images"] for picture in images]
    photos = [photo["bytes"] for photo in queries["image"] if photo is not None]
    assert {len(images) for images in products["images"]} == {2, 3}
    assert len(set(pictures + photos)) == len(pictures) + len(photos)
    for data in pictures[:20] + photos[:20]:
        with Image.open(io.BytesIO(data)) as image:
            assert max(image.size) == 160 and np.asarray(image).std() > 5


def test_queries_come_with_text_photo_or_both(catalogue):
    _, queries = catalogue
    forms = {
        (text is not None, photo is not None) for text, photo in zip(queries["text"], queries["image"], strict=True)
    }
    assert forms == {(True, False), (False, True), (True, True)}


def test_the_same_seed_draws_the_same_shop_in_another_process():
    products, queries = render_demo_catalogue(12, seed=5)
    here = hashlib.sha256(repr((products[:], queries[:])).encode()).hexdigest()
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    there = subprocess.run(
        [sys.executable, "-c", FINGERPRINT], env=environment, capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == here
    assert render_demo_catalogue(12, seed=6)[0][:] != products[:]


def test_the_split_keeps_products_with_their_queries_apart(catalogue):
    training, held_out = split_demo_catalogue(*catalogue, held_out=0.25)
    assert (len(training.products), len(held_out.products)) == (60, 20)
    assert len(training) + len(held_out) == len(catalogue[1])
    assert not set(training.product_index) & set(held_out.product_index)
    assert not set(training.title_key.tolist()) & set(held_out.title_key.tolist())
    assert set(held_out.queries["product_id"]) == set(held_out.product_index)


def mean_colour(picture: dict) -> tuple:
    with Image.open(io.BytesIO(picture["bytes"])) as image:
        return image.size, np.asarray(image, dtype=float).mean((0, 1))


def test_the_shop_is_the_one_that_it_was_before_it_had_known_truth():
    products, queries = render_demo_catalogue(12, seed=5)
    words = products.select_columns([name for name in PRODUCT_FEATURES if name != "images"])[:]
    asked = queries.select_columns(["query_id", "text", "product_id"])[:]
    recorded = "49980e12c67a21854ffd4041c30de387271e32e7b565d05cc41469ac0118bad7"
    assert hashlib.sha256(repr((words, asked)).encode()).hexdigest() == recorded
    photos = [photo for photo in queries["image"] if photo is not None][:2]
    before = [((128, 160), [176.9, 179.6, 178.0]), ((160, 128), [182.2, 172.2, 196.0]),
              ((160, 160), [228.8, 232.0, 230.1]), ((160, 160), [135.7, 119.7, 145.5]),
              ((160, 160), [120.9, 91.0, 71.0])]  # fmt: skip
    for picture, (size, colour) in zip([*products[0]["images"], *photos], before, strict=True):
        found = mean_colour(picture)
        assert found[0] == size and found[1] == pytest.approx(colour, abs=0.5)


def where(product: dict) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in product["visible_in"]}


def values(product: dict) -> dict[str, str]:
    return {entry["name"]: entry["value"].lower() for entry in product["attributes"]}


def test_titles_and_pictures_tell_what_is_recorded(catalogue):
    products, _ = catalogue
    materials = {kind.path: kind.materials for kind in KINDS}
    seen = set()
    for product in products:
        recorded, words = where(product), values(product)
        assert recorded.keys() == words.keys()
        for name, place in recorded.items():
            assert (place in ("text", "both")) == (f" {words[name]} " in f" {product['title'].lower()} ")
            if name in ("brand", "audience"):  # no picture says so
                assert place in ("text", "neither")
            elif name != "material":
                assert place in ("image", "both")
            elif words[name] in ("ceramic", "porcelain"):  # one like the other
                assert {"ceramic", "porcelain"} < set(materials[tuple(product["category_path"])])
                assert place in ("text", "neither")
            elif words[name] in ("denim", "linen", "suede", "wood"):
                assert place in ("image", "both")
            seen.add((name, place))
    assert {("colour", "image"), ("colour", "both"), ("material", "text"), ("material", "both")} <= seen


def test_a_slice_says_what_the_answer_needs(monkeypatch, described):
    monkeypatch.setattr(demo_catalogue, "_mistyped", lambda text, rng: text)
    products, queries = render_demo_catalogue(300, seed=2, only_in_picture=0.3, only_in_text=0.2)
    product_of = {product["product_id"]: product for product in products}
    counts = {}
    for query in queries:
        product = product_of[query["product_id"]]
        spoken = set((query["text"] or "").split())
        asked = {name for name, value in values(product).items() if spoken & set(value.split())}
        if query["image"] is not None:
            asked |= {"colour", "pattern"} | ({"material"} if shows_material(product) else set())
        needed = {where(product)[name] for name in asked} & {"image", "text"}
        needed |= {"image"} if query["image"] is not None else set()
        expected = "both" if len(needed) == 2 else needed.pop() if needed else "either"
        assert query["slice"] == expected
        counts[expected] = counts.get(expected, 0) + 1
    assert len(counts) == 4 and min(counts.values()) > 10


def shows_material(product: dict) -> bool:
    kind = next(kind for kind in KINDS if list(kind.path) == product["category_path"])
    look = demo_catalogue.Look(kind.shape, "red", "plain", values(product)["material"], 0, (0.5,) * 4)
    return "material" in look.told(kind.materials)


def test_attributes_can_be_left_to_the_picture_or_to_the_title(described):
    usual, _ = render_demo_catalogue(200, seed=3)
    seen, _ = render_demo_catalogue(200, seed=3, only_in_picture=1.0)
    silent = [where(product)["colour"] == "image" for product in seen]
    assert sum(silent) > 150  # words come back where a title would not be unique
    some, _ = render_demo_catalogue(200, seed=3, only_in_picture=0.3, only_in_text=0.3)
    texts = [sum(where(product)["colour"] == "text" for product in table) for table in (usual, some)]
    images = [sum(where(product)["colour"] == "image" for product in table) for table in (usual, some)]
    assert texts[0] == 0 and 40 < texts[1] < 80 and images[0] + 10 < images[1]

    usual, _ = render_demo_catalogue(30, seed=3)
    told, asked = render_demo_catalogue(30, seed=3, only_in_text=1.0)
    for product in told:
        pattern = where(product)["pattern"]
        assert where(product)["colour"] == where(product)["material"] == "text"
        assert pattern == ("image" if values(product)["pattern"] == "plain" else "text")
        for picture in product["images"]:
            look = picture["bytes"].decode()
            assert "colour='undyed', pattern='plain', material=''" in look
    assert told["attributes"] == usual["attributes"]
    photos = [photo["bytes"].decode() for photo in asked["image"] if photo is not None]
    assert photos and not any("undyed" in photo for photo in photos)  # a shopper has the product itself


@pytest.mark.parametrize("shares", [(1.1, 0.0), (0.6, 0.6), (-0.1, 0.0), (0.0, float("nan"))])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(ValueError, match="give shares that add up to at most 1"):
        render_demo_catalogue(2, only_in_picture=shares[0], only_in_text=shares[1])


def test_noise_comes_at_the_chosen_rates_and_is_recorded(described):
    clean, asked = render_demo_catalogue(30, seed=4)
    products, queries = render_demo_catalogue(30, seed=4, wrong_images=0.2, wrong_titles=0.1, wrong_clicks=0.3)
    for column, record, expected in (("images", "image_noise", 6), ("title", "title_noise", 3)):
        moved = [one != other for one, other in zip(clean[column], products[column], strict=True)]
        assert moved == products[record] and sum(moved) == expected
        assert not any(clean[record])
    moved = [one != other for one, other in zip(asked["product_id"], queries["product_id"], strict=True)]
    assert moved == queries["label_noise"] and sum(moved) == round(0.3 * len(queries))
    for column in ("slice", "text"):
        assert queries[column] == asked[column]
    assert products["visible_in"] == clean["visible_in"]
    join(products, queries)
