"""Vectors in Parquet files, found by a product's id and the digest of what was encoded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

KEY_COLUMNS = ["product_id", "digest"]
GROUPS_HELD = 2  # catalogues change little, so rows are asked for in nearly the order in which they stand


class StoredVectors:
    """Vectors that were made before; sixteen bytes a product are held, the vectors are read when asked for.

    Args:
        files: Parquet files with product_id, digest and the same vector columns; of a product that is in several
            with one digest, the first counts.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._groups: list[tuple[Path, int]] = []
        self._held: dict[int, pa.Table] = {}
        keys, rows = [], [0]
        for file in files:
            with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
                for group in range(parquet.num_row_groups):
                    table = parquet.read_row_group(group, columns=KEY_COLUMNS)
                    keys.append(_keys(table["product_id"].to_pylist(), table["digest"].to_pylist()))
                    self._groups.append((file, group))
                    rows.append(len(table))
        self._starts = np.cumsum(rows)  # (groups + 1,)
        keys = np.concatenate(keys) if keys else np.empty(0, dtype=np.uint64)
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, ids: Sequence[str], digests: Sequence[str]) -> np.ndarray:
        """(N,) int64: where the vectors of products stand, -1 of those that are not there with this digest."""
        if not len(self._keys):
            return np.full(len(ids), -1, dtype=np.int64)
        wanted = _keys(ids, digests)
        place = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        return np.where(self._keys[place] == wanted, self._order[place], -1)

    def take(self, places: np.ndarray) -> pa.Table:
        """All columns of the rows (N,) that `find` gave, in their order; at least one."""
        groups = np.searchsorted(self._starts, places, side="right") - 1
        by_group = np.argsort(groups, kind="stable")
        tables = []
        for group in np.unique(groups).tolist():
            of_group = by_group[groups[by_group] == group]
            tables.append(self._group(group).take(places[of_group] - self._starts[group]))
        return pa.concat_tables(tables).take(np.argsort(by_group, kind="stable"))

    def _group(self, number: int) -> pa.Table:
        if number not in self._held:
            while len(self._held) >= GROUPS_HELD:
                del self._held[next(iter(self._held))]
            file, group = self._groups[number]
            with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
                self._held[number] = parquet.read_row_group(group)
        return self._held[number]


def _keys(ids: Iterable[str], digests: Iterable[str]) -> np.ndarray:
    """(N,) uint64 of each id with its digest: among ten million, two agree by chance once in 370,000 times."""
    found = [
        hashlib.blake2b(f"{digest} {product_id}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for product_id, digest in zip(ids, digests, strict=True)
    ]
    return np.frombuffer(b"".join(found), dtype=np.uint64)
