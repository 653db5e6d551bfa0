"""Encode many items: batches of similar length, pictures decoded in the background, results in the order given."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel, AutoProcessor, BatchFeature, PreTrainedModel, ProcessorMixin

from modeling_moon2 import Moon2Config, Moon2Routing
from modeling_moon2.processing_moon2 import text_parts

VIEWS = ("text", "image", "multimodal")
BATCHES_PER_WINDOW = 64  # items are sorted by length within a window, so that reading stays nearly sequential
CHARACTERS_PER_TOKEN = 4
IMAGES_PER_PRODUCT = 4
# What differs between a model in memory and the same one saved and loaded; the weights tell their types themselves.
NOT_IN_FINGERPRINT = ("_name_or_path", "architectures", "auto_map", "dtype", "processor_class", "transformers_version")
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class Views(NamedTuple):
    """Embeddings of N items in three views, zero where an item lacks the view.

    Args:
        text: (N, D) float32, normalised.
        image: (N, D) float32, normalised.
        multimodal: (N, D) float32, normalised; of whatever the item has.
        has_text: (N,) bool.
        has_image: (N,) bool.
    """

    text: np.ndarray
    image: np.ndarray
    multimodal: np.ndarray
    has_text: np.ndarray
    has_image: np.ndarray


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


class Encoder:
    """Encode sequences of items with a MOON2.0 model on the device where it stands.

    An item is {"text": str | fields | None, "images": list}; for fields see the processor's `text_parts`. An image is
    a PIL image, bytes, a path, a numpy array or an undecoded {"bytes", "path"} of `datasets`. Errors call an item by
    its index, or by its "name" if it has one. Items are read twice, for their length and when their batch comes, and
    not kept, so memory stays bounded for a sequence backed by files of any size.

    Args:
        model: a Moon2Model.
        processor: its Moon2Processor.
        batch_size: items per forward.

    Example:
        >>> encoder = Encoder(model, processor)
        >>> encoder.encode([{"text": "red mug", "images": []}], view="text").shape
        (1, 256)
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, batch_size: int = 64) -> None:
        self.model = model
        self.processor = processor
        self.batch_size = batch_size
        self.width = model.config.get_text_config().hidden_size

    def encode(self, items: Sequence[dict[str, Any]], view: str = "multimodal", progress: bool = True) -> np.ndarray:
        """Encode one view of every item.

        Args:
            items: N items.
            view: "text", "image" or "multimodal"; the last takes whatever an item has.
            progress: show a bar.

        Returns:
            (N, D) float32, normalised.

        Raises:
            ValueError: an item lacks the view or cannot be read; the message names the item.
        """
        if view not in VIEWS:
            raise ValueError(f"view is {view!r}; choose one of {', '.join(VIEWS)}")
        embeddings = np.empty((len(items), self.width), dtype=np.float32)
        for rows, output in self._forward(items, view, progress, return_views=False):
            embeddings[rows] = output.embeddings.cpu().numpy()
        return embeddings

    def encode_views(self, items: Sequence[dict[str, Any]], progress: bool = True) -> Views:
        """Encode the text, the image and the multimodal view of every item in one pass.

        Args:
            items: N items, each with text, images or both.
            progress: show a bar.

        Raises:
            ValueError: an item has neither or cannot be read; the message names the item.
        """
        embeddings = [np.zeros((len(items), self.width), dtype=np.float32) for _ in VIEWS]
        masks = [np.zeros(len(items), dtype=bool) for _ in range(2)]
        views = Views(*embeddings, *masks)
        for rows, output in self._forward(items, "multimodal", progress, return_views=True):
            views.text[rows] = output.text_embeddings.cpu().numpy()
            views.image[rows] = output.image_embeddings.cpu().numpy()
            views.multimodal[rows] = output.multimodal_embeddings.cpu().numpy()
            views.has_text[rows] = output.has_text.cpu().numpy()
            views.has_image[rows] = output.has_image.cpu().numpy()
        return views

    def routing(self, items: Sequence[dict[str, Any]], progress: bool = True) -> Iterator[Moon2Routing | None]:
        """Yield the routing statistics of every batch, whose order is not that of the items; None of a dense model.

        Args:
            items: N items, each with text, images or both.
            progress: show a bar.

        Raises:
            ValueError: an item has neither or cannot be read; the message names the item.
        """
        for _, output in self._forward(items, "multimodal", progress, return_views=True):
            yield output.routing

    def _forward(
        self, items: Sequence[dict[str, Any]], view: str, progress: bool, return_views: bool
    ) -> Iterator[tuple[np.ndarray, Any]]:
        """Yield rows and the model's output of every batch; batch i + 1 is prepared while the model runs batch i."""
        batches = self._prepared(items, view)
        was_training = self.model.training
        self.model.eval()
        try:
            with tqdm(total=len(items), unit="item", disable=not progress) as bar, ThreadPoolExecutor(1) as background:
                following = background.submit(next, batches, None)
                while (batch := following.result()) is not None:
                    following = background.submit(next, batches, None)
                    rows, inputs = batch
                    with torch.no_grad():  # what FSDP gathers in inference mode would break the training step after it
                        output = self.model(**inputs.to(self.model.device), return_views=return_views)
                    yield rows, output
                    bar.update(len(rows))
        finally:
            self.model.train(was_training)

    def _prepared(self, items: Sequence[dict[str, Any]], view: str) -> Iterator[tuple[np.ndarray, BatchFeature]]:
        """Yield rows and model inputs, longest items of a window first, so that too big a batch fails at once."""
        window = self.batch_size * BATCHES_PER_WINDOW
        for start in range(0, len(items), window):
            rows = range(start, min(start + window, len(items)))
            lengths = np.array([self._estimated_length(*take_view(items[row], row, view)) for row in rows])
            longest_first = start + np.argsort(-lengths, kind="stable")
            for first in range(0, len(rows), self.batch_size):
                batch = longest_first[first : first + self.batch_size]
                yield batch, self._inputs(items, batch.tolist(), view)

    def _estimated_length(self, text: str | Mapping | None, images: list) -> int:
        """Tokens of an item, from the length of its text and the headers of its images."""
        characters = sum(len(part) for _, part in text_parts(text))
        length = min(characters // CHARACTERS_PER_TOKEN, self.processor.tokenizer.model_max_length)
        image_processor = self.processor.image_processor
        for image in images:
            try:
                patches = image_processor.get_number_of_image_patches(*_height_width(image))
            except UNREADABLE:  # said with the item's name when its batch is made
                continue
            length += patches // image_processor.merge_size**2
        return length

    def _inputs(self, items: Sequence[dict[str, Any]], rows: list[int], view: str) -> BatchFeature:
        texts, images = zip(*(take_view(items[row], row, view) for row in rows), strict=True)
        budget = self.processor.image_processor.size["longest_edge"]
        images = [[_decode(image, budget) for image in of_item] for of_item in images]
        try:
            return self.processor(text=list(texts), images=images, return_tensors="pt")
        except ValueError:
            for row, text, of_item in zip(rows, texts, images, strict=True):
                try:
                    self.processor(text=[text], images=[of_item], return_tensors="pt")
                except ValueError as error:
                    raise ValueError(f"{item_name(items[row], row)}{str(error).removeprefix('item 0')}") from error
            raise


def load_encoder(model_id: str | os.PathLike, **options: Any) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a model, in evaluation mode, and its processor onto the accelerator, or the CPU where there is none.

    Args:
        model_id: folder of a saved model, or its id on the Hub.
        options: for `AutoModel.from_pretrained`, such as attn_implementation.

    Raises:
        FileNotFoundError: there is no model in the folder, or none of that name on the Hub.
        ValueError: it is a model of another kind.
    """
    if Path(model_id).is_dir() and not (Path(model_id) / "config.json").is_file():
        raise FileNotFoundError(f"{model_id}: no config.json there; give the folder of a saved model")
    try:
        config = AutoConfig.from_pretrained(model_id, trust_remote_code=True)
    except OSError as error:
        raise FileNotFoundError(f"{model_id}: no such folder, and no model of that name on the Hub") from error
    if config.model_type != Moon2Config.model_type:
        raise ValueError(f"{model_id}: holds a {config.model_type} model; give a MOON2.0 one")
    model = AutoModel.from_pretrained(model_id, trust_remote_code=True, **options)
    processor = AutoProcessor.from_pretrained(model_id, trust_remote_code=True)
    if "device_map" not in options:
        model = model.to(torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu"))
    return model.eval(), processor


def encoder_fingerprint(model: PreTrainedModel, processor: ProcessorMixin) -> str:
    """Hash what an embedding depends on: the weights with their names and types, the configuration, the processor.

    The same for a model in memory, saved and loaded again, wherever it stands; another where it is loaded in another
    type, for then it answers with other numbers.

    Args:
        model: a Moon2Model.
        processor: its Moon2Processor.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    tokenizer = processor.tokenizer
    parts = [model.config.to_dict(), processor.image_processor.to_dict()]
    parts += [tokenizer.backend_tokenizer.to_str(), tokenizer.model_max_length, processor.chat_template]
    digest.update(json.dumps([_told(part) for part in parts], sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _told(part: Any) -> Any:
    """A part of a configuration without what says where it came from."""
    if isinstance(part, Mapping):
        return {str(key): _told(value) for key, value in part.items() if key not in NOT_IN_FINGERPRINT}
    return part


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


def _file(image: Any) -> io.BytesIO | str | os.PathLike | None:
    """What `Image.open` reads an encoded image from; None for one that is decoded."""
    if isinstance(image, dict):
        image = image["bytes"] or image["path"]
    if isinstance(image, bytes | bytearray | memoryview):
        return io.BytesIO(image)
    return image if isinstance(image, str | os.PathLike) else None


def _height_width(image: Any) -> tuple[int, int]:
    """Size of an image in pixels, read from the header if it is encoded."""
    file = _file(image)
    if file is None:
        height, width = image.size[::-1] if isinstance(image, Image.Image) else np.shape(image)[:2]
        return height, width
    with Image.open(file) as opened:
        return opened.height, opened.width


def _decode(image: Any, budget: int) -> Any:
    """Decode an encoded JPEG, one of many times the model's pixel budget directly at a fraction of its size.

    Along each side at least twice what the budget allows is kept, so the resizing that follows still does the
    filtering. Other images are left to the processor.
    """
    file = _file(image)
    if file is None:
        return image
    try:
        with Image.open(file) as opened:
            if not isinstance(opened, JpegImageFile):
                return image
            scale = math.sqrt(4 * budget / (opened.width * opened.height))
            opened.draft(None, (math.ceil(opened.width * scale), math.ceil(opened.height * scale)))
            opened.load()
            return opened
    except UNREADABLE:  # the processor says what is wrong
        return image
