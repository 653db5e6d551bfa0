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
    monkeypatch.setattr(index, "_reader", None)
    assert index.nearest(vectors[:1], 3) == first


@pytest.mark.parametrize("view", ["multimodal", "text", "image"])
@pytest.mark.parametrize("is_compacted", [False, True])
def test_after_every_change_the_same_as_the_table_finds(index, drawn_products, is_compacted, view, monkeypatch):
    """Few changes, of which only the new rows are read, and so many that all are."""
    if not is_compacted:
        monkeypatch.setattr(index, "_refresh", lambda is_changed: None)
    _, vectors = index.vectors(view)
    other = {product["product_id"]: product for product in drawn_products}
    first, second, *_, last = other
    changes = (
        lambda: index.delete([first]),
        lambda: index.add([other[second] | {"title": other[last]["title"], "images": other[last]["images"]}]),
        lambda: index.add([other[first] | {"images": []}]),
        lambda: index.add([{"product_id": "new", "title": "teapot"}, other[second]]),
        lambda: index.add([other[first], {"product_id": "new", "title": "tea kettle"}]),
        lambda: index.delete(list(other)[:20]),
        lambda: index.add(drawn_products),
        lambda: index.delete(index.ids()),
        lambda: index.add(drawn_products),
    )
    for change in changes:
        change()
        there, kept = index.vectors(view)
        (similarities,) = vectors[:1] @ kept.T
        (found,) = index.nearest(vectors[:1], 50, view=view)
        assert sorted(product_id for product_id, _ in found) == sorted(there)
        of_id = dict(zip(there, similarities.tolist(), strict=True))
        np.testing.assert_allclose([hit[1] for hit in found], [of_id[hit[0]] for hit in found], atol=1e-5)
        assert [hit[1] for hit in found] == sorted((hit[1] for hit in found), reverse=True)
        assert len(index.nearest(vectors[:1], 2, view=view)[0]) == min(2, len(there))


def test_rows_that_are_moved_while_new_ones_are_read(index, drawn_products, monkeypatch):
    ids, vectors = index.vectors()
    index.nearest(vectors[:1], 1)
    index.delete(ids[:1])
    with monkeypatch.context() as patch:
        real = index.row_vectors
        patch.setattr(index, "row_vectors", lambda *given: index._table.optimize() and None or real(*given))
        patch.setattr(index, "_refresh", lambda is_changed: None)
        index.add(drawn_products)
        found = [product_id for product_id, _ in index.nearest(vectors[:1], 50)[0]]
        assert found[0] == ids[0] and sorted(found) == sorted(ids)
    for _ in range(2):
        found = [product_id for product_id, _ in index.nearest(vectors[:1], 50)[0]]
        assert found[0] == ids[0] and sorted(found) == sorted(ids)


def test_of_a_few_changes_only_what_is_new_is_read(index, drawn_products, monkeypatch):
    monkeypatch.setattr(index, "_refresh", lambda is_changed: None)  # it moves rows
    ids, vectors = index.vectors()
    index.nearest(vectors[:1], 1)
    asked, real = [], index.row_vectors
    monkeypatch.setattr(index, "row_vectors", lambda view, ids=None: asked.append(ids) or real(view, ids))
    index.delete(ids[:1])
    assert ids[0] not in [product_id for product_id, _ in index.nearest(vectors[:1], 30)[0]] and asked == []
    index.add(drawn_products)
    assert index.nearest(vectors[:1], 1)[0][0][0] == ids[0] and asked == [[ids[0]]]
    index.delete(ids[:10])
    index.nearest(vectors[:1], 1)
    assert asked == [[ids[0]], None]  # many have changed
    index.add(drawn_products)
    del asked[:]
    for number in range(30):
        index.add([{"product_id": f"new {number}", "title": "teapot"}])
        index.nearest(vectors[:1], 1)
    assert ["new 1"] in asked and 3 < asked.count(None) < 10  # and little by little, too


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
