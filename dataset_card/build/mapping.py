"""Which column is what: guessed from names and from a sample of values, with the reason; or given."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from .column_names import (
    ATTRIBUTE_NAMES,
    CATEGORY_NAMES,
    FIELD_WORDS,
    MAX_COLUMN_NAME,
    PRODUCT_NAMES,
    name_words,
    plain_name,
)
from .column_sample import Column, ColumnSample, Found, find_by_name
from .log_columns import LOG_FIELDS, guess_log_columns, refuse_unclear_events

PRODUCT_FIELDS = ("product_id", "title", "description", "category_path", "attributes", "images", "aliases")
ONE_COLUMN = tuple(field for field in LOG_FIELDS if field != "product_id")
TEMPLATE = re.compile(r"\{([^{}]+)\}")  # images/{id}.jpg
_NUMBERED = re.compile(r"^(?:(?:product|item)?(?:category|categories|cat|cate|level|lvl)|l)(?:id|level|lvl|l)?(\d)"
                       r"(?:category|name|cat|level)?$")  # fmt: skip
_PAIR = re.compile(r"^(.*?)[\W_]*(names?|values?|value\(s\))$", re.IGNORECASE)

FieldMapping = dict[str, tuple[Column, ...]]


def resolve(
    columns: Sequence[str],
    sample: Sequence[Mapping[str, Any]],
    fields: Sequence[str],
    given: Mapping[str, str | Sequence[Column]] | None = None,
    known: FieldMapping | None = None,
    name: str = "the table",
) -> tuple[FieldMapping, list[str]]:
    """Find the source columns of every target field.

    Args:
        columns: all columns of the source.
        sample: its first rows.
        fields: `PRODUCT_FIELDS` or `LOG_FIELDS`.
        given: field → column, which no guess overrides. A list, or names joined by commas, gives several columns;
            "" leaves the field out; attributes may be "*" for every column not used otherwise; images may be a
            pattern of paths such as "images/{id}.jpg".
        known: the mapping of a recognised export format; what it lacks is guessed, among the columns that it leaves.
        name: what messages call the source.

    Returns:
        (field → its columns, in order; one line per field that tells column and reason). Fields that nothing was found
        for are left out.

    Raises:
        ValueError: for a field or column that does not exist, naming close ones and those there are; for a table
            without any of the fields it cannot do without; for a log whose lines may be no events.
    """
    fixed = {field: _given(field, value, columns, fields, name) for field, value in (given or {}).items()}
    reasons = {field: "given" for field in fixed}
    of_format = {field: found for field, found in (known or {}).items() if field not in fixed}
    reasons |= dict.fromkeys(of_format, "the format has it there")
    mapping = fixed | of_format
    taken = columns_of(mapping)
    free = {column: ColumnSample(column, sample) for column in columns if column not in taken}
    guesses = _product_guesses if fields is PRODUCT_FIELDS else guess_log_columns
    open_fields = [field for field in fields if field not in mapping or (field in of_format and field == "attributes")]
    for field, found, reason in guesses(free, open_fields):
        if field in of_format:
            found, reason = (*of_format[field], *found), f"{reasons[field]}; more by {reason}"
        mapping[field], reasons[field] = found, reason
    used = columns_of(mapping)
    rest = [column for column in columns if column not in used]
    if "*" in mapping.get("attributes", ()):
        mapping["attributes"], rest = tuple(rest), []
    mapping = {field: mapping[field] for field in fields if mapping.get(field)}
    lines = [f"{field} <- {_shown(mapping[field])}: {reasons[field]}" for field in mapping]
    if missing := [field for field in fields if field not in mapping and field != "aliases"]:  # never guessed
        lines.append(f"no column for {', '.join(missing)}")
    if rest:
        way = "; to keep them, give attributes=COLUMN,… or attributes=*" if fields is PRODUCT_FIELDS else ""
        lines.append(f"not used: {', '.join(rest[:30])}{', …' if len(rest) > 30 else ''}{way}")
    _refuse_useless(mapping, columns, fields, name)
    if fields is LOG_FIELDS:
        refuse_unclear_events(mapping, [free[column] for column in rest], "event" in fixed, name)
    return mapping, lines


def parse_columns(name: str, given: Sequence[str] | None) -> dict[str, str]:
    """field -> column(s), as `resolve` takes them, from the FIELD=COLUMN texts of a command line.

    Args:
        name: of the argument, for messages.
        given: the texts, or None.

    Raises:
        ValueError: a text of another form, or a field twice.
    """
    pairs: dict[str, str] = {}
    for text in given or ():
        target, equals, column = text.partition("=")
        if not equals or target in pairs:
            raise ValueError(f"{name}: {text!r}; give every field once, as FIELD=COLUMN")
        pairs[target] = column
    return pairs


def columns_of(mapping: Mapping[str, Sequence[Column]]) -> set[str]:
    """All source columns that a mapping reads."""
    found: set[str] = set()
    for columns in mapping.values():
        for column in columns:
            if isinstance(column, str):
                found.update([column, *TEMPLATE.findall(column)])
            else:
                found.update(column)
    return found


def attribute_pairs(columns: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of columns such as "Option1 Name", "Option1 Value" or "Attribute 2 name", "Attribute 2 value(s)"."""
    halves: dict[str, dict[str, str]] = {}
    for column in columns:
        if len(column) <= MAX_COLUMN_NAME and (match := _PAIR.match(column)) and re.search(r"\d", match[1]):
            halves.setdefault(plain_name(match[1]), {})[match[2][:4].casefold()] = column
    return [(half["name"], half["valu"]) for half in halves.values() if len(half) == 2]


def _given(field: str, value: Any, columns: Sequence[str], fields: Sequence[str], name: str) -> tuple[Column, ...]:
    if field not in fields:
        if field in columns and value in fields:
            raise ValueError(f"columns: write {value}={field}, the field first and then the column")
        raise ValueError(f"columns: no field {field!r}{_close(field, fields)}; the fields are {', '.join(fields)}")
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        if value in columns or (field == "attributes" and value == "*"):
            return (value,)
        if "," in value and "{" not in value:
            value = [part.strip() for part in value.split(",") if part.strip()]
        else:
            value = [value]
    found: list[Column] = []
    for column in value:
        pair = not isinstance(column, str)
        names = tuple(column) if pair else TEMPLATE.findall(column) if field == "images" else []
        for part in names or [column]:
            if part not in columns:
                raise ValueError(
                    f"{name} has no column {part!r} for {field}{_close(part, columns)}; "
                    f"its columns are {', '.join(map(str, columns[:60]))}{', …' if len(columns) > 60 else ''}"
                )
        found.append(names if pair else column)
    if field in ONE_COLUMN and len(found) > 1:
        raise ValueError(f"columns: {field} takes one column, not {_shown(found)}")
    return tuple(found)


def _close(word: str, known: Sequence[str]) -> str:
    plain = {plain_name(str(name)): name for name in known}
    matches = get_close_matches(plain_name(str(word)), plain, n=1, cutoff=0.6)
    return f" (did you mean {plain[matches[0]]!r}?)" if matches else ""


def _refuse_useless(mapping: FieldMapping, columns: Sequence[str], fields: Sequence[str], name: str) -> None:
    groups = [("title", "images")] if fields is PRODUCT_FIELDS else [("text", "image"), ("product_id",)]
    for group in groups:
        if not any(field in mapping for field in group):
            raise ValueError(
                f"{name}: no column found for {' or '.join(group)}; tell it, e.g. columns={{'{group[0]}': COLUMN}}; "
                f"the columns are {', '.join(map(str, columns[:60]))}{', …' if len(columns) > 60 else ''}"
            )


def _shown(columns: Sequence[Column]) -> str:
    return ", ".join(column if isinstance(column, str) else " = ".join(column) for column in columns)


def _product_guesses(free: dict[str, ColumnSample], fields: Sequence[str]) -> list[Found]:
    found: list[Found] = []

    def take(field: str, columns: Sequence[Column], reason: str) -> None:
        found.append(Found(field, tuple(columns), reason))
        for column in columns_of({field: tuple(columns)}):
            free.pop(column, None)

    pairs = attribute_pairs(list(free)) if "attributes" in fields else []
    held_back = {column: free.pop(column) for pair in pairs for column in pair}
    if "images" in fields and (guess := _images(free)):
        take("images", *guess)
    if "product_id" in fields and (guess := _product_id(free)):
        take("product_id", *guess)
    for field in ("title", "description"):
        if field in fields and (guess := find_by_name(field, PRODUCT_NAMES[field], free, lambda s: s.images < 0.5)):
            take(field, *guess)
    if "category_path" in fields and (guess := _category(free)):
        take("category_path", *guess)
    if "title" in fields and not any(guess.field == "title" for guess in found):
        lines = [s for s in free.values() if s.plain and 8 <= s.length <= 300 and s.distinct > 0.5
                 and s.share(lambda value: isinstance(value, str) and " " in value.strip()) > 0.5]  # fmt: skip
        if lines:
            best = min(lines, key=lambda s: s.length)
            take("title", [best.column], f"texts of {best.length:.0f} characters; {best.facts()}")
    if "attributes" in fields:
        named = [column for column in free if plain_name(column) in ATTRIBUTE_NAMES and free[column].images < 0.5]
        free.update(held_back)
        if named or pairs:
            take("attributes", [*named, *pairs], "their names")
    return found


def _product_id(free: Mapping[str, ColumnSample]) -> tuple[list[str], str] | None:
    names = PRODUCT_NAMES["product_id"]
    ranked = []
    for column, s in free.items():
        if plain_name(column) in names and (not s.count or s.plain):
            repeats = s.count >= 5 and (s.distinct < 0.9 or s.filled < 0.5)
            ranked.append((repeats, names[plain_name(column)], column))
    if ranked:
        column = min(ranked)[2]
        return [column], f"its name; {free[column].facts()}"
    for column, s in free.items():
        short = s.plain and s.length <= 64 and s.share(lambda value: " " in str(value)) == 0
        if s.count >= 5 and s.filled == 1 and s.distinct == 1 and short and s.images < 0.5:
            return [column], "every row has a value, no two are the same, none has a space"
    return None


def _images(free: Mapping[str, ColumnSample]) -> tuple[list[str], str] | None:
    names = PRODUCT_NAMES["images"]
    wanted, unwanted = FIELD_WORDS["images"]
    named = []
    for column, s in free.items():
        base = re.sub(r"\d+$", "", plain_name(column))
        words = {re.sub(r"\d+$", "", word) for word in name_words(column)}
        known = plain_name(column) in names or base in names or (words & wanted and not words & unwanted)
        urls = s.share(
            lambda value: isinstance(value, str) and value.lstrip().casefold().startswith(("http:", "https:"))
        )
        if known and (not s.count or s.images + urls >= 0.5):
            named.append(column)
    if named:
        # The picture shown first comes first; thumbnails are the same pictures, smaller.
        large = [column for column in named if "thumb" not in column.casefold()] or named
        main = [column for column in large if set(name_words(column)) & {"main", "primary", "hauptbild", "front"}]
        more = [column for column in large if set(name_words(column)) & {"additional", "other", "extra", "gallery"}]
        middle = [column for column in large if column not in main and column not in more]
        return [*main, *middle, *more], "their names and values" if len(large) > 1 else "its name and values"
    for column, s in free.items():
        if s.count and s.images > 0.9:
            return [column], f"{s.images:.0%} of its values are images or paths of images"
    return None


def _category(free: Mapping[str, ColumnSample]) -> tuple[list[str], str] | None:
    ranked = []
    wanted, unwanted = FIELD_WORDS["category_path"]
    for column, s in free.items():
        plain, words = plain_name(column), set(name_words(column))
        usable = s.share(lambda value: isinstance(value, str | int | list | tuple)) > 0.9 or not s.count
        if not usable or s.images >= 0.5:
            continue
        if level := _NUMBERED.match(plain):
            ranked.append((CATEGORY_NAMES["category"], int(level[1]), column))
        elif plain in CATEGORY_NAMES:
            ranked.append((CATEGORY_NAMES[plain], 0, column))
        elif words & wanted and not words & unwanted:
            ranked.append((CATEGORY_NAMES["category"], 0, column))
    ranked.sort(key=lambda entry: entry[:2])
    columns = [column for _, _, column in ranked]
    whole = [column for column in columns if free[column].paths > 0.5]
    if whole:
        return [whole[0]], "its values are paths of categories"
    if columns:
        return columns, "their names, coarse to fine" if len(columns) > 1 else "its name"
    for column, s in free.items():
        deep = s.share(lambda value: isinstance(value, str) and " > " in value)
        if plain_name(column) == "type" and s.plain and s.distinct < 0.5:
            return [column], f"its name; {s.facts()}"
        if s.count and deep > 0.8:
            return [column], f"{deep:.0%} of its values have the form A > B"
    return None
