"""What the first rows hold in a column, and which column has a known name and values that fit it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from .column_names import FIELD_WORDS, name_words, plain_name

Column = str | tuple[str, str]  # a pair: the column that names an attribute, and the column that holds its value

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
IMAGE_KEYS = ("src", "url", "hi_res", "large", "file_name", "image", "thumb")  # of one picture, as shops nest them


class ColumnSample:
    """What the first rows hold in one column.

    Args:
        filled: share of rows with a value.
        distinct: share of different values among the filled.
        length: mean number of characters.
        words: share of values with a space inside, or in a script that is written without.
        images: share of values that look like images.
        paths: share of values that are lists of names or have a separator of category levels.
    """

    def __init__(self, column: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self.column, self.rows = column, len(rows)
        values = [value for row in rows if (value := row.get(column)) not in (None, "", [], {}) and value == value]
        self.count = len(values)
        self.filled = len(values) / max(1, len(rows))
        briefs = [_brief(value) for value in values]
        self.distinct = len(set(briefs)) / max(1, len(briefs))
        self.length = sum(map(len, briefs)) / max(1, len(briefs))
        self.values = values

    def share(self, test: Callable[[Any], bool]) -> float:
        return sum(test(value) for value in self.values) / max(1, self.count)

    @property
    def images(self) -> float:
        return self.share(looks_like_image)

    @property
    def paths(self) -> float:
        return self.share(_is_path)

    @property
    def plain(self) -> bool:
        """Text or numbers, no lists or bytes."""
        return self.share(lambda value: isinstance(value, str | int | float) and not isinstance(value, bool)) > 0.9

    def facts(self) -> str:
        return f"{self.distinct:.0%} of {self.count} values differ" if self.count else "no values in the sample"


class Found(NamedTuple):
    """The columns that were found for a field, and why."""

    field: str
    columns: tuple[Column, ...]
    reason: str


def looks_like_image(value: Any) -> bool:
    """Whether a value may stand for pictures: bytes, {bytes, path}, a URL, or a path with the suffix of an image."""
    if isinstance(value, bytes):
        return len(value) > 0
    if isinstance(value, dict):
        return any(key in value for key in ("bytes", "path", *IMAGE_KEYS))
    if isinstance(value, list | tuple):
        return bool(value) and looks_like_image(value[0])
    if not isinstance(value, str):
        return False
    text = value[:2000].strip(" []\"'").casefold()
    start = re.split(r"[?#,;|\s]", text, maxsplit=1)[0]
    return start.endswith(IMAGE_SUFFIXES) or text.endswith(IMAGE_SUFFIXES) or text.startswith("data:image/")


def is_number(value: Any) -> bool:
    """Whether a value is a number or the text of one."""
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def find_by_name(
    field: str, names: Mapping[str, int], free: Mapping[str, ColumnSample], test: Callable[[ColumnSample], bool]
) -> tuple[list[str], str] | None:
    """The best named column whose values pass the test; columns without any value come last."""
    ranked = [(s.count == 0, names[plain_name(column)], column) for column, s in free.items()
              if plain_name(column) in names and (not s.count or test(s))]  # fmt: skip
    if ranked:
        column = min(ranked)[2]
        return [column], f"its name; {free[column].facts()}"
    wanted, unwanted = FIELD_WORDS.get(field, (set(), set()))
    for column, s in free.items():
        words = set(name_words(column))
        if words & wanted and not words & unwanted and s.count and test(s):
            return [column], f"a word of its name; {s.facts()}"
    return None


def _brief(value: Any) -> str | bytes:
    """What tells a value from others; never the representation of an image."""
    if isinstance(value, str | bytes):
        return value
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return value["bytes"]
    if isinstance(value, list | tuple):
        return repr([_brief(part) if not isinstance(part, bytes) else part[:64] for part in value[:9]])[:500]
    if isinstance(value, int) and value.bit_length() > 1_000:
        return hex(value)
    return str(value)[:200]


def _is_path(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and isinstance(value[0], str | list)
    return isinstance(value, str) and bool(re.search(r"\w\s*(?:>|»|›|\||/)\s*\w", value)) and "://" not in value[:10]
