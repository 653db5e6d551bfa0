"""Products reach the table many at a time, the last of each id, and all that were encoded."""

from __future__ import annotations

import pytest

from moon2_space import catalogue_index, unwritten_rows
from moon2_space.catalogue_index import CatalogueIndex
from moon2_training.encode import Encoder


@pytest.fixture
def index(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue_index, "BATCH_PRODUCTS", 5)
    return CatalogueIndex.create(tmp_path / "index", Encoder(*tiny))


def files(index):
    return index._table.stats()["fragment_stats"]["num_fragments"]


@pytest.fixture
def unoptimized(index, monkeypatch):
    monkeypatch.setattr(index, "_refresh", lambda changed: None)
    return index


@pytest.mark.parametrize("limit, value", [("PRODUCTS", 10), ("BYTES", 10), ("SECONDS", 0.0), (None, None)])
def test_batches_are_written_together_until_a_limit(unoptimized, drawn_products, monkeypatch, limit, value):
    if limit:
        monkeypatch.setattr(unwritten_rows, f"WRITE_{limit}", value)
    before = unoptimized.version
    unoptimized.add(drawn_products)
    assert len(unoptimized) == 30
    assert files(unoptimized) == {"PRODUCTS": 3, "BYTES": 6, "SECONDS": 6, None: 1}[limit]
    assert unoptimized.version - before == files(unoptimized)


def test_the_last_of_an_id_stays_though_the_first_is_not_written_yet(index, drawn_products):
    again = {**drawn_products[2], "title": "quite another mug"}
    changes = index.add([*drawn_products[:10], again])
    assert (changes.added, changes.replaced, len(index)) == (10, 1, 10)
    assert index.products([again["product_id"]])[again["product_id"]]["title"] == "quite another mug"


def test_what_was_encoded_before_an_error_is_written(index, drawn_products):
    def products():
        yield from drawn_products[:10]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        index.add(products())
    assert len(index) == 10
