"""Parquet files that are there whole or not at all, and counts that say what became of every row."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .disk_errors import naming

EXAMPLES = 3  # kept of every reason
GROUP_ROWS, GROUP_BYTES = 1000, 32 << 20
_NOTES = "moon2_build"


class Tally:
    """How many rows there were for every reason, with the first few of them.

    Attributes:
        counts: reason -> rows.
        examples: reason -> texts that name a row.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, reason: str, example: str = "", rows: int = 1) -> None:
        self.counts[reason] += rows
        shown = self.examples.setdefault(reason, [])
        if example and len(shown) < EXAMPLES:
            shown.append(example)

    def merge(self, other: Mapping[str, Mapping[str, Any]]) -> None:
        """Add what `as_json` gave for later rows."""
        for reason, found in other.items():
            self.add(reason, rows=found["rows"])
            self.examples[reason] = (self.examples[reason] + found["examples"])[:EXAMPLES]

    def total(self) -> int:
        return self.counts.total()

    def as_json(self) -> dict[str, dict[str, Any]]:
        """{reason: {"rows", "examples"}}, the commonest first."""
        ranked = sorted(self.counts.items(), key=lambda entry: (-entry[1], entry[0]))
        return {reason: {"rows": rows, "examples": self.examples[reason]} for reason, rows in ranked if rows}


class ShardWriter:
    """Write one Parquet file; until `close` it has another name, so a file with its own name is whole.

    Its pages have checksums, which readers compare where they are asked to, as all of this package do.

    Args:
        path: of the file; one that is there is replaced.
        schema: of the rows.
        options: for `ParquetWriter`, such as use_dictionary.
    """

    def __init__(self, path: Path, schema: pa.Schema, **options: Any) -> None:
        self.path, self.schema = path, schema
        self.part = part_of(path)
        self.writer: pq.ParquetWriter | None = None
        with naming(path):
            self.writer = pq.ParquetWriter(self.part, schema, write_page_checksum=True, **options)
        self.row_groups = 0

    def write(self, table: pa.Table) -> None:
        """Write a table as one row group; one without rows leaves no trace."""
        if len(table):
            with naming(self.path):
                self.writer.write_table(table.cast(self.schema), row_group_size=len(table))
            self.row_groups += 1

    def close(self, notes: Mapping[str, Any] | None = None) -> None:
        """Finish the file, with `notes` in its footer for `read_notes`."""
        if notes is not None:
            self.writer.add_key_value_metadata({_NOTES: json.dumps(notes)})
        with naming(self.path):
            self.writer.close()
        put_in_place(self.part, self.path)

    def __del__(self) -> None:
        if self.writer is not None:  # left open it is not wanted; pyarrow would finish it, and tell of a full disk
            self.writer.is_open = False


class Shards:
    """Write rows into NAME-00000.parquet, NAME-00001.parquet …; rows that stand in finished files are passed over.

    The same rows in the same order give the same bytes, also where an earlier run was killed and this one goes on,
    as long as they come in the same tables.

    Args:
        folder, name: of the files.
        schema: of the rows.
        rows: of a file; the last one has what is left.
    """

    def __init__(self, folder: Path, name: str, schema: pa.Schema, rows: int) -> None:
        finished = written(folder, name)
        self.paths = islice(numbered(folder, name), len(finished), None)
        self.schema, self.rows = schema, rows
        self.done, self.seen = len(finished) * rows, 0
        self.file: ShardWriter | None = None
        self.pending: list[pa.Table] = []

    def has(self, rows: int) -> bool:
        """Whether the next rows stand in finished files."""
        return self.seen + rows <= self.done

    def pass_over(self, rows: int) -> None:
        """Go on behind rows that stand in finished files."""
        self.seen += rows

    def add(self, table: pa.Table) -> None:
        """Write the next rows."""
        there = max(0, min(len(table), self.done - self.seen))
        self.pass_over(there)
        table = table.slice(there)
        while len(table):
            if self.file is None:
                self.file = ShardWriter(next(self.paths), self.schema)
            part = table.slice(0, self.rows - self.seen % self.rows)
            table = table.slice(len(part))
            self.pending.append(part)
            self.seen += len(part)
            if self.seen % self.rows == 0:
                self.finish()
            elif is_row_group(sum(map(len, self.pending)), sum(held.nbytes for held in self.pending)):
                self._flush()

    def finish(self) -> None:
        """Finish the last file."""
        if self.file is not None:
            self._flush()
            self.file.close()
            self.file = None

    def _flush(self) -> None:
        if self.pending:
            self.file.write(pa.concat_tables(self.pending))
            self.pending = []


def is_row_group(rows: int, nbytes: int) -> bool:
    """Whether that is enough for a row group; readers hold a whole one in memory."""
    return rows >= GROUP_ROWS or nbytes >= GROUP_BYTES


def part_of(path: Path) -> Path:
    """The name that a file has while it is written."""
    return path.with_name(f".{path.name}.part")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with naming(path):
        part_of(path).write_bytes(content)
    put_in_place(part_of(path), path)


def put_in_place(part: Path, path: Path) -> None:
    """Give a finished file its name once its bytes are on the disk, so that it is whole after a loss of power too."""
    with naming(path):
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)


def read_notes(path: Path) -> dict[str, Any]:
    """What `ShardWriter.close` noted in a file."""
    return json.loads(pq.read_metadata(path).metadata[_NOTES.encode()])


def numbered(folder: Path, name: str) -> Iterator[Path]:
    """The paths NAME-00000.parquet, NAME-00001.parquet … without end."""
    number = 0
    while True:
        yield folder / f"{name}-{number:05d}.parquet"
        number += 1


def written(folder: Path, name: str) -> list[Path]:
    """Those of the numbered files that are there, up to the first that is not."""
    found = []
    for path in numbered(folder, name):
        if not path.exists():
            return found
        found.append(path)
    return found
