from __future__ import annotations

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from moon2_space import ann_index
from moon2_space.ann_index import approximately, build_ann, is_outgrown, is_scattered, nearest_of_all

VIEW = {"columns": {"multimodal": "vector"}, "pairs": [("multimodal", "multimodal")]}
NAME = "multimodal→multimodal"


def rows(first: int, last: int, empty: int = 0) -> pa.Table:
    """Vectors without any order, which partitions serve badly, and products without."""
    vectors = np.random.default_rng(first).normal(size=(last - first - empty, 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    schema = pa.schema([("product_id", pa.string()), ("vector", pa.list_(pa.float32(), 16))])
    return pa.table(
        {"product_id": [f"p{i}" for i in range(first, last)], "vector": [*vectors, *[None] * empty]}, schema=schema
    )


@pytest.fixture
def table(tmp_path, monkeypatch):
    """1,500 vectors and 300 products without."""
    monkeypatch.setattr(ann_index, "PARTITION_ROWS", 45)
    monkeypatch.setattr(ann_index, "SAMPLE", 60)
    data = rows(0, 1800, empty=300)
    table = lancedb.connect(tmp_path).create_table("products", schema=data.schema)
    table.add(data, on_bad_vectors="null")
    return table


def searched(table: lancedb.table.Table, ann: dict) -> int:
    """Partitions that a search looks into, as LanceDB tells."""
    query = table.search(np.ones(16, dtype=np.float32), vector_column_name="vector").distance_type("cosine").limit(10)
    plan = approximately(query.select(["_distance"]), ann).analyze_plan()
    return int(plan.split("partitions_searched=")[1].split(",")[0])


def test_more_is_looked_into_the_more_is_wanted(table):
    some, most = (build_ann(table, **VIEW, wanted=wanted) for wanted in (0.3, 0.99))
    assert some["products"] == 1800 and some["partitions"] == 40 and 40 < some["sample"] < 60
    assert some["nprobes"] < most["nprobes"] <= 40 and most["kind"] == "IVF_SQ"
    assert 0.3 <= some["recall@10"][NAME] < 0.99 <= most["recall@10"][NAME]


def test_where_bytes_do_not_do_the_vectors_themselves_are_searched(table):
    found = build_ann(table, **VIEW, wanted=1.1)
    assert found == {
        "kind": "IVF_FLAT", "products": 1800, "partitions": 40, "nprobes": 40, "refine_factor": None,
        "recall@10": {NAME: 1.0}, "sample": found["sample"]}  # fmt: skip


def test_partitions_and_their_number_last_when_the_table_is_optimised(table):
    found = build_ann(table, **VIEW)
    assert 1 < found["nprobes"] < 40 and searched(table, found) == found["nprobes"]
    table.optimize()
    assert searched(table, found) == found["nprobes"]


def test_the_nearest_of_all_are_those_of_a_whole_comparison(table, monkeypatch):
    monkeypatch.setattr(ann_index, "BLOCK_ROWS", 77)
    vectors = np.array(table.to_arrow()["vector"].drop_null().to_pylist(), dtype=np.float32)
    queries = np.array(rows(5000, 5020)["vector"].to_pylist(), dtype=np.float32)
    found = nearest_of_all(table, "vector", queries, 5)
    np.testing.assert_allclose(found, np.sort(queries @ vectors.T, axis=1)[:, -5:], atol=1e-6)
    assert np.isneginf(nearest_of_all(table, "vector", queries, 1600)[:, :100]).all()


def test_all_that_pass_a_narrow_filter_are_found(table):
    found = build_ann(table, **VIEW, wanted=0.3)
    wanted = {f"p{i}" for i in range(0, 1500, 150)}
    query = table.search(np.ones(16, dtype=np.float32), vector_column_name="vector").distance_type("cosine").limit(10)
    query = approximately(query.select(["product_id", "_distance"]), found, is_filtered=True)
    hits = query.where(f"product_id IN ({', '.join(map(repr, sorted(wanted)))})").to_arrow()
    assert set(hits["product_id"].to_pylist()) == wanted


def test_products_equally_near_count_as_found(tmp_path, monkeypatch):
    monkeypatch.setattr(ann_index, "PARTITION_ROWS", 30)
    data = rows(0, 40)
    table = lancedb.connect(tmp_path).create_table("products", schema=data.schema)
    table.add(pa.concat_tables([data] * 30).set_column(0, "product_id", [[f"p{i}" for i in range(1200)]]))
    assert build_ann(table, **VIEW)["recall@10"][NAME] == 1.0


def test_partitions_are_scattered_by_many_additions_and_outgrown_by_more(table, monkeypatch):
    found = build_ann(table, **VIEW)
    assert not is_scattered(table) and not is_outgrown(table, found)
    for first in range(2000, 2022):
        table.add(rows(first, first + 1))
    assert is_scattered(table)
    table.optimize()
    assert not is_scattered(table) and not is_outgrown(table, found)
    monkeypatch.setattr(ann_index, "UNINDEXED_ROWS", 10)
    table.add(rows(3000, 3011))
    assert is_scattered(table)
    table.optimize()
    assert not is_scattered(table) and not is_outgrown(table, found)
    monkeypatch.setattr(ann_index, "SEGMENTS", 2)
    assert is_outgrown(table, found)
    monkeypatch.setattr(ann_index, "SEGMENTS", 3)
    assert is_outgrown(table, found | {"products": 900}) and not is_outgrown(table, found)


def test_what_an_earlier_version_found_is_read_and_made_anew(table):
    found = build_ann(table, **VIEW)
    before = {name: found[name] for name in ("products", "partitions", "nprobes", "recall@10", "sample")}
    assert is_outgrown(table, before) and searched(table, before) == found["nprobes"]
