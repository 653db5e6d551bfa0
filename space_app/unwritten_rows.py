"""Rows of an index on their way to its table: written many at a time, for every version names all files before it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import lancedb

from .indexed_rows import rows_table

# Not so many or so late that a crash costs much.
WRITE_PRODUCTS, WRITE_BYTES, WRITE_SECONDS = 2048, 64 << 20, 10.0


class UnwrittenRows:
    """Rows that wait until they are many, or large, or have waited long.

    Args:
        table: that they are written to.
    """

    def __init__(self, table: lancedb.table.Table) -> None:
        self._table = table
        self._rows: dict[str, dict[str, Any]] = {}
        self._replace, self._bytes, self._since = False, 0, 0.0

    def holds(self, product_ids: Iterable[str]) -> bool:
        """Whether one of some products is among them."""
        return not self._rows.keys().isdisjoint(product_ids)

    def add(self, rows: Sequence[dict[str, Any]], replace: bool) -> None:
        """Take rows of further products, and write all if there are enough.

        Args:
            rows: as `rows_table` takes them.
            replace: whether one of them may be in the table.
        """
        if not self._rows:
            self._since = time.monotonic()
        self._rows |= {row["product_id"]: row for row in rows}
        self._replace |= replace
        self._bytes += sum(len(image["bytes"]) for row in rows for image in row["images"])
        waited = time.monotonic() - self._since
        if len(self._rows) >= WRITE_PRODUCTS or self._bytes >= WRITE_BYTES or waited >= WRITE_SECONDS:
            self.write()

    def write(self) -> None:
        """Write them, all or none."""
        rows, replace = list(self._rows.values()), self._replace
        self._rows, self._replace, self._bytes = {}, False, 0
        if not rows:
            return
        data = rows_table(rows, self._table.schema)
        if replace:
            merge = self._table.merge_insert("product_id").when_matched_update_all().when_not_matched_insert_all()
            merge.execute(data, on_bad_vectors="null")  # it calls so the null of a view that a product lacks
        else:
            self._table.add(data, on_bad_vectors="null")
