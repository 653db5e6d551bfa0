"""Catalogue and log files → batches of raw rows: CSV, TSV, JSON Lines, Parquet, image folders, saved and Hub data."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from glob import glob, has_magic
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from .column_sample import Column
from .log_columns import LOG_FIELDS
from .mapping import PRODUCT_FIELDS, FieldMapping, columns_of, resolve
from .raw_rows import RawRow, merge_lines, size_of
from .shops import Shop, recognise, tidy_woocommerce
from .tables import HubRows, ImageFolder, ParquetTable, SavedRows
from .text_files import MAX_COLUMNS, Delimited, JsonLines

__all__ = ["RawRow", "Source", "open_log", "open_source"]

Paths = str | os.PathLike | Sequence[str | os.PathLike]

SAMPLE_ROWS = 200
BATCH_BYTES = 64 << 20  # a batch ends early when its texts and images reach this
FORMATS = {".csv": Delimited, ".tsv": Delimited, ".txt": Delimited, ".jsonl": JsonLines, ".ndjson": JsonLines,
           ".json": JsonLines, ".parquet": ParquetTable, ".pq": ParquetTable}  # fmt: skip


class Part(Protocol):
    """One file of a source, or all of it."""

    name: str
    description: str
    columns: list[str]
    num_rows: int | None
    counts: Counter[str]

    def rows(self, start: int, columns: Sequence[str]) -> Generator[RawRow, None, int]:
        """Rows from `start` on, numbered within the part; returns how many the part has."""
        ...


class Source:
    """A catalogue or a log that is read in batches of raw rows, each with its place.

    Args:
        parts: the files, in order, with the same columns.
        fields: `PRODUCT_FIELDS` or `LOG_FIELDS`.
        given: field → column, which no guess overrides; see `mapping.resolve`.
        fingerprint: changes when a file does.
        notes: lines about how the source was found.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        fields: Sequence[str],
        given: Mapping[str, str | Sequence[Column]] | None,
        fingerprint: str,
        notes: Sequence[str] = (),
    ) -> None:
        self.parts = parts
        self.fingerprint = fingerprint
        self.counts: Counter[str] = Counter()
        first = parts[0]
        columns = list(dict.fromkeys(column for part in parts for column in part.columns))
        if len(columns) > MAX_COLUMNS:
            raise ValueError(f"{first.name}: {len(columns):,} columns; give a table of at most {MAX_COLUMNS:,}")
        sample = _sample(first.rows(0, columns))
        self.shop: Shop | None = None
        if fields is PRODUCT_FIELDS and isinstance(first, Delimited):
            self.shop = recognise(first.columns)
        known = self.shop and self.shop.mapping
        self.mapping, lines = resolve(columns, sample, fields, given, known, first.name)
        _refuse_other_columns(parts, self.mapping)
        self.merge_on = self.shop and self.shop.merge_on
        if self.merge_on and self.mapping.get("product_id") != (self.merge_on,):
            raise ValueError(
                f"{first.name}: an export of {self.shop.name} tells what a product is on its first line alone, so "
                f"product_id={', '.join(self.mapping.get('product_id', ()))} leaves the other lines without; leave "
                f"product_id out, which is {self.merge_on}: a log finds products by their aliases, the variants, too"
            )
        extra = {"Type", "Parent"} if self.shop and self.shop.name == "WooCommerce" else set()
        used = columns_of(self.mapping) | extra
        self.columns = [column for column in columns if column in used]
        self.num_rows = None if any(part.num_rows is None for part in parts) else sum(part.num_rows for part in parts)
        format_name = f", a product export of {self.shop.name}" if self.shop else ""
        self._lines = [*notes, f"{first.name}: {first.description}, {len(columns)} columns{format_name}"]
        if len(parts) > 1:
            self._lines.append(f"and {len(parts) - 1} more of this kind, in order of their names")
        if self.merge_on:
            self._lines.append(f"neighbouring lines with one {self.merge_on} are one product")
        if fields is PRODUCT_FIELDS and "product_id" not in self.mapping:
            lines.append("products are numbered by their rows; a log cannot name them")
        self._lines += lines

    def explain(self) -> list[str]:
        """Lines that tell what the source is and which column was taken for what, and why."""
        return list(self._lines)

    def batches(self, start: int = 0, size: int = 1000) -> Iterator[list[RawRow]]:
        """Read rows in batches.

        Afterwards `counts` tells what concerns whole files, e.g. "read_as_cp1252": lines that were no UTF-8.

        Args:
            start: number of the first row wanted. Parquet and saved data skip what is before; text files are read
                but not kept, since only reading tells where their rows begin.
            size: rows of a batch; it ends earlier where rows are large.

        Returns:
            Batches of rows, in the order of the source.

        Raises:
            ValueError: for a negative start or a size under 1.
        """
        if start < 0 or size < 1:
            raise ValueError(f"batches: start {start}, size {size}; give start >= 0 and size >= 1")
        return self._batches(start, size)

    def _batches(self, start: int, size: int) -> Iterator[list[RawRow]]:
        batch: list[RawRow] = []
        held = 0
        for row in self._rows(start):
            batch.append(row)
            held += sum(map(size_of, row.values.values()))
            if len(batch) >= size or held >= BATCH_BYTES:
                yield batch
                batch, held = [], 0
        if batch:
            yield batch

    def _rows(self, start: int) -> Iterator[RawRow]:
        self.counts.clear()
        before = 0  # rows of the parts that are done
        for part in self.parts:
            if part.num_rows is not None and before + part.num_rows <= start:
                before += part.num_rows
                continue
            count = yield from self._numbered(part, before, start)
            self.counts.update(part.counts)
            before += count

    def _numbered(self, part: Part, before: int, start: int) -> Generator[RawRow, None, int]:
        skip = max(0, start - before)
        if self.merge_on:
            rows = merge_lines(part.rows(0, self.columns), self.merge_on, self.shop.collected)
        else:
            rows = part.rows(skip, self.columns)
        woocommerce = self.shop is not None and self.shop.name == "WooCommerce"
        while True:
            try:
                row = next(rows)
            except StopIteration as end:
                return end.value
            if row.number < skip:
                continue
            row = tidy_woocommerce(row) if woocommerce and row.error is None else row
            yield row._replace(number=before + row.number) if before else row


def _sample(rows: Iterator[RawRow]) -> list[dict[str, Any]]:
    """The values of the first rows, fewer where they are large."""
    sample: list[dict[str, Any]] = []
    held = 0
    for row in islice(rows, SAMPLE_ROWS):
        if row.error is None:
            sample.append(row.values)
            held += sum(map(size_of, row.values.values()))
        if held >= BATCH_BYTES:
            break
    return sample


def open_source(
    path: Paths,
    columns: Mapping[str, str | Sequence[Column]] | None = None,
    encoding: str | None = None,
) -> Source:
    """Open a catalogue.

    Args:
        path: a CSV, TSV, JSON Lines (each may be gzipped) or Parquet file, a glob or a list of files of one format, a
            folder with such files, a folder of images (sub-folders are the category path, file names the titles), a
            folder that `datasets` saved, or a Hub data set as "hf:OWNER/NAME[:CONFIG][:SPLIT]".
        columns: field → column, for what the guess gets wrong; see `mapping.resolve`.
        encoding: of text files; by default UTF-8 or UTF-16, and Windows-1252 for lines that are neither.

    Returns:
        The source; `explain()` says what was understood.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: naming file, column or argument and the way out.
    """
    return _open(path, PRODUCT_FIELDS, columns, encoding)


def open_log(
    path: Paths,
    columns: Mapping[str, str | Sequence[Column]] | None = None,
    encoding: str | None = None,
) -> Source:
    """Open a behaviour log: a row is a query with a product it led to; as `open_source`, with `LOG_FIELDS`."""
    return _open(path, LOG_FIELDS, columns, encoding)


def _open(
    path: Paths, fields: Sequence[str], columns: Mapping[str, str | Sequence[Column]] | None, encoding: str | None
) -> Source:
    parts, fingerprint, notes = find_parts(path, encoding)
    return Source(parts, fields, columns, fingerprint, notes)


def find_parts(path: Paths, encoding: str | None = None) -> tuple[list[Part], str, list[str]]:
    """The files that a path stands for, whatever is in their columns.

    Args:
        path: as in `open_source`.
        encoding: of text files.

    Returns:
        (the parts in order, a fingerprint of them, lines about the choice).

    Raises:
        FileNotFoundError, ValueError: as `open_source`.
    """
    if isinstance(path, str) and path.startswith("hf:"):
        hub = HubRows(path)
        return [hub], hub.fingerprint, []
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    if not paths:
        raise ValueError("no path given; give at least one")
    place = Path(paths[0])
    if len(paths) > 1 or not place.is_dir():
        files = [file for part in paths for file in _matching(part)]
        return _file_parts(files, encoding), _fingerprint(files), []
    if (place / "dataset_dict.json").exists() or (place / "state.json").exists():
        saved = SavedRows(place)
        return [saved], _fingerprint(saved.files), []
    if files := sorted(place.glob("products*.parquet")):  # a data set, with queries and reports beside them
        return _file_parts(files, encoding), _fingerprint(files), [f"{place}: read its products*.parquet alone"]
    if files := _tables_in(place):
        return _file_parts(files, encoding), _fingerprint(files), [f"{place}: read its tables, not its sub-folders"]
    folder = ImageFolder(place)
    if not folder.num_rows:
        raise ValueError(f"{place}: neither tables nor images in that folder; give a folder with some")
    return [folder], folder.fingerprint, []


def _matching(path: str | os.PathLike) -> list[Path]:
    place = Path(path)
    if place.is_file():
        return [place]
    found = sorted(Path(name) for name in glob(str(path), recursive=True)) if has_magic(str(path)) else []
    found = [file for file in found if file.is_file()]
    if not found:
        raise FileNotFoundError(
            f"{path}: no such file; give a file, a glob, a folder, or hf:OWNER/NAME for a data set on the Hub"
        )
    return found


def _tables_in(folder: Path) -> list[Path]:
    """Tables right in a folder; a metadata file, which lists the images beside it, goes before all others."""
    files = sorted(file for file in folder.iterdir() if _suffix(file) in FORMATS and not file.name.startswith("."))
    files = [file for file in files if file.is_file() and _suffix(file) != ".txt"]
    metadata = [file for file in files if re.match(r"metadata\.", file.name)]
    return metadata[:1] or files


def _suffix(file: Path) -> str:
    name = file.name[:-3] if file.name.casefold().endswith(".gz") else file.name
    return Path(name).suffix.casefold()


def _file_parts(files: Sequence[Path], encoding: str | None) -> list[Part]:
    for file in files:
        if _suffix(file) not in FORMATS:
            raise ValueError(f"{file}: not a known format; give {', '.join(FORMATS)} (text files may be .gz)")
        if FORMATS[_suffix(file)] is not FORMATS[_suffix(files[0])]:
            raise ValueError(f"{files[0]} and {file.name}: two formats; give files of one, or one file")
    same_name = len({file.name for file in files}) < len(files)
    parts = []
    for file in files:
        name, kind = str(file) if same_name else file.name, FORMATS[_suffix(file)]
        parts.append(ParquetTable(file, name) if kind is ParquetTable else kind(file, name, encoding))
    return parts


def _refuse_other_columns(parts: Sequence[Part], mapping: FieldMapping) -> None:
    """Every file must have the columns of the fields that make a row; JSON objects may leave out any."""
    first = parts[0]
    vital = {column for field in ("product_id", "title", "text") for column in mapping.get(field, ())[:1]}
    for part in parts[1:]:
        for column in sorted(vital & set(first.columns) - set(part.columns), key=str):
            if not isinstance(part, JsonLines):
                raise ValueError(f"{part.name} has no column {column!r}, which {first.name} has; read it on its own")


def _fingerprint(files: Sequence[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        state = file.stat()
        digest.update(f"{file.resolve()}\0{state.st_size}\0{state.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
