from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from moon2_dataset import PRODUCT_FEATURES, QUERY_FEATURES, join, normalise_title
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
    assert products.features == PRODUCT_FEATURES and queries.features == QUERY_FEATURES
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
