"""CSV, TSV and JSON Lines files, read line by line: encoding and dialect found out, broken lines told and passed."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from .column_names import MAX_COLUMN_NAME
from .raw_rows import RawRow

SAMPLE_BYTES = 1 << 20
MAX_COLUMNS = 2_000
MAX_LINE = 16 << 20  # characters; a longer line is one error, and is never held in memory
MAX_FIELD = 16 << 20  # characters; a quote that is never closed stops here
DELIMITERS = (",", ";", "\t", "|")
MAX_RECORD = 2_000  # lines; a quote that is not closed by then is taken to be torn
REREAD, REREAD_A_LINE = 200_000, 4  # lines that torn records may cost: at first, and more for every line that is read
BROKEN_STREAM = (OSError, EOFError, zlib.error)


def _as_cp1252(error: UnicodeError) -> tuple[str, int]:
    """Codec error handler: bytes that are no UTF-8 are read as Windows-1252."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("cp1252", "ignore"), error.end


codecs.register_error("moon2.cp1252", _as_cp1252)


class Delimited:
    """A CSV or TSV file: delimiter, escapes and encoding are found out from its first megabyte.

    Args:
        file: may be gzipped.
        name: what messages call it.
        encoding: of the file; None finds out: UTF-8, UTF-16, and Windows-1252 where a line is no UTF-8.

    Raises:
        ValueError: for a file without a header line, or an encoding Python does not know.
    """

    num_rows = None  # only known at the end

    def __init__(self, file: Path, name: str, encoding: str | None = None) -> None:
        self.file, self.name, self.folder = file, name, file.parent
        self.counts: Counter[str] = Counter()
        self.lines = _Lines(file, name, encoding, self.counts)
        csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD))  # the module's own is 128 thousand
        sample = list(self.lines.sample())
        first = sample[0].strip() if sample else ""
        declared = re.fullmatch(r'"?sep=(.)"?', first)  # Excel's way to name the delimiter
        self.skipped = 1 if declared else 0
        sample = sample[self.skipped :]
        if not any(line.strip() for line in sample):
            raise ValueError(f"{name}: no header line; the first line must name the columns")
        delimiters = (declared[1],) if declared else DELIMITERS
        escapes = (None, "\\") if any('\\"' in line for line in sample) else (None,)
        choices = [{"delimiter": mark, "escapechar": escape} for mark in delimiters for escape in escapes]
        self.dialect = max(choices, key=lambda choice: _fit(sample, choice))
        header = next(record for record in csv.reader(sample, **self.dialect) if record)
        self.columns = _unique_names(header)
        mark = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "bar"}.get(self.dialect["delimiter"])
        self.description = f"separated by {mark or self.dialect['delimiter']}, {self.lines.label}"

    def rows(self, start: int, columns: Sequence[str]) -> Generator[RawRow, None, int]:
        """Rows from `start` on with these columns; those before are parsed, not kept. Returns how many there are."""
        self.counts.clear()
        places = {column: at for at, column in enumerate(self.columns)}
        wanted = [(places[column], column) for column in columns if column in places]
        width, number = len(self.columns), 0
        records = self._records()
        for _, record, _ in records:
            if record:
                break  # the header
        for line, record, error in records:
            if not record and error is None:
                continue  # an empty line
            if number >= start:
                place = f"{self.name} line {line}"
                if error is None and len(record) > width and any(cell.strip() for cell in record[width:]):
                    error = f"{len(record)} cells where the header has {width}"
                if error is None:
                    short = len(record)
                    values = {column: record[at] if at < short else None for at, column in wanted}
                    yield RawRow(number, place, values, folder=self.folder)
                else:
                    yield RawRow(number, place, {}, error)
            number += 1
        return number

    def _records(self) -> Iterator[tuple[int, list[str], str | None]]:
        """(line number from 1, cells, error) of every record.

        A quote that is never closed swallows the lines after it. Of such a record only the first line is given up,
        the others are read again, as long as not nearly all of a file is made of such lines.
        """
        feed = _Feed(iter(self.lines), self.skipped)
        reader = csv.reader(feed, **self.dialect)
        while True:
            feed.taken.clear()
            line, error = feed.line + 1, None
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as problem:
                record, error = [], str(problem)
            except BROKEN_STREAM as problem:
                yield line, [], f"the file cannot be read further ({problem})"
                return
            if len(feed.taken) > 1 and (error or self._is_torn(record, feed.taken)):
                error = f"a quote that is not closed: it would run over {len(feed.taken)} lines"
                record = []
                feed.give_back()
            elif feed.taken and feed.taken[0] is _TOO_LONG:
                record, error = [], f"a line of more than {MAX_LINE >> 20} million characters"
            feed.again_left += REREAD_A_LINE
            yield line, record, error

    def _is_torn(self, record: Sequence[str], lines: Sequence[str]) -> bool:
        """Whether a record of several lines is what an unclosed quote swallowed.

        Then it has the wrong number of cells, or text right behind the quote that ends a cell, or no such quote.
        """
        width = len(self.columns)
        if len(record) > width or (len(record) < width and "\n" in record[-1].rstrip("\r\n")):
            return True
        try:
            return len(list(csv.reader(lines, strict=True, **self.dialect))) != 1
        except csv.Error:
            return True


class JsonLines:
    """A file with one JSON object a line; its columns are the keys of all of them, so it is read once to the end.

    Args:
        file: may be gzipped.
        name: what messages call it.
        encoding: as in `Delimited`.

    Raises:
        ValueError: if the file holds one JSON list, or no object in its first megabyte; for too many or too long keys.
    """

    num_rows = None

    def __init__(self, file: Path, name: str, encoding: str | None = None) -> None:
        self.file, self.name, self.folder = file, name, file.parent
        self.counts: Counter[str] = Counter()
        self.lines = _Lines(file, name, encoding, self.counts)
        if not any(_json_object(line)[0] for line in self.lines.sample()):
            raise ValueError(f"{name}: no JSON object on a line of its own; write one object a line, not one list")
        self.columns = self._keys()
        self.description = f"one JSON object a line, {self.lines.label}"

    def _keys(self) -> list[str]:
        keys: dict[str, None] = {}
        try:
            for line, text in enumerate(self.lines, 1):
                found = _json_object(text)[0]
                if found.keys() <= keys.keys():
                    continue
                keys.update(dict.fromkeys(found))
                if len(keys) > MAX_COLUMNS or sum(map(len, keys)) > SAMPLE_BYTES:
                    raise ValueError(
                        f"{self.name} line {line}: {len(keys):,} columns; give a table of at most {MAX_COLUMNS:,}, "
                        f"with {SAMPLE_BYTES >> 20} million characters in their names"
                    )
        except BROKEN_STREAM:  # `rows` tells it
            pass
        return list(keys)

    def rows(self, start: int, columns: Sequence[str]) -> Generator[RawRow, None, int]:
        """Rows from `start` on with these columns; what is before is not parsed. Returns how many there are."""
        self.counts.clear()
        number = line = 0
        try:
            for line, text in enumerate(self.lines, 1):
                if text is not _TOO_LONG and (not text or text.isspace()):
                    continue
                if number >= start:
                    found, error = _json_object(text)
                    values = {column: found[column] for column in columns if column in found}
                    yield RawRow(number, f"{self.name} line {line}", values, error, folder=self.folder)
                number += 1
        except BROKEN_STREAM as problem:
            error = f"the file cannot be read further ({problem})"
            yield RawRow(number, f"{self.name} line {line + 1}", {}, error)
            number += 1
        return number


class _TooLong(str):
    """Stands for a line of more than `MAX_LINE` characters."""


_TOO_LONG = _TooLong("")


class _Lines:
    """The lines of a file as text, with their line ends."""

    def __init__(self, file: Path, name: str, encoding: str | None, counts: Counter[str]) -> None:
        self.file, self.counts = file, counts
        head = b""
        try:
            with self._open() as stream:
                while len(head) < SAMPLE_BYTES and (piece := stream.read(1 << 16)):
                    head += piece
        except BROKEN_STREAM as error:
            if not head:  # else the rows before the damage can be had
                raise ValueError(f"{name}: cannot be read ({error})") from error
        try:
            self.encoding = codecs.lookup(encoding).name if encoding else _encoding(head)
        except LookupError as error:
            raise ValueError(f"{name}: encoding {encoding!r} is not known; give one that Python knows") from error
        self.whole = len(head) < SAMPLE_BYTES
        self.only_carriage_returns = b"\r" in head and b"\n" not in head
        self.label = {"utf-8": "UTF-8", "utf-16": "UTF-16"}.get(self.encoding, self.encoding)

    def __iter__(self) -> Iterator[str]:
        with self._open() as stream:
            if self.encoding == "utf-8" and not self.only_carriage_returns:
                yield from self._utf8(stream)
            else:
                errors = "moon2.cp1252" if self.encoding == "utf-8" else "replace"
                text = io.TextIOWrapper(stream, self.encoding, errors, newline="")
                first = True
                for line in _limited(text.readline, "\r" if self.only_carriage_returns else "\n"):
                    yield line.removeprefix("\ufeff") if first and line is not _TOO_LONG else line
                    first = False

    def sample(self) -> Iterator[str]:
        """The lines of the first megabyte; one that is cut is left out, if it is not the first."""
        read = 0
        try:
            for line in self:
                read += len(line)
                if read > SAMPLE_BYTES and not self.whole:
                    if read == len(line):
                        yield line
                    return
                yield line
        except BROKEN_STREAM:
            return

    def _open(self) -> IO[bytes]:
        return gzip.open(self.file, "rb") if self.file.suffix == ".gz" else open(self.file, "rb")

    def _utf8(self, stream: IO[bytes]) -> Iterator[str]:
        first = True
        for raw in _limited(stream.readline, b"\n"):
            if raw is _TOO_LONG:
                yield raw
                continue
            if first:
                raw, first = raw.removeprefix(codecs.BOM_UTF8), False
            try:
                line = raw.decode()
            except UnicodeDecodeError:
                self.counts["read_as_cp1252"] += 1
                line = raw.decode("utf-8", "moon2.cp1252")
            # A lone carriage return inside a line would end the record for the csv module.
            yield line[:-2].replace("\r", " ") + line[-2:] if "\r" in line[:-2] else line


class _Feed:
    """Lines for the csv module that can be given back."""

    def __init__(self, lines: Iterator[str], skip: int) -> None:
        self.lines, self.line = lines, 0  # lines taken so far
        self.again: deque[str] = deque()
        self.taken: list[str] = []  # by the record that is being read
        self.again_left = REREAD
        for _ in range(skip):
            next(self)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if len(self.taken) > min(MAX_RECORD, self.again_left):
            raise StopIteration  # which ends the record, not the file
        line = self.again.popleft() if self.again else next(self.lines)
        self.line += 1
        self.taken.append(line)
        return line

    def give_back(self) -> None:
        """All lines of the record but its first."""
        self.again.extendleft(reversed(self.taken[1:]))
        self.line -= len(self.taken) - 1
        self.again_left -= len(self.taken) - 1


def _limited(readline: Callable[[int], Any], end: Any) -> Iterator[Any]:
    """Lines of a stream; one over the limit is passed in pieces and becomes `_TOO_LONG`."""
    while line := readline(MAX_LINE):
        if len(line) < MAX_LINE or line.endswith(end):
            yield line
            continue
        while (rest := readline(MAX_LINE)) and not rest.endswith(end):
            pass
        yield _TOO_LONG


def _encoding(head: bytes) -> str:
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    text = head[:4096]
    even, odd = text[::2].count(0), text[1::2].count(0)
    if max(even, odd) > len(text) // 8 and min(even, odd) < max(even, odd) // 8:
        return "utf-16-le" if odd > even else "utf-16-be"
    return "utf-8"


def _fit(sample: Sequence[str], dialect: dict[str, str | None]) -> tuple[bool, float, int]:
    """How well a dialect reads the sample: several columns, records as long as the header, many columns."""
    try:
        records = [record for record in csv.reader(sample, **dialect) if record]
    except csv.Error:
        return False, 0.0, 0
    width, body = len(records[0]), records[1:-1] or records[1:]
    agree = sum(len(record) == width for record in body) / len(body) if body else 1.0
    return width > 1, agree, width


def _unique_names(header: Sequence[str]) -> list[str]:
    copies: dict[str, int] = {}  # name -> number of the last copy
    for position, cell in enumerate(header, 1):
        name = base = cell.strip()[:MAX_COLUMN_NAME] or f"column {position}"
        while name in copies:
            copies[base] += 1
            name = f"{base} ({copies[base]})"
        copies[name] = 1
    return list(copies)


def _json_object(line: str) -> tuple[dict[str, Any], str | None]:
    if line is _TOO_LONG:
        return {}, f"a line of more than {MAX_LINE >> 20} million characters"
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        return {}, f"no JSON: {error}"
    return (found, None) if isinstance(found, dict) else ({}, f"a JSON {type(found).__name__} where an object belongs")
