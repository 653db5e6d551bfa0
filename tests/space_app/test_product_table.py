from __future__ import annotations

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


def test_there_must_be_an_index(tmp_path):
    with pytest.raises(FileNotFoundError, match="no index there"):
        ProductTable(tmp_path)
    assert list(tmp_path.iterdir()) == []
