"""Reads of a LanceDB table through its asynchronous client, which does half the work of the other around a query."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import lancedb
import pyarrow as pa
from lancedb.background_loop import LOOP
from lancedb.query import AsyncQueryBase
from lancedb.table import AsyncTable


class TableReader:
    """A table that answers from any thread, with all that was written before the question.

    Args:
        folder: of the database.
        name: of the table.
        session: with the caches, shared with whoever writes.

    Example:
        >>> reader = TableReader(folder, "products", lancedb.Session())
        >>> reader.read(lambda table: table.query().select(["product_id"])).num_rows
        600
    """

    def __init__(self, folder: Path, name: str, session: lancedb.Session) -> None:
        async def opened() -> AsyncTable:
            database = await lancedb.connect_async(folder, session=session, read_consistency_interval=timedelta(0))
            return await database.open_table(name)

        self._table = LOOP.run(opened())

    def read(self, query: Callable[[AsyncTable], AsyncQueryBase]) -> pa.Table:
        """Rows as a query, made of the table, finds them."""
        return LOOP.run(query(self._table).to_arrow())

    def batches(self, query: Callable[[AsyncTable], AsyncQueryBase]) -> Iterator[pa.RecordBatch]:
        """The same rows a part at a time, for who does not need all at once in memory."""
        batches = LOOP.run(query(self._table).to_batches())

        async def following() -> pa.RecordBatch | None:
            return await anext(batches, None)

        while (batch := LOOP.run(following())) is not None:
            yield batch
