"""The vectors of a small catalogue held in memory: comparing with all of them is faster than reading them anew."""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np

from .product_table import ProductTable

HELD_BYTES = 128 << 20  # of each view: 131,072 products of 256 dimensions


class _Held(NamedTuple):
    version: int
    ids: list[str]
    vectors: np.ndarray  # (N, D)


class VectorsInMemory:
    """The vectors of a table, read again when it has changed. Safe to use from several threads.

    Args:
        table: of products.
    """

    def __init__(self, table: ProductTable) -> None:
        self._table = table
        self._held: dict[str, _Held] = {}
        self._reading = threading.Lock()

    def fit(self) -> bool:
        """Whether the vectors of a view are few enough."""
        return len(self._table) * self._table.manifest["dimension"] * 4 <= HELD_BYTES

    def nearest(self, vectors: np.ndarray, k: int, view: str) -> list[list[tuple[str, float]]]:
        """The products nearest to vectors, of all.

        Args:
            vectors: (Q, D) float32, of any length.
            k: products of each.
            view: of the products.

        Returns:
            For every vector, (product_id, cosine similarity) of each product, nearest first.

        Raises:
            ValueError: no such view.
        """
        held = self._read(view)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.maximum(norms, np.finfo(np.float32).tiny)
        found = []
        for similarities in vectors @ held.vectors.T:  # (N,)
            best = np.argpartition(-similarities, k)[:k] if k < len(similarities) else np.arange(len(similarities))
            best = best[np.argsort(-similarities[best], kind="stable")]
            ids = [held.ids[row] for row in best]
            found.append(list(zip(ids, similarities[best].tolist(), strict=True)))
        return found

    def _read(self, view: str) -> _Held:
        with self._reading:
            version = self._table.version  # before the rows: newer ones are read again, older ones are never kept
            held = self._held.get(view)
            if held is None or held.version != version:
                held = self._held[view] = _Held(version, *self._table.vectors(view))
            return held
