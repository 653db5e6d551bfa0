"""Vectors that are there already, in Parquet files or a Lance table, found by a product's id and the digest of what
was encoded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

KEY_COLUMNS = ["product_id", "digest"]
GROUPS_HELD = 2  # catalogues change little, so rows are asked for in nearly the order in which they stand
NOWHERE, IN_TABLE = -1, -2


class Places:
    """Where keys stand, of equal ones the first; sixteen bytes a key are held.

    Args:
        keys: (N,) uint64, as `keys_of` makes them.
    """

    def __init__(self, keys: np.ndarray) -> None:
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, wanted: np.ndarray) -> np.ndarray:
        """(M,) int64: where the keys (M,) stand, `NOWHERE` for those that are not there."""
        if not len(self):
            return np.full(len(wanted), NOWHERE, dtype=np.int64)
        place = np.minimum(np.searchsorted(self._keys, wanted), len(self) - 1)
        return np.where(self._keys[place] == wanted, self._order[place], NOWHERE)


class StoredVectors:
    """Vectors that were made before; sixteen bytes a product are held, the vectors are read when asked for.

    Args:
        files: Parquet files with product_id, digest and the same vector columns; of a product that is in several
            with one digest, the first counts.
        table: Lance table whose rows stay where they are; None if there is none.
    """

    def __init__(self, files: Sequence[Path], table: Path | None = None) -> None:
        self._groups: list[tuple[Path, int]] = []
        self._held: dict[int, pa.Table] = {}
        rows = [0]
        for file in files:
            metadata = pq.read_metadata(file)
            self._groups += [(file, group) for group in range(metadata.num_row_groups)]
            rows += [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts = np.cumsum(rows)  # (groups + 1,)
        self._table = table
        self._places, self._in_table = self._read_places(by_digest=True)

    def __len__(self) -> int:
        return len(self._places)

    def find(self, ids: Sequence[str], digests: Sequence[str]) -> np.ndarray:
        """(N,) int64: where the vectors of products stand, `IN_TABLE` of those whose row is in the table, `NOWHERE` of
        those that are not there with this digest."""
        wanted = keys_of(zip(ids, digests, strict=True))
        return np.where(self._in_table.find(wanted) >= 0, IN_TABLE, self._places.find(wanted))

    def find_ids(self, ids: Sequence[str]) -> np.ndarray:
        """As `find`, whatever the digest; the first call reads all ids and holds sixteen bytes more of each."""
        places, in_table = self._by_id
        wanted = keys_of((product_id, "") for product_id in ids)
        return np.where(in_table.find(wanted) >= 0, IN_TABLE, places.find(wanted))

    def take(self, places: np.ndarray) -> pa.Table:
        """All columns of the rows (N,) that `find` gave, in their order; at least one."""
        groups = np.searchsorted(self._starts, places, side="right") - 1
        by_group = np.argsort(groups, kind="stable")
        tables = []
        for group in np.unique(groups).tolist():
            of_group = by_group[groups[by_group] == group]
            tables.append(self._group(group).take(places[of_group] - self._starts[group]))
        return pa.concat_tables(tables).take(np.argsort(by_group, kind="stable"))

    @cached_property
    def _by_id(self) -> tuple[Places, Places]:
        return self._read_places(by_digest=False)

    def _read_places(self, by_digest: bool) -> tuple[Places, Places]:
        """Of the rows in files and of those in the table, by id and digest or by id alone."""

        def keys(products: Iterable[tuple[str, str]]) -> np.ndarray:
            return keys_of((product_id, digest if by_digest else "") for product_id, digest in products)

        in_files = [np.empty(0, dtype=np.uint64)]
        for file, group in self._groups:
            with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
                found = parquet.read_row_group(group, columns=KEY_COLUMNS)
            in_files.append(keys(zip(*(found[name].to_pylist() for name in KEY_COLUMNS), strict=True)))
        in_table = () if self._table is None else lance_keys(self._table)
        return Places(np.concatenate(in_files)), Places(keys(in_table))

    def _group(self, number: int) -> pa.Table:
        if number not in self._held:
            while len(self._held) >= GROUPS_HELD:
                del self._held[next(iter(self._held))]
            file, group = self._groups[number]
            with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
                self._held[number] = parquet.read_row_group(group)
        return self._held[number]


def lance_keys(path: Path) -> Iterator[tuple[str, str]]:
    """(product_id, digest) of every row of a Lance table of vectors."""
    import lancedb

    table = lancedb.connect(path.parent).open_table(path.stem)
    for batch in table.search().select(KEY_COLUMNS).limit(None).to_batches():
        yield from zip(batch["product_id"].to_pylist(), batch["digest"].to_pylist(), strict=True)


def keys_of(products: Iterable[tuple[str, str]]) -> np.ndarray:
    """(N,) uint64 of each id with its digest: among ten million, two agree by chance once in 370,000 times."""
    return np.fromiter((_key(*product) for product in products), dtype=np.uint64)


def _key(product_id: str, digest: str) -> int:
    told = f"{digest} {product_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "little")
