"""The best recall that any encoder can reach where queries are the same: one embedding, one list of ten products."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset

from modeling_moon2.processing_moon2 import text_parts

if TYPE_CHECKING:
    from .retrieval import Relevance


def query_groups(queries: Dataset, rows: Sequence[int]) -> dict[str, np.ndarray]:
    """Tell which queries are the same to any encoder.

    Args:
        queries: in the queries schema, images not decoded.
        rows: the first row (Q,) of every query.

    Returns:
        By view, (Q,) int64: equal where text, image bytes (or path, where there are no bytes) or both are. Queries
        without the view are equal too.
    """
    table = queries.select_columns(["text", "image"]).select(rows)
    keys = []
    for row in table:
        image = row["image"] or {"bytes": None, "path": None}
        looks = hashlib.sha256(image["bytes"]).digest() if image["bytes"] else image["path"]
        keys.append((" ".join(part for _, part in text_parts(row["text"])).strip(), looks))
    texts, images = ([key[place] for key in keys] for place in range(2))
    return {"text": _numbered(texts), "image": _numbered(images), "multimodal": _numbered(keys)}


def _numbered(keys: list) -> np.ndarray:
    number_of: dict = {}
    return np.array([number_of.setdefault(key, len(number_of)) for key in keys], dtype=np.int64)


def ceiling_recall(relevance: Relevance, group: np.ndarray, k: int = 10) -> float:
    """Best Recall@k when the queries of a group share one ranking.

    Of each group the k candidates are taken one by one, always the one that is right for most of the queries not yet
    served. That is the best choice where every query has one right candidate; where they have several, seldom a better
    one exists, and the ceiling is then a little too low.

    Args:
        relevance: at least one right candidate for each of the Q queries.
        group: (Q,) equal for queries that are the same.
        k: cut-off.

    Returns:
        Share of the queries that are served. Candidates that are the same to an encoder can lower it further.
    """
    size = np.bincount(group)[group]  # (Q,)
    served = size <= k  # each can have a candidate of its own
    query_of_pair = relevance.query_of_pair
    left = np.flatnonzero(~served[query_of_pair])  # pairs of the large groups
    left = left[np.argsort(group[query_of_pair[left]], kind="stable")]
    bounds = np.flatnonzero(np.diff(group[query_of_pair[left]])) + 1
    for pairs in np.split(left, bounds):
        for _ in range(k):
            candidates, place = np.unique(relevance.rows[pairs], return_inverse=True)
            if not candidates.size:
                break
            taken = pairs[place == np.argmax(np.bincount(place))]
            served[query_of_pair[taken]] = True
            pairs = pairs[~served[query_of_pair[pairs]]]
    return float(served.mean())
