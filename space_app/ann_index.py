"""Approximate search for large catalogues: partitions, and how many of them to look into, measured against all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import lancedb
import numpy as np
from lancedb.index import IvfFlat

ANN_FROM = 50_000  # products; up to there every one is compared
SAMPLE = 200  # products that ask for their neighbours
DEPTH = 10
WANTED_RECALL = 0.95


def build_ann(
    table: lancedb.table.Table,
    columns: Mapping[str, str],
    pairs: Sequence[tuple[str, str]],
    wanted: float = WANTED_RECALL,
) -> dict[str, Any]:
    """Partition the vectors of a table and find how many partitions a search must look into.

    The vectors themselves are kept, so that a search looks at fewer but compares exactly. Products of the catalogue
    stand in for queries: for a sample of them the ten found are held against the ten nearest of all, and the number of
    partitions looked into doubles until the share found is as wanted in all pairs of views.

    Args:
        table: of an index.
        columns: view -> the column with its vectors.
        pairs: (view of the query, view of the products) of the searches to come.
        wanted: recall@10 to reach.

    Returns:
        {"products": rows at that time, "partitions", "nprobes": how many to look into, "recall@10": "query→products"
        -> share found, "sample": queries it was measured with}.
    """
    products = table.count_rows()
    partitions = max(1, round(math.sqrt(products)))
    samples = {view: _sample(table, column) for view, column in columns.items()}
    for view in {view for _, view in pairs if len(samples[view])}:
        config = IvfFlat(distance_type="cosine", num_partitions=partitions)
        table.create_index(columns[view], config=config, replace=True)
    searches = [(asked, view) for asked, view in pairs if len(samples[asked]) and len(samples[view])]
    exact = [[_nearest(table, columns[view], vector, None) for vector in samples[asked]] for asked, view in searches]
    nprobes = 1
    while True:
        recalls = {}
        for (asked, view), of_all in zip(searches, exact, strict=True):
            found = [_nearest(table, columns[view], vector, nprobes) for vector in samples[asked]]
            recalls[f"{asked}→{view}"] = _recall(of_all, found)
        if nprobes >= partitions or all(recall >= wanted for recall in recalls.values()):
            break
        nprobes = min(2 * nprobes, partitions)
    return {
        "products": products,
        "partitions": partitions,
        "nprobes": nprobes,
        "recall@10": recalls,
        "sample": max(map(len, samples.values()), default=0),
    }


def _sample(table: lancedb.table.Table, column: str) -> np.ndarray:
    """(n, D) vectors of a column, of products drawn with a fixed seed."""
    count = table.count_rows()
    offsets = np.sort(np.random.default_rng(0).choice(count, size=min(SAMPLE, count), replace=False))
    found = table.take_offsets(offsets.tolist()).select([column]).to_arrow()[column].drop_null()
    return np.array(found.to_pylist(), dtype=np.float32)


def _nearest(table: lancedb.table.Table, column: str, vector: np.ndarray, nprobes: int | None) -> set[str]:
    query = table.search(vector, vector_column_name=column).distance_type("cosine").limit(DEPTH)
    query = query.select(["product_id", "_distance"])
    query = query.bypass_vector_index() if nprobes is None else query.nprobes(nprobes)
    return set(query.to_arrow()["product_id"].to_pylist())


def _recall(exact: Sequence[set[str]], found: Sequence[set[str]]) -> float:
    shares = [len(a & b) / len(a) for a, b in zip(exact, found, strict=True)]
    return float(np.mean(shares))
