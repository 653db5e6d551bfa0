"""One raw row → one row of the products table, or a reason to drop it; whatever the row holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .column_sample import Column
from .facts import BAD_ATTRIBUTES, BAD_CATEGORY, MAX_ATTRIBUTES, MAX_LEVELS, MAX_NAME, read_attributes, read_category
from .image_root import ImageRoot
from .mapping import TEMPLATE
from .pictures import MAX_PIXELS, PICTURE_REASONS, Problem, read_pictures
from .plain_text import MAX_ID, clean_id, clean_ids, clean_text, is_nothing, kind_of
from .raw_rows import MAX_COLLECTED, UNREADABLE_ROW, RawRow
from .shops import VARIATION

__all__ = [
    "DROP_REASONS",
    "NOTE_REASONS",
    "Cleaned",
    "Dropped",
    "clean_id",
    "clean_ids",
    "clean_product",
    "clean_text",
]

MAX_TITLE = 1_000  # characters
MAX_DESCRIPTION = 10_000
MAX_SIDE = 512  # pixels

NO_ID = "no_product_id"
BAD_ID = "bad_product_id"
NOTHING = "no_title_no_image"
TITLE_CUT = "title_cut"
DESCRIPTION_CUT = "description_cut"
NOT_TEXT = "not_text"

DROP_REASONS = {
    UNREADABLE_ROW: "the row cannot be parsed",
    NO_ID: "no product id",
    BAD_ID: f"the product id is no text or number, or has over {MAX_ID} characters",
    NOTHING: "neither a title nor a picture that can be read",
    VARIATION: "a variation of another product in the file, which lists its sizes and colours",
}
NOTE_REASONS = {
    TITLE_CUT: f"a title has over {MAX_TITLE:,} characters; the first ones stay",
    DESCRIPTION_CUT: f"a description has over {MAX_DESCRIPTION:,} characters; the first ones stay",
    NOT_TEXT: "a title or description is no text; it is left empty",
    BAD_ATTRIBUTES: f"attributes are no names and values, or are over {MAX_ATTRIBUTES}; the others stay",
    BAD_CATEGORY: f"a category is no name or list of names, or has over {MAX_LEVELS} levels",
    **PICTURE_REASONS,
}


class Cleaned(NamedTuple):
    """A product, in the features of the products table, and what was lost on the way.

    Args:
        product: a row for `PRODUCT_FEATURES`.
        notes: (code of `NOTE_REASONS`, detail) of each loss that did not cost the product.
        aliases: other ids that a log may name it by.
    """

    product: dict[str, Any]
    notes: tuple[Problem, ...] = ()
    aliases: tuple[str, ...] = ()


class Dropped(NamedTuple):
    """A row that gives no product.

    Args:
        place: of the row, e.g. "shop.csv line 18".
        reason_code: a key of `DROP_REASONS`.
        detail: what exactly was wrong, at most a few hundred characters.
        aliases: ids that a log may name another product by, where the row is a variation of that.
        parent: id of that product.
    """

    place: str
    reason_code: str
    detail: str
    aliases: tuple[str, ...] = ()
    parent: str = ""


def clean_product(
    row: RawRow,
    mapping: Mapping[str, Sequence[Column]],
    image_root: ImageRoot | None = None,
    max_side: int = MAX_SIDE,
    within: Path | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Cleaned | Dropped:
    """Make a product of a row, or say why not.

    A product needs an id, and a title or a picture that can be read: with a title it survives the loss of its
    pictures, which is noted. Where the mapping has no product_id, the row number is the id.

    Args:
        row: of a catalogue.
        mapping: field → source columns, as `Source.mapping`.
        image_root: where relative image paths start and URLs are looked up; None: beside the row's file.
        max_side: pixels; longer pictures are made smaller.
        within: folder outside which no picture is read; None: any file is.
        max_pixels: of a picture; one with more is not decoded.

    Returns:
        The product with its notes, or the reason. No row raises.
    """
    if row.error is not None:
        aliases = _aliases(row.values, mapping, row.parent) if row.parent else ()
        return Dropped(row.place, row.reason, clean_text(row.error, MAX_NAME)[0], aliases, row.parent)
    values, notes = row.values, []
    product_id = str(row.number)
    if mapping.get("product_id"):
        cells = [cell for cell in _cells(values, mapping, "product_id") if not is_nothing(cell)]
        if not cells:
            return Dropped(row.place, NO_ID, "")
        product_id = clean_id(cells[0])
        if not product_id:
            return Dropped(row.place, BAD_ID, kind_of(cells[0]))

    title = ""
    for cell in _cells(values, mapping, "title"):
        title, whole = clean_text(cell, MAX_TITLE)
        if not whole:
            notes.append((TITLE_CUT if title else NOT_TEXT, f"title: {kind_of(cell)}"))
        if title:
            break

    texts: list[str] = []
    for cell in _cells(values, mapping, "description"):
        text, whole = clean_text(cell, MAX_DESCRIPTION)
        if not whole:
            notes.append((DESCRIPTION_CUT if text else NOT_TEXT, f"description: {kind_of(cell)}"))
        if text and not any(text in other for other in texts):
            texts = [other for other in texts if other not in text] + [text]

    category_path = read_category(_cells(values, mapping, "category_path"), notes)
    attributes = read_attributes(values, mapping.get("attributes", ()), notes)
    pictures: list[dict[str, Any]] = []
    if mapping.get("images"):
        cells = [image_cell(values, column) for column in mapping["images"]]
        pictures, problems = read_pictures(cells, row.folder, image_root, max_side, within, max_pixels)
        notes.extend(problems)
    if not title and not pictures:
        lost = "; ".join(f"{code} {detail}".strip() for code, detail in notes)
        return Dropped(row.place, NOTHING, lost[:300])
    product = {
        "product_id": product_id,
        "title": title,
        "description": " ".join(texts)[:MAX_DESCRIPTION].rstrip(),
        "category_path": category_path,
        "attributes": attributes,
        "images": pictures,
    }
    return Cleaned(product, tuple(notes), _aliases(values, mapping, product_id))


def _aliases(values: Mapping[str, Any], mapping: Mapping[str, Sequence[Column]], own: str) -> tuple[str, ...]:
    """The ids in the columns of aliases, each a cell or the parts of a list, without the product's own."""
    cells = [cell if isinstance(cell, list) else [cell] for cell in _cells(values, mapping, "aliases")]
    found = dict.fromkeys(clean_id(part) for parts in cells for part in parts[:MAX_COLLECTED])
    return tuple(name for name in found if name and name != own)


def _cells(values: Mapping[str, Any], mapping: Mapping[str, Sequence[Column]], field: str) -> list[Any]:
    columns = mapping.get(field)
    return [values.get(column) for column in columns] if columns else []


def image_cell(values: Mapping[str, Any], column: str) -> Any:
    """What stands in a column of images; of one that is a pattern of paths, the path that the row makes of it."""
    if column in values or "{" not in column:
        return values.get(column)
    names = {name: clean_text(values.get(name), MAX_NAME)[0] for name in TEMPLATE.findall(column)}
    return TEMPLATE.sub(lambda match: names[match[1]], column) if all(names.values()) else None
