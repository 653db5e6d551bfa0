"""The vectors of a small catalogue held in memory: comparing with all of them is faster than reading them anew."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from .product_table import ProductTable

HELD_BYTES = 128 << 20  # of each view: 131,072 products of 256 dimensions
ALL_ANEW = 1 / 8  # share of rows that are new or gone, above which all are read again


class _Held(NamedTuple):
    """The vectors of a view.

    Args:
        version: of the table.
        read: (M,) addresses of its rows, also of those that lack the view.
        rows: (N,) addresses of the vectors.
        ids: of their products.
        is_there: (N,) which of them still are in the table.
        blocks: (n, D) vectors each, N together.
    """

    version: int
    read: np.ndarray
    rows: np.ndarray
    ids: list[str]
    is_there: np.ndarray
    blocks: Sequence[np.ndarray]


class VectorsInMemory:
    """The vectors of a table; when that has changed, what is new in it is read. Safe to use from several threads.

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
        of_all = np.concatenate([vectors @ block.T for block in held.blocks], axis=1)  # (Q, N)
        of_all[:, ~held.is_there] = -np.inf
        k = min(k, np.count_nonzero(held.is_there))
        found = []
        for similarities in of_all:  # (N,)
            best = np.argpartition(-similarities, k)[:k] if k < len(similarities) else np.arange(len(similarities))
            best = best[np.argsort(-similarities[best], kind="stable")]
            ids = [held.ids[row] for row in best]
            found.append(list(zip(ids, similarities[best].tolist(), strict=True)))
        return found

    def _read(self, view: str) -> _Held:
        with self._reading:
            version = self._table.version  # before the rows: newer ones are read again, older ones are never kept
            held = self._held.get(view)
            if held is None:
                held = self._held[view] = self._all(version, view)
            elif held.version != version:
                held = self._held[view] = self._renewed(held, version, view)
            return held

    def _all(self, version: int, view: str) -> _Held:
        read, rows, ids, vectors = self._table.row_vectors(view)
        return _Held(version, read, rows, ids, np.ones(len(rows), dtype=bool), [vectors])

    def _renewed(self, held: _Held, version: int, view: str) -> _Held:
        """The vectors of a changed table: those held, without what is gone, and what is new."""
        rows, ids = self._table.rows()
        is_new = np.isin(rows, held.read, assume_unique=True, invert=True)
        is_there = np.isin(held.rows, rows, assume_unique=True)
        behind_first = len(held.rows) - len(held.blocks[0])
        if behind_first + np.count_nonzero(is_new) + np.count_nonzero(~is_there) > ALL_ANEW * len(rows):
            return self._all(version, view)
        held = held._replace(version=version, read=rows[~is_new], is_there=is_there)
        if not is_new.any():
            return held
        new = self._table.row_vectors(view, ids.filter(pa.array(is_new)).to_pylist())
        return _Held(
            version,
            np.concatenate([held.read, new.read]),
            np.concatenate([held.rows, new.rows]),
            held.ids + new.ids,
            np.concatenate([is_there, np.ones(len(new.rows), dtype=bool)]),
            [*held.blocks, new.vectors],
        )
