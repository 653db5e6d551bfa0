"""One row as a file gave it, where it stood there, and how lines that describe one product become one row."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

UNREADABLE_ROW = "unreadable_row"
MAX_COLLECTED = 2_048  # values kept of a column that lines of one product add to; Shopify has so many variants


class RawRow(NamedTuple):
    """A row before cleaning.

    Args:
        number: its place in the whole source, from 0.
        place: how messages name it, e.g. "shop.csv line 18".
        values: column → whatever stood there; {} for a row that could not be parsed.
        error: why it could not be parsed, or None.
        reason: code under which an `error` is counted.
        folder: where relative image paths start, or None.
        parent: id of the product that the row is a variation of, or "".
    """

    number: int
    place: str
    values: dict[str, Any]
    error: str | None = None
    reason: str = UNREADABLE_ROW
    folder: Path | None = None
    parent: str = ""


def merge_lines(rows: Iterator[RawRow], key: str, collected: Collection[str]) -> Generator[RawRow, None, int]:
    """Join neighbouring lines that share a key into one row.

    A column in `collected` becomes the list of its different values, in order; of any other the first value that is
    not blank stays. Lines without a key, and lines that could not be parsed, stay rows of their own.

    Args:
        rows: parsed lines.
        key: column that neighbouring lines of one product share.
        collected: columns of which every line may add a value.

    Returns:
        Merged rows, numbered anew from 0; the generator's return value is their count.
    """
    number, open_row = 0, None
    for row in rows:
        name = row.values.get(key)
        if open_row is not None and not row.error and name and name == open_row.values[key]:
            _add_line(open_row.values, row.values, collected)
            continue
        if open_row is not None:
            yield open_row
            number += 1
        row = row._replace(number=number)
        if row.error or not name:
            yield row
            number += 1
            open_row = None
        else:
            open_row = row._replace(values={})
            _add_line(open_row.values, row.values, collected)
    if open_row is not None:
        yield open_row
        number += 1
    return number


def _add_line(product: dict[str, Any], line: dict[str, Any], collected: Collection[str]) -> None:
    for column, value in line.items():
        if column in collected:
            values = product.setdefault(column, [])
            if value and value not in values and len(values) < MAX_COLLECTED:
                values.append(value)
        elif not product.get(column):
            product[column] = value


def size_of(value: Any) -> int:
    """Bytes that a value holds, roughly: texts and bytes, also inside lists and dicts, two levels deep.

    Of a list of over a thousand, the first thousand stand for the others.
    """
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(len(part) if isinstance(part, str | bytes) else 64 for part in value.values())
    if isinstance(value, list):
        some = value[:1_000]
        held = sum(size_of(part) if isinstance(part, str | bytes | dict) else 64 for part in some)
        return held * len(value) // max(1, len(some))
    return 64
