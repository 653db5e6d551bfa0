from __future__ import annotations

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from moon2_space.ann_index import build_ann


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """1,500 vectors without any order, which partitions serve badly, and 300 products without."""
    vectors = np.random.default_rng(0).normal(size=(1500, 16))
    vectors = [*(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), *[None] * 300]
    schema = pa.schema([("product_id", pa.string()), ("vector", pa.list_(pa.float32(), 16))])
    table = lancedb.connect(tmp_path_factory.mktemp("ann")).create_table("products", schema=schema)
    rows = pa.table({"product_id": [f"p{i}" for i in range(1800)], "vector": vectors}, schema=schema)
    table.add(rows, on_bad_vectors="null")
    return table


PAIR = {"columns": {"multimodal": "vector"}, "pairs": [("multimodal", "multimodal")]}
NAME = "multimodal→multimodal"


def test_more_is_looked_into_the_more_is_wanted(table):
    some, most = (build_ann(table, **PAIR, wanted=wanted) for wanted in (0.3, 0.99))
    assert some["products"] == 1800 and some["partitions"] == 42 and 100 < some["sample"] < 200
    assert some["nprobes"] < most["nprobes"] <= 42
    assert 0.3 <= some["recall@10"][NAME] < 0.99 <= most["recall@10"][NAME]


def test_all_partitions_find_all(table):
    found = build_ann(table, **PAIR, wanted=1.1)
    assert (found["nprobes"], found["recall@10"]) == (42, {NAME: 1.0})
