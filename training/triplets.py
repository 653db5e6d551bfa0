"""The training examples: a query, the product it led to, and optionally a product that it did not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from modeling_moon2.processing_moon2 import load_image
from moon2_dataset import ProductQueries

from .query_photo import make_query_photo

MAX_DRAWS = 32  # rejected draws before a negative is looked for exhaustively


class TripletKey(NamedTuple):
    """Which row, in which epoch: together they fix everything random about an example."""

    index: int
    epoch: int = 0


class Item(NamedTuple):
    """Text, as the processor takes it, and pictures of one row; the keys are 0 for a query."""

    text: str | dict[str, Any] | None
    images: list[Image.Image]
    product_key: int = 0
    title_key: int = 0


class Triplet(NamedTuple):
    """(q, p, n); `negative` is None where negatives come from the batch, `positive_keys` are all right products,
    `unreadable` names the pictures that could not be read and were left out.
    """

    query: Item
    positive: Item
    negative: Item | None
    positive_keys: tuple[int, ...]
    unreadable: tuple[str, ...] = ()


class TripletDataset(Dataset):
    """Map-style examples over the query rows of a catalogue with its click log.

    The query's photo is the log's own, else made from a picture of the product, another than the positive shows where
    there is one. All chance (photo, choice of pictures, negative) comes from (seed, epoch, index), so an example is
    the same in every process and after a resume. `label_noise` is never read.

    Args:
        data: catalogue and queries.
        negatives: "in_batch" gives no n; "explicit" one of the query's `negative_ids`, else one that was mined, else a
            random product of the positive's leaf category, else of the catalogue, never a right product nor one of the
            positive's title.
        seed: seed of all chance.
        item_text_fields: what the text of p and n holds: "title", "category", "attributes".
        max_images_per_item: most pictures of a product in one item, drawn anew each epoch.
        mined_per_product: places for mined negatives of each product; see `mined`.
        on_bad_image: "raise" at a picture that cannot be read, or "skip" it and name it in the triplet.

    Raises:
        ValueError: (when an example is read) a picture cannot be read; names the product or query.
    """

    def __init__(
        self,
        data: ProductQueries,
        negatives: str = "in_batch",
        seed: int = 0,
        item_text_fields: Sequence[str] = ("title",),
        max_images_per_item: int = 1,
        on_bad_image: str = "raise",
        mined_per_product: int = 0,
    ) -> None:
        self.data = data
        self.negatives = negatives
        self.seed = seed
        self.item_text_fields = tuple(item_text_fields)
        self.max_images_per_item = max_images_per_item
        self.on_bad_image = on_bad_image
        # (N, K) rows of hard negatives, -1 for none: shared, so that what is mined reaches reading processes
        self.mined = torch.full((len(data.products), mined_per_product), -1, dtype=torch.int64).share_memory_()
        order = np.argsort(data.leaf, kind="stable")
        self._rows_of_leaf = np.split(order, np.flatnonzero(np.diff(data.leaf[order])) + 1)
        self._all_rows = np.arange(len(data.products))
        self._leaf_position = np.unique(data.leaf, return_inverse=True)[1]  # (N,) index into _rows_of_leaf

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: TripletKey | int) -> Triplet:
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        rng = np.random.default_rng([self.seed, epoch, index])
        data = self.data
        query = data.queries[index]
        row = int(data.positive_row[index])
        product = data.products[row]
        positive_ids = data.positives[query["query_id"]]
        positive_rows = [data.product_index[product_id] for product_id in positive_ids]

        unreadable: list[str] = []
        positive = self._item(row, product, shown := self._choose_pictures(product["images"], rng), unreadable)
        if query["image"] is not None:
            photos = self._open([query["image"]], [f"query {query['query_id']}"], unreadable)
        else:
            photos = self._make_photo(product, shown, positive.images, rng, unreadable)
        text = query["text"]
        if not (photos or text and text.strip()):
            text = query["query_id"]  # nothing of it is left
        negative = None
        if self.negatives == "explicit":
            negative_row = self._draw_negative(query, row, set(positive_rows), rng)
            other = data.products[negative_row]
            negative = self._item(negative_row, other, self._choose_pictures(other["images"], rng), unreadable)
        return Triplet(
            query=Item(text, photos),
            positive=positive,
            negative=negative,
            positive_keys=tuple(int(data.product_key[r]) for r in positive_rows),
            unreadable=tuple(unreadable),
        )

    def _choose_pictures(self, images: list, rng: np.random.Generator) -> np.ndarray:
        """Indices of the pictures that an item shows, in the catalogue's order."""
        if len(images) <= self.max_images_per_item:
            return np.arange(len(images))
        return np.sort(rng.choice(len(images), self.max_images_per_item, replace=False))

    def _make_photo(
        self,
        product: dict[str, Any],
        shown: np.ndarray,
        opened: list[Image.Image],
        rng: np.random.Generator,
        unreadable: list[str],
    ) -> list[Image.Image]:
        """A photo made from a picture that the positive does not show, if there is another."""
        hidden = [number for number in range(len(product["images"])) if number not in shown]
        if hidden:
            number = hidden[rng.integers(len(hidden))]
            name = f"product {product['product_id']}, image {number}"
            opened = self._open([product["images"][number]], [name], unreadable) or opened
        return [make_query_photo(opened[rng.integers(len(opened))], rng)] if opened else []

    def _item(self, row: int, product: dict[str, Any], shown: np.ndarray, unreadable: list[str]) -> Item:
        names = [f"product {product['product_id']}, image {number}" for number in shown]
        pictures = self._open([product["images"][number] for number in shown], names, unreadable)
        text = item_text(product, self.item_text_fields)
        if text is None and not pictures:
            text = product["product_id"]  # nothing of it is left
        return Item(text, pictures, int(self.data.product_key[row]), int(self.data.title_key[row]))

    def _open(self, images: Sequence[Any], names: Sequence[str], unreadable: list[str]) -> list[Image.Image]:
        """Decode pictures; the name of one that cannot be read goes to `unreadable`, if that is no error."""
        opened = []
        for image, name in zip(images, names, strict=True):
            try:
                opened.append(load_image(image))
            except ValueError as error:
                if self.on_bad_image == "raise":
                    raise ValueError(f"{name}: {error}") from error
                unreadable.append(name)
        return opened

    def _draw_negative(
        self, query: dict[str, Any], positive_row: int, right: set[int], rng: np.random.Generator
    ) -> int:
        """Row of a product that the query did not mean."""
        data = self.data
        title = data.title_key[positive_row]
        leaf_rows = self._rows_of_leaf[self._leaf_position[positive_row]]
        listed = np.array([data.product_index[i] for i in query.get("negative_ids") or ()], dtype=np.int64)
        mined = self.mined[positive_row].numpy()
        for pool in (listed, mined[mined >= 0], leaf_rows, self._all_rows):
            for _ in range(MAX_DRAWS if len(pool) else 0):
                row = int(pool[rng.integers(len(pool))])
                if row not in right and data.title_key[row] != title:
                    return row
            allowed = np.setdiff1d(pool[data.title_key[pool] != title], list(right))
            if len(allowed):
                return int(rng.choice(allowed))
        raise ValueError(f"query {query['query_id']}: every product of the catalogue is right; no negative exists")


def item_text(product: dict[str, Any], fields: Sequence[str] = ("title",)) -> str | dict[str, Any] | None:
    """The chosen fields of a product as the processor takes them: a mapping of those that it has, or just the title.

    Returns:
        None if all are empty.
    """
    parts = {"title": product["title"], "category": product["category_path"], "attributes": product["attributes"]}
    given = {field: parts[field] for field in fields if parts[field]}
    return given.get("title") if set(given) <= {"title"} else given
