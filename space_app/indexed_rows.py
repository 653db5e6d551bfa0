"""Products as rows of an index: the columns of its table, the keys that tell what has changed, thumbnails."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from modeling_moon2.processing_moon2 import load_image
from moon2_training.items import IMAGES_PER_PRODUCT
from moon2_training.vector_columns import (
    DIGEST_BYTES,
    VECTOR_COLUMNS,
    digest_of,
    encoded_digest,
    picture_digest,
    vector_array,
)

from .filters import filter_columns

THUMBNAIL_SIDE = 320  # pixels
THUMBNAIL_QUALITY = 80
PRODUCT_COLUMNS = ("product_id", "title", "description", "category_path", "attributes", "images")
SHOWN_COLUMNS = ("product_id", "title", "description", "category_path", "attributes", "thumbnail")


def row_schema(dimension: int) -> pa.Schema:
    """The table of an index: a product, what is made of it, and (dimension,) float32 of each view or null."""
    text, key, vector = pa.string(), pa.binary(DIGEST_BYTES), pa.list_(pa.float32(), dimension)
    return pa.schema(
        [
            pa.field("product_id", text, nullable=False),
            ("title", text),
            ("description", text),
            ("category_path", pa.list_(text)),
            ("attributes", pa.list_(pa.struct([("name", text), ("value", text)]))),
            ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", text)]))),
            ("thumbnail", pa.binary()),
            ("category_key", text),
            ("attribute_key", text),
            ("content_key", key),
            ("encoded_key", key),
            *((column, vector) for column in VECTOR_COLUMNS),
        ]
    )


def product_row(product: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a product that need no encoder.

    Args:
        product: in the products schema; at most four of its pictures are kept.

    Returns:
        The product, the columns that filters look into, and two keys: `encoded_key` changes with what is encoded,
        title and pictures, `content_key` with anything.

    Raises:
        ValueError: it has no id, neither title nor picture, or a picture without bytes.
    """
    row = {
        "product_id": product["product_id"],
        "title": product["title"] or "",
        "description": product.get("description") or "",
        "category_path": list(product.get("category_path") or []),
        "attributes": [{"name": a["name"], "value": a["value"]} for a in product.get("attributes") or []],
        "images": [
            {"bytes": image["bytes"], "path": image.get("path")}
            for image in (product.get("images") or [])[:IMAGES_PER_PRODUCT]
        ],
    }
    if not row["product_id"]:
        raise ValueError("no product_id; give every product an id")
    if not row["title"].strip() and not row["images"]:
        raise ValueError("neither title nor image; give at least one")
    if not all(image["bytes"] for image in row["images"]):
        raise ValueError(
            "a picture without bytes; read its file first, paths are not followed"
        )  # they may go anywhere
    pictures = [picture_digest(image["bytes"]) for image in row["images"]]
    told = [row["description"], row["category_path"], row["attributes"]]
    keys = {
        "content_key": digest_of([row["title"], pictures, told]),
        "encoded_key": encoded_digest(row["title"], pictures),
    }
    return row | filter_columns(row) | keys


def rows_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows with all columns of `row_schema` as a table."""
    columns = []
    for field in schema:
        values = [row[field.name] for row in rows]
        if pa.types.is_fixed_size_list(field.type):
            there = np.array([value is not None for value in values])
            vectors = np.zeros((len(values), field.type.list_size), dtype=np.float32)
            for place in np.flatnonzero(there):
                vectors[place] = values[place]
            columns.append(vector_array(vectors, there).cast(field.type))
        else:
            columns.append(pa.array(values, field.type))
    return pa.table(columns, schema=schema)


def row_item(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as an item to encode."""
    return {"name": f"product {row['product_id']}", "text": row["title"] or None, "images": row["images"]}


def make_thumbnail(picture: bytes) -> bytes:
    """A picture as WebP of at most 320 pixels.

    Raises:
        ValueError: it cannot be read.
    """
    image = load_image(picture)
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=THUMBNAIL_QUALITY)
    return buffer.getvalue()
