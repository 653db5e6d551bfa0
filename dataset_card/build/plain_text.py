"""Any value → one line of plain text, an id, or ids: without markup, control characters and words for nothing."""

from __future__ import annotations

import ast
import json
import math
import re
from decimal import Decimal
from html import unescape
from html.parser import HTMLParser
from typing import Any

MAX_ID = 200  # characters

NOTHING_WORDS = {"nan", "none", "null", "<na>", "n/a", "nil", "undefined", "#n/a", "nat"}
_MARKUP = re.compile(r"<(?:/?[a-zA-Z]|!--)")
_TAG = re.compile(r"<[^<>]*>")
_ENTITY = re.compile(r"&(?:#\d{1,8}|#[xX][0-9a-fA-F]{1,8}|[a-zA-Z]\w{1,31});")
# Halves of surrogate pairs, zero-width space, byte order mark, marks that turn the direction, non-characters.
_DELETED = re.compile("[\ud800-\udfff\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u180e\u2028\u2029]+")


def clean_text(value: Any, limit: int) -> tuple[str, bool]:
    """A value as one line of plain text.

    HTML becomes its text, entities their characters; control characters become spaces, halves of surrogate pairs and
    invisible marks go, white space collapses. Words for nothing ("nan", "null", "None") are "".

    Args:
        value: anything; a list of texts is joined.
        limit: characters; what is longer is cut.

    Returns:
        (text, True), or (cut text, False), or ("", False) where the value is something other than text.
    """
    text = value if type(value) is str else _as_text(value)
    if text is None:
        return "", False
    window = min(16 * limit, 65_536)  # markup may take most of a text; what is beyond is not even looked at
    whole = len(text) <= window
    if not whole:
        text = text[:window]
    if "<" in text or "&" in text:
        text = html_to_text(text, whole)
    if not text.isprintable():
        text = _DELETED.sub("", _CONTROL.sub(" ", text))
    text = " ".join(text.split())
    if len(text) <= 9 and text.casefold() in NOTHING_WORDS:
        return "", True
    if len(text) > limit:
        return text[:limit].rstrip(), False
    return text, whole


def clean_id(value: Any) -> str:
    """An id as text, the same for 12, 12.0, "12.0" and " 12 "; "" for what can be none.

    Tables that once had gaps in an id column write whole numbers as 12.0, so that the catalogue and the log would not
    meet; therefore a trailing ".0" of a number goes.
    """
    if isinstance(value, str):
        if len(value) > 16 * MAX_ID:
            return ""
        text = " ".join(_DELETED.sub("", _CONTROL.sub(" ", value)).split())
        if text.casefold() in NOTHING_WORDS:
            return ""
        if text.endswith(".0") and text[:-2].isdecimal():
            text = text[:-2]
    elif isinstance(value, bool | list | dict | tuple) or is_nothing(value):
        return ""
    else:
        text = _as_text(value) or ""
        text = text if text.isprintable() else clean_text(text, MAX_ID + 1)[0]
    return text if len(text) <= MAX_ID else ""


def clean_ids(value: Any) -> list[str]:
    """Ids in a cell that lists several: a list, a JSON list, or a text joined by one of | ; , or white space."""
    if isinstance(value, str):
        parsed = parsed_text(value)
        value = parsed if isinstance(parsed, list) else re.split(r"[|;,\s]+", value.strip()[: 1 << 20])
    elif not isinstance(value, list | tuple):
        value = [value]
    return list(dict.fromkeys(found for part in value if (found := clean_id(part))))


def html_to_text(text: str, whole: bool = True) -> str:
    """The text of HTML; a text without markup only has its entities replaced.

    Args:
        text: HTML, plain text, or HTML that was escaped once more.
        whole: False for one that was cut: an unfinished tag at its end goes.
    """
    for _ in range(2):  # shops export escaped HTML too
        if _MARKUP.search(text):
            parser = _TextOf()
            try:
                parser.feed(text)
            except (AssertionError, ValueError):  # the parser's own, on declarations it does not know
                text = _TAG.sub(" ", text)
                continue
            # close() would try every "<" of an unfinished rest anew, each up to the end of the text.
            rest = parser.rawdata if whole and parser.cdata_elem is None else ""
            text = "".join(parser.parts) + unescape(_TAG.sub(" ", rest).removeprefix("<!--"))
        elif _ENTITY.search(text):
            text = _ENTITY.sub(lambda match: unescape(match[0]), text)  # "R&D" and "A&notes" stay
        else:
            break
    return text


class _TextOf(HTMLParser):
    """Collects the text between tags; blocks are set apart by a space, scripts and styles left out."""

    INLINE = {"a", "abbr", "b", "em", "font", "i", "mark", "s", "small", "span", "strong", "sub", "sup", "u"}

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.hidden = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden = tag in ("script", "style")
        if tag not in self.INLINE:
            self.parts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        self.hidden = False
        if tag not in self.INLINE:
            self.parts.append(" ")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data)


def is_nothing(value: Any) -> bool:
    if value is None:
        return True
    if isinstance(value, str):
        return not value or (len(value) < 40 and value.strip().casefold() in NOTHING_WORDS | {""})
    return isinstance(value, float) and not math.isfinite(value)


def kind_of(value: Any) -> str:
    return f"{len(value):,} characters" if isinstance(value, str) else f"a {type(value).__name__}"


def _as_text(value: Any) -> str | None:
    """Text of a value that is not a string yet; None for what is no text."""
    if value is None:
        return ""
    if isinstance(value, bool | dict):
        return None
    if isinstance(value, float):
        if not math.isfinite(value):
            return ""
        return str(int(value)) if value.is_integer() and abs(value) < 1e18 else str(value)
    if isinstance(value, int):
        return str(value) if value.bit_length() < 2_000 else None
    if isinstance(value, Decimal):
        return format(value, "f") if value.is_finite() and abs(value.adjusted()) < 100 else ""
    if isinstance(value, bytes | bytearray):
        return bytes(value[:1_000_000]).decode("utf-8", "replace")
    if isinstance(value, list | tuple):
        parts = [part for part in value[:100] if isinstance(part, str)]
        return " ".join(parts) if parts or not value else None
    try:
        return str(value)
    except Exception:  # a stranger's __str__
        return None


def parsed_text(text: str) -> Any:
    """A list or object written as text, by JSON or by Python; None for any other text."""
    start = text.lstrip()[:1]
    if start not in ("[", "{") or len(text) > 200_000:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
