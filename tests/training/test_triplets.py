from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset

from moon2_dataset import join
from moon2_training.triplets import TripletDataset, TripletKey, item_text

ROW_OF_QUERY = {"q0": 0, "q1": 2, "q2": 3, "q3": 4, "q4": 5}


def pixels(images):
    return [np.asarray(image).tobytes() for image in images]


def test_an_example_is_fixed_by_seed_epoch_and_index(shop):
    dataset, again = TripletDataset(shop, "explicit", seed=3), TripletDataset(shop, "explicit", seed=3)
    for index in range(len(dataset)):
        for epoch in (0, 5):
            one, other = dataset[TripletKey(index, epoch)], again[TripletKey(index, epoch)]
            assert pixels(one.query.images) == pixels(other.query.images)
            assert one.negative.product_key == other.negative.product_key
    index = 10
    photos = {tuple(pixels(dataset[TripletKey(index, epoch)].query.images)) for epoch in range(4)}
    photos.add(tuple(pixels(TripletDataset(shop, seed=4)[index].query.images)))
    assert len(photos) == 5


def test_the_query_photo_is_the_logs_own_or_made_from_the_product(shop):
    dataset = TripletDataset(shop)
    own = dataset[ROW_OF_QUERY["q1"]]
    assert pixels(own.query.images) == pixels(dataset[TripletKey(ROW_OF_QUERY["q1"], 9)].query.images)
    made = dataset[10]
    assert pixels(made.query.images) != pixels(made.positive.images) and len(made.query.images) == 1
    image_only = dataset[ROW_OF_QUERY["q2"]]
    assert image_only.query.text is None and len(image_only.query.images) == 1
    without_picture = dataset[ROW_OF_QUERY["q3"]]
    assert without_picture.query.images == [] and without_picture.positive.images == []


def test_several_pictures_are_drawn_anew_and_the_photo_shows_another(shop, monkeypatch):
    queries = Dataset.from_dict({"query_id": ["a"], "text": ["mug"], "image": [None], "product_id": ["p2"]})
    data = join(shop.products, queries)
    monkeypatch.setattr("moon2_training.triplets.make_query_photo", lambda image, rng: image)
    dataset = TripletDataset(data)
    seen = set()
    for epoch in range(20):
        triplet = dataset[TripletKey(0, epoch)]
        assert len(triplet.positive.images) == 1
        assert pixels(triplet.query.images) != pixels(triplet.positive.images)
        seen.add(pixels(triplet.positive.images)[0])
    assert len(seen) == 3
    both = TripletDataset(data, max_images_per_item=2)[0]
    assert len(both.positive.images) == 2 and not set(pixels(both.query.images)) & set(pixels(both.positive.images))
    assert len(TripletDataset(data, max_images_per_item=9)[0].positive.images) == 3


def test_all_right_products_of_a_query_are_known(shop):
    keys = {int(shop.product_key[0]), int(shop.product_key[8])}
    for row in (0, 1):
        assert set(TripletDataset(shop)[row].positive_keys) == keys
    assert TripletDataset(shop)[10].positive_keys == (int(shop.product_key[shop.positive_row[10]]),)


def test_in_batch_mode_has_no_negative_and_explicit_never_a_right_one(shop):
    assert TripletDataset(shop)[0].negative is None
    dataset = TripletDataset(shop, "explicit")
    row_of_key = {int(key): row for row, key in enumerate(shop.product_key)}
    for index in range(len(dataset)):
        positive_row = shop.positive_row[index]
        negatives = set()
        for epoch in range(25):
            triplet = dataset[TripletKey(index, epoch)]
            row = row_of_key[triplet.negative.product_key]
            negatives.add(row)
            assert triplet.negative.product_key not in triplet.positive_keys
            assert shop.title_key[row] != shop.title_key[positive_row]
        if index == ROW_OF_QUERY["q4"]:
            assert negatives == {9, 10}
        else:
            assert {int(shop.leaf[row]) for row in negatives} == {int(shop.leaf[positive_row])}
            assert len(negatives) > 2


def test_a_leaf_with_nothing_else_falls_back_to_the_catalogue(shop):
    leaf = shop.leaf.copy()
    leaf[5] = 77
    data = replace(shop, leaf=leaf)
    index = int(np.flatnonzero(data.positive_row == 5)[0])
    keys = {TripletDataset(data, "explicit")[TripletKey(index, e)].negative.product_key for e in range(20)}
    assert len(keys) > 5 and int(data.product_key[5]) not in keys


def test_a_catalogue_of_right_products_only_has_no_negative(shop):
    products = shop.products.select([0, 1])
    queries = Dataset.from_dict({"query_id": ["a"], "text": ["mug"], "image": [None], "product_id": ["p0"]})
    with pytest.raises(ValueError, match="query a: .* no negative exists"):
        TripletDataset(join(products, queries), "explicit")[0]


def test_item_text_holds_the_chosen_fields(shop):
    product = shop.products[6]
    assert item_text(product) == "Lumo navy blue mug 6"
    assert item_text(product, ("title", "category", "attributes")) == {
        "title": "Lumo navy blue mug 6",
        "category": ["Shop", "mug"],
        "attributes": [{"name": "colour", "value": "navy blue"}],
    }
    assert item_text(product | {"category_path": []}, ("title", "category")) == "Lumo navy blue mug 6"
    assert item_text(shop.products[4]) is None and "title" not in item_text(shop.products[4], ("title", "category"))
    dataset = TripletDataset(shop, item_text_fields=("title", "category"))
    category = shop.products[int(shop.positive_row[10])]["category_path"][1]
    assert dataset[10].positive.text["category"] == ["Shop", category]


def test_an_unreadable_picture_names_product_or_query(shop):
    broken = {"bytes": b"no image", "path": None}
    products = shop.products.map(lambda row: {"images": [broken]} if row["product_id"] == "p9" else {})
    index = int(np.flatnonzero(shop.positive_row == 9)[0])
    with pytest.raises(ValueError, match="product p9, image 0: unreadable image"):
        TripletDataset(replace(shop, products=products))[index]
    queries = shop.queries.map(lambda row: {"image": broken} if row["query_id"] == "q1" else {})
    with pytest.raises(ValueError, match="query q1: unreadable image"):
        TripletDataset(replace(shop, queries=queries))[ROW_OF_QUERY["q1"]]


def test_label_noise_is_never_read(shop):
    noisy = shop.queries.add_column("label_noise", [True] * len(shop.queries))
    one = TripletDataset(shop)[7]
    other = TripletDataset(join(shop.products, noisy))[7]
    assert pixels(one.query.images) == pixels(other.query.images) and one.positive_keys == other.positive_keys
