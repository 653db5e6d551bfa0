"""What an encoder takes: products and queries of tables as items, and the views of an item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from modeling_moon2.processing_moon2 import text_parts

IMAGES_PER_PRODUCT = 4


class ProductItems(Sequence):
    """The products of a table as items to encode: title and images, at most four.

    Args:
        products: in the products schema.
    """

    def __init__(self, products: Dataset) -> None:
        self.products = products.select_columns(["product_id", "title", "images"])

    def __len__(self) -> int:
        return len(self.products)

    def __getitem__(self, row: int) -> dict[str, Any]:
        product = self.products[row]
        return {
            "name": f"product {product['product_id']}",
            "text": product["title"],
            "images": product["images"][:IMAGES_PER_PRODUCT],
        }


class QueryItems(Sequence):
    """Queries of a table as items to encode: text and image.

    Args:
        queries: in the queries schema.
        rows: which of them.
    """

    def __init__(self, queries: Dataset, rows: Sequence[int]) -> None:
        self.queries = queries.select_columns(["query_id", "text", "image"])
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        query = self.queries[self.rows[index]]
        return {
            "name": f"query {query['query_id']}",
            "text": query["text"],
            "images": [] if query["image"] is None else [query["image"]],
        }


def item_name(item: dict[str, Any], row: int) -> str:
    """What messages call an item."""
    return item.get("name", f"item {row}")


def take_view(item: dict[str, Any], row: int, view: str) -> tuple[str | Mapping | None, list]:
    """Text and images of one item as far as the view holds them.

    Raises:
        ValueError: the item lacks the view; the message names the item.
    """
    text, images = item["text"], item["images"]
    try:
        has_text, has_image = bool(text_parts(text)), bool(images)
    except ValueError as error:
        raise ValueError(f"{item_name(item, row)}: {error}") from error
    if view == "text" and not has_text:
        raise ValueError(f"{item_name(item, row)} has no text, which the text view needs; leave it out")
    if view == "image" and not has_image:
        raise ValueError(f"{item_name(item, row)} has no image, which the image view needs; leave it out")
    if not (has_text or has_image):
        raise ValueError(f"{item_name(item, row)} has neither text nor image; give at least one")
    return (None if view == "image" else text), ([] if view == "text" else images)
