"""Filters by category and attributes: from values to an expression of LanceDB, never through a text of SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import and_, or_
from typing import Any

from lancedb.expr import Expr, col, lit

# Control characters, which no cleaned name or value holds, so that one text column can hold a list unmistakably.
START, BETWEEN, EQUALS = "\x1e", "\x1f", "\x1d"
AFTER_BETWEEN = chr(ord(BETWEEN) + 1)
MAX_VALUES = 100
MAX_LENGTH = 1000  # characters of a name or value


@dataclass(frozen=True)
class Filters:
    """What a product must be to be found; every part must hold.

    Args:
        category: first levels of its category path, coarse to fine.
        attributes: name -> values, one of which it must have. Case and white space do not count.

    Raises:
        ValueError: a name or value is blank, no text, too long, or one of too many.

    Example:
        >>> Filters(category=["Shoes"], attributes={"colour": ["red", "navy blue"]})
        Filters(category=('Shoes',), attributes={'colour': ('red', 'navy blue')})
    """

    category: Sequence[str] = ()
    attributes: Mapping[str, Sequence[str] | str] = field(default_factory=dict)

    def __post_init__(self):
        category = _listed("category", self.category)
        if not isinstance(self.attributes, Mapping):
            raise ValueError("filters: attributes are no mapping; give {name: [values]}")
        attributes = {name: _listed(name, values) for name, values in self.attributes.items()}
        object.__setattr__(self, "category", category)
        object.__setattr__(self, "attributes", attributes)
        values = [value for of_name in attributes.values() for value in of_name]
        if len(category) + len(values) > MAX_VALUES:
            raise ValueError(f"filters: {len(category) + len(values)} values; give {MAX_VALUES} or fewer")
        for text in (*category, *attributes, *values):
            if not isinstance(text, str) or not text.strip() or len(text) > MAX_LENGTH:
                raise ValueError(f"filters: {str(text)[:80]!r}; give texts of 1 to {MAX_LENGTH:,} characters")
        for name, of_name in attributes.items():
            if not of_name:
                raise ValueError(f"filters: no value for attribute {name!r}; give one, or leave the attribute out")

    def __bool__(self) -> bool:
        return bool(self.category or self.attributes)

    def expression(self) -> Expr | None:
        """The condition over the columns that `filter_columns` makes; None where nothing is asked for."""
        conditions = []
        if self.category:
            first = _category_key(self.category)  # of the paths that begin so: a range, which an index answers
            conditions += [col("category_key") >= lit(first), col("category_key") < lit(first[:-1] + AFTER_BETWEEN)]
        for name, values in self.attributes.items():
            one_of = [col("attribute_key").contains(lit(_joined([_pair(name, value)]))) for value in values]
            conditions.append(reduce(or_, one_of))
        return reduce(and_, conditions) if conditions else None


def filter_columns(product: Mapping[str, Any]) -> dict[str, str]:
    """The columns that filters look into, of a product in the products schema."""
    pairs = [_pair(attribute["name"], attribute["value"]) for attribute in product["attributes"]]
    return {
        "category_key": _category_key(product["category_path"]),
        "attribute_key": _joined(pairs),
    }


def _listed(name: Any, given: Any) -> tuple[str, ...]:
    if isinstance(given, str):
        return (given,)
    if not isinstance(given, Sequence):
        raise ValueError(f"filters: {str(name)[:80]!r} is given {type(given).__name__}; give a list of texts")
    return tuple(given)


def whole_characters(text: str) -> str:
    """A text that can be written as UTF-8: halves of surrogate pairs, which JSON can hold, become U+FFFD."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def _category_key(path: Sequence[str]) -> str:
    return START + _joined([_plain(level) for level in path])


def _joined(parts: Sequence[str]) -> str:
    return BETWEEN + "".join(part + BETWEEN for part in parts)


def _pair(name: str, value: str) -> str:
    return f"{_plain(name)}{EQUALS}{_plain(value)}"


def _plain(text: str) -> str:
    """A text without case, control characters and needless white space."""
    plain = "".join(" " if letter < " " else letter for letter in whole_characters(text))
    return " ".join(plain.casefold().split())
