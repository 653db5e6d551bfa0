"""The training examples: a query, the product it led to, and optionally a product that it did not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from modeling_moon2.processing_moon2 import load_image
from moon2_dataset import ProductQueries

from .encoded_pictures import decode_picture
from .query_photo import MAX_SIDE, make_query_photo
from .word_dropout import drop_words

MAX_DRAWS = 32  # rejected draws before a negative is looked for exhaustively


class TripletKey(NamedTuple):
    """Which row, in which epoch: together they fix everything random about an example.

    `mined` are product rows, the hardest negatives of its product as the model stands; none if it is empty.
    """

    index: int
    epoch: int = 0
    mined: tuple[int, ...] = ()


class Item(NamedTuple):
    """Text, as the processor takes it, and pictures of one row; the keys are 0 for a query."""

    text: str | dict[str, Any] | None
    images: list[Image.Image]
    product_key: int = 0
    title_key: int = 0

    @property
    def is_empty(self) -> bool:
        return not (self.text or self.images)


class Triplet(NamedTuple):
    """(q, p, n); `negative` is None where negatives come from the batch, `positive_keys` are all right products,
    `unreadable` names the pictures that could not be read and were left out, `emptied` the queries and products of
    which nothing was left, so that others came in their place, and `made_photo` says that the query's photo is not the
    shopper's but was made from a picture of p.
    """

    query: Item
    positive: Item
    negative: Item | None
    positive_keys: tuple[int, ...]
    unreadable: tuple[str, ...] = ()
    emptied: tuple[str, ...] = ()
    made_photo: bool = False


class Picture(NamedTuple):
    """One picture of a row before it is opened: what messages call it, the image, and the part of it that counts."""

    name: str
    image: Any
    box: tuple[float, ...] = ()  # left, top, right, bottom in shares; empty for all of it


class TripletDataset(Dataset):
    """Map-style examples over the query rows of a catalogue with its click log.

    The query's photo is the log's own, else made from a picture of the product, another than the positive shows where
    there is one. All chance (photo, choice of pictures, negative) comes from (seed, epoch, index), so an example is
    the same in every process and after a resume. `label_noise` is never read.

    Items of p and n may be co-augmented where the catalogue has the columns for it: their title is then T⁺
    (`enriched_title`), their pictures variants (`expanded_images`) or the product cut out of its first picture
    (`core_region`). Queries are not, nor the pictures that their photos are made from; and with or without it an
    example has the same photo, the same choice of originals and the same negative.

    Args:
        data: catalogue and queries.
        negatives: "in_batch" gives no n; "explicit" one of the query's `negative_ids`, else one of the key's `mined`,
            else a random product of the positive's leaf category, else of the catalogue, never a right product nor one
            of the positive's title.
        seed: seed of all chance.
        item_text_fields: what the text of p and n holds: "title", "category", "attributes".
        max_images_per_item: most pictures of a product in one item, drawn anew each epoch.
        on_bad_image: "raise" at a picture that cannot be read, or "skip" it and name it in the triplet. Where query or
            p have nothing else the next query row is taken instead, and for n another product.
        enriched_title_share: probability that an item's title is T⁺, where it has one.
        expanded_image_share: probability that a picture of an item is replaced by one of its expanded images or by
            the crop of its core region, all equally likely and none twice in an item.
        word_dropout: probability that a word is left out of a query's text or an item's title.
        pixel_budget: most pixels that the model sees of a picture; a JPEG of many times as many is then decoded at a
            fraction of its size, but no smaller than the photos made from it.

    Raises:
        ValueError: (when an example is read) a picture cannot be read, names the product or query; or there is no n,
            or nothing left of any row.
    """

    def __init__(
        self,
        data: ProductQueries,
        negatives: str = "in_batch",
        seed: int = 0,
        item_text_fields: Sequence[str] = ("title",),
        max_images_per_item: int = 1,
        on_bad_image: str = "raise",
        enriched_title_share: float = 0.5,
        expanded_image_share: float = 0.15,
        word_dropout: float = 0.0,
        pixel_budget: int | None = None,
    ) -> None:
        self.data = data
        self.negatives = negatives
        self.seed = seed
        self.item_text_fields = tuple(item_text_fields)
        self.max_images_per_item = max_images_per_item
        self.on_bad_image = on_bad_image
        self.enriched_title_share = enriched_title_share
        self.expanded_image_share = expanded_image_share
        self.word_dropout = word_dropout
        self.decoded_pixels = None if pixel_budget is None else max(pixel_budget, (MAX_SIDE // 2) ** 2)
        order = np.argsort(data.leaf, kind="stable")
        self._rows_of_leaf = np.split(order, np.flatnonzero(np.diff(data.leaf[order])) + 1)
        self._all_rows = np.arange(len(data.products))
        self._leaf_position = np.unique(data.leaf, return_inverse=True)[1]  # (N,) index into _rows_of_leaf

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: TripletKey | int) -> Triplet:
        index, epoch, mined = key if isinstance(key, tuple) else TripletKey(key)
        unreadable: list[str] = []
        emptied: list[str] = []
        for further in range(len(self)):
            triplet = self._example(
                (index + further) % len(self), epoch, () if further else mined, unreadable, emptied
            )
            if triplet is not None:
                return triplet._replace(
                    unreadable=tuple(dict.fromkeys(unreadable)), emptied=tuple(dict.fromkeys(emptied))
                )
        raise ValueError(
            f"{emptied[0]} and all other rows: nothing is left of the query or of its product; mend the pictures, or "
            "give item_text_fields that the products have"
        )

    def _example(
        self, index: int, epoch: int, mined: Sequence[int], unreadable: list[str], emptied: list[str]
    ) -> Triplet | None:
        """The triplet of a row, None where nothing is left of its query or of p; what is lost goes to the lists."""
        rng = np.random.default_rng([self.seed, epoch, index])
        data = self.data
        query = data.queries[index]
        row = int(data.positive_row[index])
        product = data.products[row]
        positive_ids = data.positives[query["query_id"]]
        positive_rows = [data.product_index[product_id] for product_id in positive_ids]

        # streams of their own, so that the draws of `rng` stay those of the originals
        augmenting, dropping = rng.spawn(2)
        originals = self._choose_pictures(product, rng)
        shown = self._stand_ins(product, originals, augmenting)
        positive = self._item(row, product, originals, shown, augmenting, dropping, unreadable)
        if query["image"] is not None:
            photos = self._open([Picture(f"query {query['query_id']}", query["image"])], unreadable)
        else:
            opened = positive.images if shown == originals else None
            photos = self._make_photo(product, originals, opened, rng, unreadable)
        text = query["text"]
        if not (photos or text and text.strip()):
            emptied.append(f"query {query['query_id']}")
            return None
        if text:
            text = drop_words(text, self.word_dropout, dropping)
        if positive.is_empty:
            emptied.append(f"product {product['product_id']}")
            return None
        negative = None
        left_out = set(positive_rows)
        while self.negatives == "explicit" and negative is None:
            negative_row = self._draw_negative(query, row, left_out, mined, rng)
            other = data.products[negative_row]
            originals = self._choose_pictures(other, rng)
            shown = self._stand_ins(other, originals, augmenting)
            negative = self._item(negative_row, other, originals, shown, augmenting, dropping, unreadable)
            if negative.is_empty:
                emptied.append(f"product {other['product_id']}")
                left_out.add(negative_row)
                negative = None
        return Triplet(
            query=Item(text, photos),
            positive=positive,
            negative=negative,
            positive_keys=tuple(int(data.product_key[r]) for r in positive_rows),
            made_photo=query["image"] is None,
        )

    def _choose_pictures(self, product: dict[str, Any], rng: np.random.Generator) -> list[Picture]:
        """The pictures that an item shows, in the catalogue's order."""
        pictures = _pictures(product)
        if len(pictures) <= self.max_images_per_item:
            return pictures
        return [pictures[n] for n in np.sort(rng.choice(len(pictures), self.max_images_per_item, replace=False))]

    def _stand_ins(
        self, product: dict[str, Any], originals: list[Picture], augmenting: np.random.Generator
    ) -> list[Picture]:
        """The pictures that an item shows, some of them replaced by what co-augmentation made."""
        name = f"product {product['product_id']}"
        made = [
            Picture(f"{name}, expanded image {number}", image)
            for number, image in enumerate(product.get("expanded_images") or ())
        ]
        if originals and product.get("core_region"):
            made.append(Picture(f"{name}, core region", product["images"][0], tuple(product["core_region"])))
        if not made:
            return originals
        replaced = augmenting.random(len(originals)) < self.expanded_image_share
        order = iter(augmenting.permutation(len(made)))
        numbers = [next(order, None) if replace else None for replace in replaced]
        return [
            original if number is None else made[number] for original, number in zip(originals, numbers, strict=True)
        ]

    def _make_photo(
        self,
        product: dict[str, Any],
        originals: list[Picture],
        opened: list[Image.Image] | None,
        rng: np.random.Generator,
        unreadable: list[str],
    ) -> list[Image.Image]:
        """A photo made from an original that the positive does not show, if there is another; else from `originals`,
        which are `opened` if they need not be read again.
        """
        hidden = [picture for picture in _pictures(product) if picture not in originals]
        sources = self._open([hidden[rng.integers(len(hidden))]], unreadable) if hidden else []
        if not sources:
            sources = self._open(originals, unreadable) if opened is None else opened
        return [make_query_photo(sources[rng.integers(len(sources))], rng)] if sources else []

    def _item(
        self,
        row: int,
        product: dict[str, Any],
        originals: list[Picture],
        shown: list[Picture],
        augmenting: np.random.Generator,
        dropping: np.random.Generator,
        unreadable: list[str],
    ) -> Item:
        """Text and pictures of p or n; an original comes back for what replaces it and cannot be read."""
        pictures: list[Image.Image] = []
        for picture, original in zip(shown, originals, strict=True):
            opened = self._open([picture], unreadable)
            if not opened and picture is not original:
                opened = self._open([original], unreadable)
            pictures += opened
        enriched = product.get("enriched_title")
        if enriched and enriched.strip() and augmenting.random() < self.enriched_title_share:
            product = product | {"title": enriched}
        if product["title"]:
            product = product | {"title": drop_words(product["title"], self.word_dropout, dropping)}
        text = item_text(product, self.item_text_fields)
        return Item(text, pictures, int(self.data.product_key[row]), int(self.data.title_key[row]))

    def _open(self, pictures: Sequence[Picture], unreadable: list[str]) -> list[Image.Image]:
        """Decode pictures; the name of one that cannot be read goes to `unreadable`, if that is no error."""
        opened = []
        for name, image, box in pictures:
            if self.decoded_pixels is not None and not box:
                image = decode_picture(image, self.decoded_pixels)
            try:
                image = load_image(image)
                opened.append(load_image(_cut_out(image, box)) if box else image)
            except ValueError as error:
                if self.on_bad_image == "raise":
                    raise ValueError(f"{name}: {error}") from error
                unreadable.append(name)
        return opened

    def _draw_negative(
        self,
        query: dict[str, Any],
        positive_row: int,
        left_out: set[int],
        mined: Sequence[int],
        rng: np.random.Generator,
    ) -> int:
        """Row of a product that the query did not mean, and none of those left out."""
        data = self.data
        title = data.title_key[positive_row]
        leaf_rows = self._rows_of_leaf[self._leaf_position[positive_row]]
        listed = np.array([data.product_index[i] for i in query.get("negative_ids") or ()], dtype=np.int64)
        for pool in (listed, np.array(mined, dtype=np.int64), leaf_rows, self._all_rows):
            for _ in range(MAX_DRAWS if len(pool) else 0):
                row = int(pool[rng.integers(len(pool))])
                if row not in left_out and data.title_key[row] != title:
                    return row
            allowed = np.setdiff1d(pool[data.title_key[pool] != title], list(left_out))
            if len(allowed):
                return int(rng.choice(allowed))
        raise ValueError(
            f"query {query['query_id']}: every product of the catalogue is right, or nothing is left of "
            "it; no negative exists"
        )


def _pictures(product: dict[str, Any]) -> list[Picture]:
    """The pictures of a product as the catalogue has them."""
    name = f"product {product['product_id']}"
    return [Picture(f"{name}, image {number}", image) for number, image in enumerate(product["images"])]


def _cut_out(image: Image.Image, box: tuple[float, ...]) -> Image.Image:
    """A box in shares of the image, widened to whole pixels."""
    left, top, right, bottom = box
    width, height = image.size
    return image.crop(
        (math.floor(left * width), math.floor(top * height), math.ceil(right * width), math.ceil(bottom * height))
    )


def item_text(product: dict[str, Any], fields: Sequence[str] = ("title",)) -> str | dict[str, Any] | None:
    """The chosen fields of a product as the processor takes them: a mapping of those that it has, or just the title.

    Returns:
        None if all are empty.
    """
    parts = {"title": product["title"], "category": product["category_path"], "attributes": product["attributes"]}
    given = {field: parts[field] for field in fields if parts[field]}
    return given.get("title") if set(given) <= {"title"} else given
