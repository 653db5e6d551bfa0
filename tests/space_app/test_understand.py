from __future__ import annotations

import numpy as np
import pytest

from moon2_dataset.demo_catalogue import render_demo_catalogue
from moon2_space.understand import CatalogueLabels
from moon2_training.encode import Encoder
from moon2_training.items import ProductItems

PATHS = [["Home", "Mugs"], ["Home", "Mugs"], ["Fashion", "Shoes", "Boots"], ["Fashion", "Shoes"], ["Fashion", "Bags"],
         [" "], []]  # fmt: skip
ATTRIBUTES = [[{"name": "colour", "value": colour}, {"name": "size", "value": colour[0]}]
              for colour in ("red", "navy", "blue", "red", "navy", "blue", "blue")]  # fmt: skip
ATTRIBUTES[0].append({"name": "rare", "value": "yes"})


@pytest.fixture
def labels(tiny) -> CatalogueLabels:
    return CatalogueLabels(Encoder(*tiny), PATHS, ATTRIBUTES)


def test_a_drawn_product_is_recognised(trained_encoder):
    """Far more often than by chance, also by an encoder that was trained on another shop."""
    products, _ = render_demo_catalogue(80, seed=6)
    labels = CatalogueLabels(trained_encoder, products["category_path"], products["attributes"])
    vectors = trained_encoder.encode(ProductItems(products), progress=False)
    right = {"colour": 0, "level_1": 0, "level_3": 0}
    for product in products:
        item = {"text": product["title"], "images": product["images"]}
        understood = labels.understand(item, vectors)
        predicted = {p.name: p.label for p in (*understood.categories, *understood.attributes)}
        truth = {attribute["name"]: attribute["value"] for attribute in product["attributes"]}
        truth |= {f"level_{level}": name for level, name in enumerate(product["category_path"], start=1)}
        for name in right:
            right[name] += predicted[name] == truth[name]
    labels_of = {"colour": 12, "level_1": 5, "level_3": 17}
    assert all(right[name] > 1.5 * len(products) / count for name, count in labels_of.items()), right


def test_probabilities_are_those_of_the_softmax_and_add_up_on_the_way_up(labels, tiny):
    encoder = Encoder(*tiny)
    item = {"text": "red mug", "images": []}
    understood = labels.understand(item, np.zeros((0, encoder.width), dtype=np.float32))
    names = ["Bags", "Boots", "Mugs"]
    vector, *texts = encoder.encode([item, *({"text": name, "images": []} for name in names)], progress=False)
    logits = np.stack(texts) @ vector / float(encoder.model.temperature()[0].detach())
    expected = dict(zip(names, np.exp(logits) / np.exp(logits).sum(), strict=True))
    first, second, *_ = understood.categories
    assert dict(first.choices) == pytest.approx(
        {"Home": expected["Mugs"], "Fashion": expected["Bags"] + expected["Boots"]}, abs=1e-4
    )
    assert sum(score for _, score in second.choices) == pytest.approx(first.score)
    colour, size = understood.attributes
    assert (colour.name, size.name) == ("colour", "size")
    assert sum(score for _, score in colour.choices) == pytest.approx(1)
    assert colour.label == colour.choices[0][0] and colour.score == max(score for _, score in colour.choices)
    assert understood.duplicates == []


def test_a_path_is_always_one_of_the_catalogue(labels, make_image):
    for item in ({"text": "mug", "images": []}, {"text": None, "images": [make_image(1)]},
                 {"text": "Nordvik shoes", "images": [make_image(2)]}):  # fmt: skip
        path = labels.understand(item, lambda vector, count: []).category_path
        assert path in (["Home", "Mugs"], ["Fashion", "Shoes", "Boots"], ["Fashion", "Bags"])


def test_a_leaf_of_the_same_name_in_two_places_is_shared(tiny):
    paths = [["Home", "Other"], ["Fashion", "Other"], ["Fashion", "Bags"]]
    understood = CatalogueLabels(Encoder(*tiny), paths, [[]] * 3).understand(
        {"text": "mug", "images": []}, lambda vector, count: []
    )
    assert sum(score for _, score in understood.categories[0].choices) == pytest.approx(1)


def test_what_is_no_attribute_to_predict_says_why(labels):
    assert set(labels.left_out) == {"rare"} and "of the products" in labels.left_out["rare"]


def test_a_catalogue_without_labels_predicts_nothing(tiny):
    labels = CatalogueLabels(Encoder(*tiny), [[], []], [[], []])
    understood = labels.understand({"text": "mug", "images": []}, lambda vector, count: [])
    assert understood.categories == [] and understood.attributes == [] and understood.category_path == []


def test_near_duplicates_come_from_vectors_or_from_a_search(labels, tiny, mixed_items):
    encoder = Encoder(*tiny)
    items = [{"text": text, "images": images if isinstance(images, list) else [images] if images else []}
             for text, images in zip(*mixed_items, strict=True)]  # fmt: skip
    vectors = encoder.encode(items, progress=False)
    found = labels.understand(items[2], vectors, max_duplicates=3, min_similarity=-1).duplicates
    assert [row for row, _ in found] == np.argsort(-(vectors @ vectors[2]))[:3].tolist()
    assert found[0] == (2, pytest.approx(1, abs=1e-5))
    assert all(score >= 0.999 for _, score in labels.understand(items[2], vectors, min_similarity=0.999).duplicates)
    asked = []

    def search(vector, count):
        asked.append((vector, count))
        return [("sku-7", 0.97), ("sku-9", 0.5)]

    assert labels.understand(items[2], search, max_duplicates=2).duplicates == [("sku-7", 0.97)]
    assert asked[0][1] == 2 and np.allclose(asked[0][0], vectors[2], atol=1e-5)


def test_only_new_labels_are_encoded_when_the_catalogue_changes(labels, monkeypatch):
    encoded = []
    encode = labels.encoder.encode
    monkeypatch.setattr(
        labels.encoder, "encode", lambda items, *args, **kw: encoded.extend(items) or encode(items, *args, **kw)
    )
    labels.update([*PATHS, ["Home", "Lamps"]], ATTRIBUTES)
    assert [item["text"] for item in encoded] == ["Lamps"]
    labels.update(PATHS[:3], ATTRIBUTES[:3])
    path = labels.understand({"text": "mug", "images": []}, lambda vector, count: []).category_path
    assert path[0] in ("Home", "Fashion") and len(encoded) == 2  # the item and no label
