"""What an encoder is judged by: a catalogue, its queries, and the tasks and slices that are read from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from datasets import Dataset, Value

from moon2_dataset import QUERY_FEATURES, ProductQueries, join

from .ceiling import query_groups
from .classification import TaskSet, attribute_tasks, category_tasks
from .retrieval import Relevance

SLICE = "slice"  # column of queries that is sliced by unasked
MAX_SLICES = 50


class Benchmark(NamedTuple):
    """A catalogue and its queries, and what is asked of an encoder: the same for every one that is judged by it.

    Args:
        data: both tables, joined.
        rows: the first row (Q,) of every query.
        relevance: right products of every query.
        slices: by column, labels (Q,) of the queries.
        groups: by view, (Q,) equal for queries that are the same to any encoder.
        categories: one task for each category level.
        attributes: one task for each attribute.
    """

    data: ProductQueries
    rows: list[int]
    relevance: Relevance
    slices: dict[str, np.ndarray]
    groups: dict[str, np.ndarray]
    categories: TaskSet
    attributes: TaskSet

    @classmethod
    def of(cls, products: Dataset, queries: Dataset, slice_by: Sequence[str] | None = None) -> Benchmark:
        """Read two tables; args and errors as in `evaluate`."""
        data = join(products, queries)
        rows, relevance = Relevance.from_queries(data)
        return cls(
            data,
            rows,
            relevance,
            query_slices(data.queries, rows, slice_by),
            query_groups(data.queries, rows),
            category_tasks(list(data.products["category_path"])),
            attribute_tasks(list(data.products["attributes"])),
        )


def query_slices(
    queries: Dataset, rows: Sequence[int], slice_by: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Read the slices of every query.

    Args:
        queries: in the queries schema.
        rows: the first row (Q,) of every query.
        slice_by: see `evaluate`.

    Returns:
        By column, (Q,) labels: the text, "true", "false", or "none" where there is nothing.

    Raises:
        ValueError: a column is not there, of another type, or has more than fifty values.
    """
    possible = [
        name
        for name, kind in queries.features.items()
        if name not in QUERY_FEATURES and isinstance(kind, Value) and kind.dtype in ("string", "large_string", "bool")
    ]
    asked = [SLICE] if slice_by is None and SLICE in possible else slice_by or []
    slices = {}
    for column in asked:
        if column not in possible:
            raise ValueError(
                f"slice_by={column}: queries have no such column of text or true / false; "
                f"give one of {', '.join(possible) or 'your own'}"
            )
        values = queries.select_columns(column).select(rows)[column]
        labels = np.array([str(v).lower() if isinstance(v, bool) else (v or "").strip() or "none" for v in values])
        count = len(np.unique(labels))
        if count <= MAX_SLICES:
            slices[column] = labels
        elif slice_by is not None:
            raise ValueError(f"slice_by={column}: {count:,} values; give a column with {MAX_SLICES} or fewer")
    return slices
