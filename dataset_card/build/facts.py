"""Category path and attributes of a product, from whatever form a shop keeps them in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from .column_names import attribute_name
from .column_sample import Column
from .pictures import Problem
from .plain_text import NOTHING_WORDS, clean_text, is_nothing, kind_of, parsed_text

MAX_NAME = 200  # characters of a category level or an attribute
MAX_VALUE = 500  # of an attribute
MAX_LEVELS = 10
MAX_ATTRIBUTES = 64

BAD_ATTRIBUTES = "attributes_not_understood"
BAD_CATEGORY = "category_not_understood"

_LEVELS = (re.compile(r"\s*(?:>|»|›|→)\s*"), re.compile(r"\s*\|\s*"), re.compile(r"\s*/\s*"))
_PIECES = re.compile(r"[;|\n]")


def read_category(cells: Sequence[Any], notes: list[Problem]) -> list[str]:
    """The first cell that is a path of several levels, else the levels of all cells, one after another."""
    levels: list[str] = []
    for cell in cells:
        found = _levels(cell, 0)
        if found is None:
            notes.append((BAD_CATEGORY, kind_of(cell)))
            continue
        if len(found) > 1:
            levels = list(found)
            break
        levels.extend(found)
    if len(levels) > MAX_LEVELS:
        notes.append((BAD_CATEGORY, f"{len(levels)} levels"))
    return [level for n, level in enumerate(levels[:MAX_LEVELS]) if n == 0 or level != levels[n - 1]]


def _levels(cell: Any, depth: int) -> Sequence[str] | None:
    """Names of the levels in a cell, coarse to fine; None for what is no category."""
    if isinstance(cell, str):
        return _levels_of_text(cell) if len(cell) < 500 else _split_levels(cell[: MAX_LEVELS * MAX_NAME])
    if is_nothing(cell):
        return ()
    if isinstance(cell, bool) or depth > 2:
        return None
    if isinstance(cell, dict):  # {"lvl0": "A", "lvl1": "A > B"}, {"name": "A"}
        names = [cell["name"]] if "name" in cell else [cell[key] for key in sorted(cell, key=str)][:MAX_LEVELS]
        found = [_levels(name, depth + 1) for name in names]
        if any(levels and len(levels) > 1 for levels in found):
            return max((levels for levels in found if levels), key=len)
        return [name for levels in found for name in levels or ()] or None
    if isinstance(cell, list | tuple):
        if cell and isinstance(cell[0], list | tuple):  # several paths: the first of the deepest
            return max((found for part in cell[:20] if (found := _levels(part, depth + 1))), key=len, default=None)
        if len(cell) == 1 and isinstance(cell[0], str):
            return _levels(cell[0], depth + 1)
        names = [name for part in cell[: MAX_LEVELS + 1] if (name := _level_name(part, depth))]
        return names if names or not cell else None
    text = clean_text(cell, MAX_NAME)[0]
    return (text,) if text else None


def _level_name(part: Any, depth: int) -> str:
    if isinstance(part, dict):
        found = _levels(part, depth + 1)
        return found[-1] if found else ""
    return clean_text(part, MAX_NAME)[0]


@lru_cache(maxsize=8192)
def _levels_of_text(text: str) -> tuple[str, ...]:
    parsed = parsed_text(text)
    if isinstance(parsed, list | dict):
        return tuple(_levels(parsed, 1) or ())
    return _split_levels(text)


def _split_levels(text: str) -> tuple[str, ...]:
    text = clean_text(text.replace("->", ">"), MAX_LEVELS * MAX_NAME)[0]
    for separator in _LEVELS:
        if len(parts := separator.split(text)) > 1:
            break
    return tuple(part[:MAX_NAME].rstrip() for part in parts if part.strip() and part.casefold() not in NOTHING_WORDS)


def read_attributes(
    values: Mapping[str, Any], columns: Sequence[Column], notes: list[Problem]
) -> list[dict[str, str]]:
    found: dict[tuple[str, str], None] = {}
    strange = ""
    for column in columns:
        if isinstance(column, str):
            cell, name = values.get(column), attribute_name(column)
        else:
            cell = values.get(column[1])
            name = values.get(column[0])
            name = name[0] if isinstance(name, list) and name else name
            name = clean_text(name, MAX_NAME)[0] or attribute_name(column[1])
        if cell is None or cell == "":
            continue
        for pair in _pairs(name, cell, 0):
            if pair is None:
                strange = strange or kind_of(cell)
            elif len(found) < MAX_ATTRIBUTES:
                found[pair] = None
            elif pair not in found:
                strange = f"over {MAX_ATTRIBUTES}"
                break
    if strange:
        notes.append((BAD_ATTRIBUTES, strange))
    return [{"name": name, "value": value} for name, value in found]


def _pairs(name: str, cell: Any, depth: int) -> Iterator[tuple[str, str] | None]:
    """(name, value) of every attribute in a cell; None for a part that is not understood."""
    if isinstance(cell, str):
        parsed = parsed_text(cell) if cell[:1] in "[{ " else None
        if isinstance(parsed, list | dict):
            yield from _pairs(name, parsed, depth)
            return
        pieces = _PIECES.split(cell[: 1 << 16]) if ":" in cell or "=" in cell else ()
        halves = [[half.strip() for half in re.split("[:=]", piece, maxsplit=1)] for piece in pieces if piece.strip()]
        if halves and all(len(half) == 2 and 0 < len(half[0]) <= 60 for half in halves) and _is_container(name):
            for half in halves[: MAX_ATTRIBUTES + 1]:
                yield from _pair(*half)
        elif name == "tag":
            for tag in cell[:4096].split(","):
                yield from _pair(name, tag)
        else:
            yield from _pair(name, cell)
    elif isinstance(cell, dict) and depth < 3:
        keys = {str(key).casefold(): key for key in list(cell)[: MAX_ATTRIBUTES + 1]}
        label = next((keys[key] for key in ("name", "key", "attribute", "label", "k") if key in keys), None)
        content = next((keys[key] for key in ("value", "values", "val", "v") if key in keys), None)
        if label is not None and content is not None:
            inner, ok = clean_text(cell[label], MAX_NAME)
            yield from _pairs(inner, cell[content], 3) if inner and ok else [None]
        else:
            for key, value in list(cell.items())[: MAX_ATTRIBUTES + 1]:
                inner = clean_text(key, MAX_NAME)[0]
                yield from _pairs(inner, value, depth + 1) if inner else [None]
    elif isinstance(cell, list | tuple):
        parts = cell[: MAX_ATTRIBUTES + 1]
        if all(not isinstance(part, dict | list | tuple) for part in parts):
            named = _is_container(name) and all(isinstance(part, str) and ":" in part for part in parts)
            if named and parts:
                for part in parts:
                    yield from _pair(*part.split(":", 1))
            elif parts:
                texts = [clean_text(part, MAX_VALUE)[0] for part in parts]
                yield from _pair(name, ", ".join(dict.fromkeys(text for text in texts if text)))
        else:
            for part in parts:
                if isinstance(part, dict) and depth < 3:
                    yield from _pairs(name, part, depth + 1)
                elif isinstance(part, list | tuple) and len(part) == 2 and isinstance(part[0], str) and depth < 3:
                    yield from _pairs(clean_text(part[0], MAX_NAME)[0], part[1], 3)
                else:
                    yield None
    elif isinstance(cell, bool):
        yield from _pair(name, "yes" if cell else "no")
    elif isinstance(cell, dict):
        yield None
    elif not is_nothing(cell):
        yield from _pair(name, cell)


def _is_container(name: str) -> bool:
    """Whether a column of that name may hold several attributes ("attributes", "specs"), not one ("size")."""
    return name in _CONTAINERS or name.endswith(("attributes", "specs", "specifications", "properties"))


_CONTAINERS = set(
    "attribute|attributes|specs|specification|specifications|properties|details|params|item specifics|features list|"
    "eigenschaften|merkmale|caracteristiques|caractéristiques|caracteristicas|características|caratteristiche|"
    "kenmerken|属性|商品属性|仕様|характеристики".split("|")
)


def _pair(name: Any, value: Any) -> list[tuple[str, str] | None]:
    """The cleaned attribute; nothing where name or value is blank; None for a value that is no text."""
    name, _ = clean_text(name, MAX_NAME)
    value, is_text = clean_text(value, MAX_VALUE)
    if not value and not is_text:
        return [None]
    # Shopify writes "Default Title" for a product without options.
    return [(name, value)] if name and value and value != "Default Title" else []
