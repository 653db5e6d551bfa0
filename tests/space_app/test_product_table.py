from __future__ import annotations

import random
from collections import Counter

import pytest

from moon2_space.catalogue_index import CatalogueIndex
from moon2_space.product_table import ProductTable
from moon2_training.encode import Encoder


def test_products_are_read_without_an_encoder(tiny, shop, tmp_path):
    index = CatalogueIndex.create(tmp_path / "index", Encoder(*tiny))
    index.add(shop.products.to_list())
    table = ProductTable(tmp_path / "index")
    assert len(table) == 24 and table.facets() == index.facets()
    assert {product["product_id"]: product["images"] for product in table.stored(batch_size=7)} == {
        product["product_id"]: product["images"][:4] for product in shop.products}  # fmt: skip
    assert table.products([]) == {} and list(table.products(["p1", "p1"], ["title"])) == ["p1"]


def test_facets_are_those_that_one_would_count_by_hand(tiny, tmp_path):
    index = CatalogueIndex.create(tmp_path / "index", Encoder(*tiny))
    rng = random.Random(0)
    levels, values = ["Home", "Mugs", "home", "A\x1fB", "Ü"], ["red", "Red", "navy", "1\x1f2"]
    products = [
        {
            "product_id": f"p{number}",
            "title": "mug",
            "category_path": rng.choices(levels, k=number % 5),
            "attributes": [{"name": rng.choice(["colour", "size"]), "value": rng.choice(values)}] * (number % 3),
        }
        for number in range(60)
    ]
    index.add(products[:40])
    index.add(products[40:])
    categories, attributes = Counter(), {}
    for product in products:
        path = product["category_path"]
        categories.update(tuple(path[:depth]) for depth in range(1, len(path) + 1))
        for pair in product["attributes"]:
            attributes.setdefault(pair["name"], Counter())[pair["value"]] += 1
    facets = index.facets()
    assert facets.categories == dict(categories) and list(facets.categories) == sorted(categories)
    assert facets.attributes == {name: dict(values) for name, values in attributes.items()}
    for of_name in facets.attributes.values():
        assert list(of_name.values()) == sorted(of_name.values(), reverse=True)
    paths, pairs = index.labels()
    assert sorted(paths) == sorted({tuple(product["category_path"]) for product in products} - {()})
    assert sorted(map(str, pairs)) == sorted(str(product["attributes"]) for product in products)


def test_there_must_be_an_index(tmp_path):
    with pytest.raises(FileNotFoundError, match="no index there"):
        ProductTable(tmp_path)
    assert list(tmp_path.iterdir()) == []
