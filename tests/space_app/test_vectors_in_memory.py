"""Vectors held in memory find what the table finds, and what has just been written."""

from __future__ import annotations

import numpy as np
import pytest

from moon2_space import vectors_in_memory
from moon2_space.catalogue_index import CatalogueIndex
from moon2_training.encode import Encoder


@pytest.fixture
def index(tiny, drawn_products, tmp_path) -> CatalogueIndex:
    index = CatalogueIndex.create(tmp_path / "index", Encoder(*tiny))
    index.add(drawn_products)
    return index


@pytest.mark.parametrize("view", ["multimodal", "text", "image"])
def test_the_same_as_the_table_finds(index, view, monkeypatch):
    _, vectors = index.vectors(view)
    held = index.nearest(2 * vectors[:5], 7, view=view)
    assert all(len(found) == 7 for found in held)
    monkeypatch.setattr(vectors_in_memory, "HELD_BYTES", 0)
    for in_memory, of_table in zip(held, index.nearest(vectors[:5], 7, view=view), strict=True):
        np.testing.assert_allclose([hit[1] for hit in in_memory], [hit[1] for hit in of_table], atol=1e-5)
        assert in_memory[0][0] == of_table[0][0]


def test_no_table_is_read_for_a_search(index, monkeypatch):
    _, vectors = index.vectors()
    first = index.nearest(vectors[:1], 3)
    monkeypatch.setattr(index, "_scan", None)
    assert index.nearest(vectors[:1], 3) == first


def test_what_was_deleted_and_added_is_seen(index, drawn_products):
    ids, vectors = index.vectors()
    assert index.nearest(vectors[:1], 1)[0][0][0] == ids[0]
    index.delete(ids[:1])
    assert ids[0] not in [product_id for product_id, _ in index.nearest(vectors[:1], 30)[0]]
    index.add(drawn_products)
    assert index.nearest(vectors[:1], 1)[0][0][0] == ids[0]


def test_a_zero_vector_is_like_nothing(index):
    (found,) = index.nearest(np.zeros((1, index.manifest["dimension"]), dtype=np.float32), 3)
    assert [similarity for _, similarity in found] == [0, 0, 0]
