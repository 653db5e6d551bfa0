from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset

from moon2_training.benchmark import Benchmark, query_slices


def with_slices(queries: Dataset, values: list) -> Dataset:
    return queries.add_column("slice", values)


def test_of_too_many_values_no_slices_are_made(shop, monkeypatch):
    rows = range(24)
    many = with_slices(shop.queries, [str(row) for row in rows])
    assert len(np.unique(query_slices(many, rows)["slice"])) == 24
    monkeypatch.setattr("moon2_training.benchmark.MAX_SLICES", 23)
    assert query_slices(many, rows) == {}  # nobody asked
    with pytest.raises(ValueError, match="slice_by=slice: 24 values; give a column with 23 or fewer"):
        query_slices(many, rows, ["slice"])
    assert query_slices(with_slices(shop.queries, list(rows)), rows) == {}  # numbers


def test_what_is_asked_is_one_entry_for_each_query(shop):
    queries = with_slices(shop.queries, ["a", "b", *["c", " ", None] * 7, "c"])
    benchmark = Benchmark.of(shop.products, queries)
    assert len(benchmark.rows) == len(benchmark.relevance.counts) == 23  # q0 has two rows
    assert benchmark.relevance.counts.tolist() == [2] + [1] * 22
    assert benchmark.slices["slice"].tolist() == ["a", *["c", "none", "none"] * 7, "c"]
    assert all(group.shape == (23,) for group in benchmark.groups.values())
    assert [task.name for task in benchmark.categories.tasks] == ["level_2"]
    assert [task.name for task in benchmark.attributes.tasks] == ["colour"]
