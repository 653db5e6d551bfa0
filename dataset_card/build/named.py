"""Data sets known by name, ZHNie/MBE2.0 and Daoze/MM-Bench-E-Commerce, as a catalogue and a log for the builder.

The papers tell what is in them: purchases of a large marketplace, each a query of text, image or both with the item
that was bought, some with an item that was shown and not wanted; items have a title, a picture, category levels and
attributes. Their column names could not be inspected. So the layout below is an assumption, kept in one table: for
each part of a row the names it may have, best first. What does not fit is told with the columns there are, and
`columns` puts it right without a change of code.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from .column_names import plain_name
from .log_columns import LOG_FIELDS
from .mapping import PRODUCT_FIELDS
from .raw_rows import RawRow
from .sources import Part, Paths, Source, find_parts

_PARTS = {
    "id": "id",
    "title": "title name text",
    "description": "description desc detail",
    "category_path": "category_path category categories cate cate_name leaf_category",
    "attributes": "attributes attribute attrs props properties",
    "images": "images image image_bytes img pic picture image_path image_url",
}
_ITEM = ("item", "product", "positive", "positive_item", "pos", "pos_item", "target", "candidate", "goods")
_NEGATIVE = ("negative", "negative_item", "negative_product", "neg", "neg_item", "hard_negative")
_LEVEL_SPELLINGS = "category_level_{} cate_level{}_name cate_level{} level{}_category category_{} l{}_category".split()
_LEVELS = [spelling.format(level) for level in range(1, 6) for spelling in _LEVEL_SPELLINGS]


def _spelled(prefixes: Sequence[str], part: str, plain: Sequence[str] = ()) -> tuple[str, ...]:
    return (*(f"{prefix}_{word}" for prefix in prefixes for word in _PARTS[part].split()), *plain)


# What a row holds → the columns it may stand in, best first.
PAIR_LAYOUT: dict[str, tuple[str, ...]] = {
    "query_id": ("query_id", "qid"),
    "query_text": ("query_text", "query", "query_title", "keyword", "search_query"),
    "query_image": ("query_image", "query_images", "query_img", "query_pic", "query_image_path", "query_image_url"),
    "count": ("count", "num_purchases", "purchases", "pay_count", "frequency"),
    "item_id": _spelled(_ITEM, "id", ("id", "sku", "spu_id")),
    "item_title": _spelled(_ITEM, "title", ("title",)),
    "item_description": _spelled(_ITEM, "description", ("description",)),
    "item_category_path": _spelled(_ITEM, "category_path", ("category_path", "category", "categories")),
    "item_attributes": _spelled(_ITEM, "attributes", ("attributes", "props")),
    "item_images": _spelled(_ITEM, "images", ("images", "image")),
    "negative_id": _spelled(_NEGATIVE, "id"),
    "negative_title": _spelled(_NEGATIVE, "title"),
    "negative_description": _spelled(_NEGATIVE, "description"),
    "negative_category_path": _spelled(_NEGATIVE, "category_path"),
    "negative_attributes": _spelled(_NEGATIVE, "attributes"),
    "negative_images": _spelled(_NEGATIVE, "images"),
}
NAMED = {"ZHNie/MBE2.0": PAIR_LAYOUT, "Daoze/MM-Bench-E-Commerce": PAIR_LAYOUT}


def open_named(
    name: str,
    split: str = "train",
    columns: Mapping[str, str | Sequence[str]] | None = None,
    path: Paths | None = None,
) -> tuple[Source, Source]:
    """Open a data set known by name: its items as a catalogue, its purchases as a log.

    Every row gives one product, or two where it has a negative; the same item comes as often as it was bought, and
    de-duplication by product id leaves one. An item or query without an id gets one made of its text and picture.
    Every pair is a purchase, in which the negative was shown.

    Args:
        name: a key of `NAMED`.
        split: of the data set on the Hub, or "CONFIG:SPLIT".
        columns: part of a row, a key of `PAIR_LAYOUT` → the column it stands in (several for item_category_path and
            images), where the layout does not fit.
        path: a copy on disk in place of the Hub, as in `open_source`.

    Returns:
        (catalogue, log), for `clean_product` and the log builder.

    Raises:
        ValueError: for a name that is not known, or a layout that does not fit, naming the columns there are.

    Example:
        >>> catalogue, log = open_named("ZHNie/MBE2.0", "test", columns={"item_title": "cand_title"})
    """
    if name not in NAMED:
        raise ValueError(
            f"{name}: not a data set known by name; those are {', '.join(NAMED)}; others open as hf:{name}"
        )
    parts, fingerprint, notes = find_parts(f"hf:{name}:{split}" if path is None else path)
    layout = _fitted(name, NAMED[name], list(dict.fromkeys(c for part in parts for c in part.columns)), columns or {})
    notes = [*notes, *(f"{field} <- {', '.join(found)}" for field, found in layout.items())]
    items = [PairRows(part, layout, "items") for part in parts]
    queries = [PairRows(part, layout, "queries") for part in parts]
    catalogue = Source(items, PRODUCT_FIELDS, {field: field for field in items[0].columns}, fingerprint, notes)
    log = Source(queries, LOG_FIELDS, {field: field for field in queries[0].columns}, fingerprint, notes)
    return catalogue, log


class PairRows:
    """The rows of a table of (query, item[, negative]) as products or as log rows.

    Args:
        part: the table.
        layout: part of a row → its columns.
        role: "items", or "queries".
    """

    def __init__(self, part: Part, layout: Mapping[str, Sequence[str]], role: str) -> None:
        self.part, self.layout = part, layout
        self.name, self.counts = part.name, Counter()
        self.wanted = [column for columns in layout.values() for column in columns]
        self.description = f"{part.description}, its {role}"
        self.kinds = ("item",)
        if role == "items":
            if layout.get("negative_title") or layout.get("negative_images"):
                self.kinds = ("item", "negative")
            found = {field for field in PRODUCT_FIELDS for kind in self.kinds if layout.get(f"{kind}_{field}")}
            self.columns = [field for field in PRODUCT_FIELDS if field in found | {"product_id"}]
        else:
            fields = {"query_id": True, "text": layout.get("query_text"), "image": layout.get("query_image"),
                      "product_id": True, "event": True, "count": layout.get("count"),
                      "shown": layout.get("negative_id")}  # fmt: skip
            self.columns = [field for field, there in fields.items() if there]
        self.role = role
        self.num_rows = None if part.num_rows is None else part.num_rows * len(self.kinds)

    def rows(self, start: int, columns: Sequence[str]) -> Generator[RawRow, None, int]:
        """Rows from `start` on with these columns. Returns how many there are."""
        each, pairs = len(self.kinds), self.part.rows(start // len(self.kinds), self.wanted)
        while True:
            try:
                pair = next(pairs)
            except StopIteration as end:
                self.counts = self.part.counts
                return end.value * each
            for offset, kind in enumerate(self.kinds):
                number = pair.number * each + offset
                if number < start:
                    continue
                values: dict[str, Any] = {}
                if pair.error is None:
                    values = self._item(pair.values, kind) if self.role == "items" else self._query(pair.values)
                    values = {column: values[column] for column in columns if column in values}
                yield pair._replace(number=number, values=values)

    def _item(self, values: Mapping[str, Any], kind: str) -> dict[str, Any]:
        item = {field: self._cell(values, f"{kind}_{field}") for field in PRODUCT_FIELDS}
        item["product_id"] = self._item_id(values, kind)
        return item

    def _item_id(self, values: Mapping[str, Any], kind: str) -> Any:
        if self.layout.get(f"{kind}_id"):
            return self._cell(values, f"{kind}_id")
        return _made_id(self._cell(values, f"{kind}_title"), self._cell(values, f"{kind}_images"))

    def _query(self, values: Mapping[str, Any]) -> dict[str, Any]:
        text, image = self._cell(values, "query_text"), self._cell(values, "query_image")
        query_id = self._cell(values, "query_id") if self.layout.get("query_id") else _made_id(text, image)
        return {
            "query_id": query_id,
            "text": text,
            "image": image,
            "product_id": self._item_id(values, "item"),
            "event": "purchase",
            "count": self._cell(values, "count"),
            "shown": self._cell(values, "negative_id"),
        }

    def _cell(self, values: Mapping[str, Any], part: str) -> Any:
        found = [values.get(column) for column in self.layout.get(part, ())]
        return found[0] if len(found) == 1 else [value for value in found if value not in (None, "")] or None


def _made_id(text: Any, images: Any) -> str | None:
    """An id of what an item or query shows; None for one that shows nothing."""
    first = images[0] if isinstance(images, list) and images else images
    picture = (first.get("bytes") or first.get("path")) if isinstance(first, dict) else first
    if not text and not picture:
        return None
    digest = hashlib.blake2b(digest_size=12)
    for value in (text, picture):
        raw = value if isinstance(value, bytes) else str(value or "").encode("utf-8", "replace")
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.hexdigest()


def _fitted(
    name: str,
    layout: Mapping[str, Sequence[str]],
    columns: Sequence[str],
    given: Mapping[str, str | Sequence[str]],
) -> dict[str, tuple[str, ...]]:
    """The layout with the one column of each part that is there."""
    there = f"its columns are {', '.join(columns)}"
    if unknown := [part for part in given if part not in layout]:
        close = get_close_matches(unknown[0], layout, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"{name}: no part {unknown[0]!r} of a row{hint}; the parts are {', '.join(layout)}")
    plain = {plain_name(column): column for column in reversed(columns)}
    fitted: dict[str, tuple[str, ...]] = {}
    for part, spellings in layout.items():
        if part in given:
            found = (given[part],) if isinstance(given[part], str) else tuple(given[part])
            if missing := [column for column in found if column and column not in columns]:
                raise ValueError(f"{name} has no column {missing[0]!r} for {part}; {there}")
            fitted[part] = tuple(column for column in found if column)
            continue
        taken = {column for found in fitted.values() for column in found}
        match = next(
            (plain[key] for s in spellings if (key := plain_name(s)) in plain and plain[key] not in taken), None
        )
        fitted[part] = () if match is None else (match,)
    if "item_category_path" not in given and not fitted["item_category_path"]:
        levels = [plain[key] for spelling in _LEVELS if (key := plain_name(spelling)) in plain]
        fitted["item_category_path"] = tuple(dict.fromkeys(levels))
    for one, other in (("query_text", "query_image"), ("item_title", "item_images")):
        if not fitted[one] and not fitted[other]:
            raise ValueError(f"{name}: no column for {one} or {other}; give columns={{'{one}': COLUMN}}; {there}")
    return {part: found for part, found in fitted.items() if found}
