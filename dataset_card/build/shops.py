"""Product exports of Shopify, WooCommerce and Google Merchant Center: recognised by their headers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from .column_names import plain_name
from .column_sample import Column
from .mapping import FieldMapping, attribute_pairs
from .plain_text import clean_id
from .raw_rows import RawRow

VARIATION = "variation"
# Any table may have id, title and image_link; an export has these as well.
_GOOGLE_MARKS = set("link availability price gtin mpn googleproductcategory producttype itemgroupid".split())


class Shop(NamedTuple):
    """An export format.

    Args:
        name: what messages call it.
        mapping: where it has the target fields.
        merge_on: column that neighbouring lines of one product share, or None.
        collected: columns that every line of a product adds a value to.
    """

    name: str
    mapping: FieldMapping
    merge_on: str | None = None
    collected: tuple[str, ...] = ()


def recognise(columns: Sequence[str]) -> Shop | None:
    """The export format that has these columns, or None."""
    have = {plain_name(re.sub(r"^g:", "", column)): column for column in reversed(columns)}
    pairs = attribute_pairs(columns)
    for shop in (_shopify, _woocommerce, _google):
        if found := shop(have, columns, pairs):
            return found
    return None


def tidy_woocommerce(row: RawRow) -> RawRow:
    """Take apart the lists of WooCommerce: the deepest of several categories stays, images become a list.

    A variation is a size or colour of another product of the file, which names them all: it is marked to be dropped,
    with the parent that its own id and SKU are other names of.
    """
    values = row.values
    if "variation" in _parts(values.get("Type")):
        parent = str(values.get("Parent") or "")
        error = f"a variation of {parent or 'another product'}"
        return row._replace(error=error, reason=VARIATION, parent=clean_id(parent.removeprefix("id:")))
    if isinstance(values.get("Categories"), str):
        paths = [path.split(">") for path in _parts(values["Categories"])]
        values = values | {"Categories": max(paths, key=len, default=[])}
    if isinstance(values.get("Images"), str):
        values = values | {"Images": _parts(values["Images"])}
    return row._replace(values=values)


def _parts(value: object) -> list[str]:
    """A list joined by commas; a comma inside a name is written with a backslash."""
    if not isinstance(value, str):
        return []
    parts = re.split(r"(?<!\\),", value)
    return [part.replace("\\,", ",").strip() for part in parts if part.strip()]


def _picked(have: dict[str, str], *names: str) -> tuple[str, ...]:
    return tuple(have[name] for name in names if name in have)


def _mapping(**fields: Sequence[Column]) -> FieldMapping:
    return {field: tuple(columns) for field, columns in fields.items() if columns}


def _shopify(have: dict[str, str], columns: Sequence[str], pairs: list[tuple[str, str]]) -> Shop | None:
    handle = _picked(have, "handle", "urlhandle")
    marks = {"bodyhtml", "imagesrc", "productimageurl", "variantsku", "option1name"} & have.keys()
    if not handle or "title" not in have or not marks:
        return None
    facts = [column for column in columns if "metafields" in column or column.startswith("Google Shopping / ")]
    wanted = {
        "gender",
        "agegroup",
        "color",
        "colour",
        "size",
        "material",
        "fabric",
        "pattern",
        "targetgender",
        "brand",
    }
    facts = [column for column in facts if plain_name(re.sub(r"\(.*|.*/ ", "", column)) in wanted]
    images = _picked(have, "imagesrc", "productimageurl", "variantimage", "variantimageurl")
    names = _picked(have, "variantsku", "sku", "variantid")
    mapping = _mapping(
        product_id=handle[:1],
        title=_picked(have, "title"),
        description=_picked(have, "bodyhtml", "description")[:1],
        category_path=_picked(have, "productcategory", "type"),
        attributes=[*_picked(have, "vendor"), *pairs, *facts, *_picked(have, "tags")],
        images=images,
        aliases=names,
    )
    return Shop("Shopify", mapping, handle[0], (*images, *names, *(value for _, value in pairs)))


def _woocommerce(have: dict[str, str], columns: Sequence[str], pairs: list[tuple[str, str]]) -> Shop | None:
    marks = {"shortdescription", "categories", "images", "published", "taxstatus", "attribute1name"} & have.keys()
    if not {"Type", "SKU", "Name"} <= set(columns) or len(marks) < 2:
        return None
    mapping = _mapping(
        product_id=_picked(have, "id", "sku"),
        title=_picked(have, "name"),
        description=_picked(have, "shortdescription", "description"),
        category_path=_picked(have, "categories"),
        attributes=[*_picked(have, "brands", "brand"), *pairs, *_picked(have, "tags")],
        images=_picked(have, "images"),
        aliases=_picked(have, "id", "sku"),
    )
    return Shop("WooCommerce", mapping)


def _google(have: dict[str, str], columns: Sequence[str], pairs: list[tuple[str, str]]) -> Shop | None:
    marks = _GOOGLE_MARKS & have.keys()
    if not {"id", "title", "imagelink"} <= have.keys() or (
        len(marks) < 2 and not any(column.startswith("g:") for column in columns)
    ):
        return None
    facts = ("brand", "color", "size", "material", "pattern", "gender", "agegroup")
    mapping = _mapping(
        product_id=_picked(have, "id"),
        title=_picked(have, "title"),
        description=_picked(have, "description"),
        category_path=_picked(have, "producttype", "googleproductcategory")[:1],
        attributes=_picked(have, *facts),
        images=_picked(have, "imagelink", "additionalimagelink", "additionalimagelinks"),
    )
    return Shop("Google Merchant Center", mapping)
