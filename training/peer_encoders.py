"""Encoders of other makes behind the interface of `Encoder`, so that one evaluation judges them all."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import normalize
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.utils import cached_file

from modeling_moon2 import Moon2Config
from modeling_moon2.processing_moon2 import load_image, text_parts
from moon2_dataset.augment.consistency import DUAL_ENCODERS, image_features, text_features

from .encode import VIEWS, Encoder, Views
from .items import QueryItems, item_name, take_view
from .saved_encoder import load_encoder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class PeerEncoder(ABC):
    """Encodes the items that `Encoder` takes with a model of another make.

    Late fusion stands in for what a model cannot do: the multimodal view is the normalised sum of the normalised text
    and image vectors, and the image view of an item with several images the normalised mean of theirs. A model that
    takes no images gives the text view alone, and an item's multimodal view is of what the model can encode of it.

    Args:
        model: with a `device` and a `dtype`.
        batch_size: items per forward.
    """

    takes_images = True

    def __init__(self, model: torch.nn.Module, batch_size: int = 64) -> None:
        self.model = model
        self.batch_size = batch_size
        self.width = self._embed_texts(["a"], query=False).shape[1]  # no two libraries keep it in the same place

    @abstractmethod
    def _embed_texts(self, texts: list[str], query: bool) -> Tensor:
        """(n, D) float32 on the CPU, normalised."""

    @abstractmethod
    def _embed_images(self, images: list[list[Image.Image]], query: bool) -> Tensor:
        """(n, D) float32 on the CPU, normalised, of n items with one image or more each."""

    def _embed_both(self, texts: list[str], images: list[list[Image.Image]], query: bool) -> Tensor | None:
        """(n, D) float32 on the CPU, normalised, of items with both; None if the model cannot take them together."""
        return None

    def encode(self, items: Sequence[dict[str, Any]], view: str = "multimodal", progress: bool = True) -> np.ndarray:
        """Encode one view of every item; see `Encoder.encode`.

        Raises:
            ValueError: an item lacks the view or cannot be read, or the model takes no images and cannot encode it.
        """
        if view not in VIEWS:
            raise ValueError(f"view is {view!r}; choose one of {', '.join(VIEWS)}")
        embeddings = np.empty((len(items), self.width), dtype=np.float32)
        for rows, views in self._batches(items, view, progress):
            lacking = np.flatnonzero(~(views.has_text | views.has_image))
            if lacking.size:
                row = rows[lacking[0]]
                raise ValueError(f"{item_name(items[row], row)} has only images, which this model does not take")
            embeddings[rows] = getattr(views, view)
        return embeddings

    def encode_views(self, items: Sequence[dict[str, Any]], progress: bool = True) -> Views:
        """Encode the text, the image and the multimodal view of every item; see `Encoder.encode_views`.

        Returns:
            Views; where the model takes no images, `has_image` is nowhere true.

        Raises:
            ValueError: an item has neither text nor image or cannot be read; the message names the item.
        """
        embeddings = [np.zeros((len(items), self.width), dtype=np.float32) for _ in VIEWS]
        views = Views(*embeddings, *(np.zeros(len(items), dtype=bool) for _ in range(2)))
        for rows, of_batch in self._batches(items, "multimodal", progress):
            for whole, part in zip(views, of_batch, strict=True):
                whole[rows] = part
        return views

    def _batches(self, items: Sequence[dict[str, Any]], view: str, progress: bool) -> Iterator[tuple[range, Views]]:
        query = isinstance(items, QueryItems)
        with tqdm(total=len(items), unit="item", disable=not progress) as bar:
            for start in range(0, len(items), self.batch_size):
                rows = range(start, min(start + self.batch_size, len(items)))
                texts, images = [], []
                for row in rows:
                    item = items[row]
                    text, of_item = take_view(item, row, view)
                    texts.append(_plain(text))
                    images.append(_opened(of_item, item_name(item, row)) if self.takes_images else [])
                yield rows, self._views(texts, images, query)
                bar.update(len(rows))

    def _views(self, texts: list[str], images: list[list[Image.Image]], query: bool) -> Views:
        """The views of one batch."""
        has_text, has_image = np.array([bool(t) for t in texts]), np.array([bool(i) for i in images])
        text, image = (torch.zeros(len(texts), self.width) for _ in range(2))
        if has_text.any():
            text[torch.from_numpy(has_text)] = self._embed_texts([t for t in texts if t], query)
        if has_image.any():
            image[torch.from_numpy(has_image)] = self._embed_images([i for i in images if i], query)
        multimodal = normalize(text + image, dim=-1)  # where one is missing, the other
        rows = np.flatnonzero(has_text & has_image)
        if rows.size:
            both = self._embed_both([texts[row] for row in rows], [images[row] for row in rows], query)
            if both is not None:
                multimodal[torch.from_numpy(rows)] = both
        return Views(text.numpy(), image.numpy(), multimodal.numpy(), has_text, has_image)


class SentenceTransformersEncoder(PeerEncoder):
    """Encodes with a model of sentence-transformers: of texts, of texts and images, or of both together.

    Queries are encoded by `encode_query` and all else by `encode_document`, so the model's own prompts are used. A
    model that takes {"text", "image"} gets text and all images of an item in one input.

    Args:
        model: on the device to compute on.
        batch_size: items per forward.

    Raises:
        ValueError: the model takes no texts.

    Example:
        >>> encoder = SentenceTransformersEncoder(SentenceTransformer("sentence-transformers/all-MiniLM-L6-v2"))
        >>> encoder.encode([{"text": "red mug", "images": []}], view="text").shape
        (1, 384)
    """

    def __init__(self, model: SentenceTransformer, batch_size: int = 64) -> None:
        if not model.supports("text"):
            raise ValueError(f"the model takes {', '.join(map(str, model.modalities))}; give one that takes text")
        self.takes_images = model.supports("image")
        self.is_joint = model.supports(("image", "text"))
        super().__init__(model.eval(), batch_size)

    def _embed_texts(self, texts: list[str], query: bool) -> Tensor:
        # a bare text that ends as the name of a picture would be opened as one
        return self._embed([{"text": text} for text in texts] if self.takes_images else texts, query)

    def _embed_images(self, images: list[list[Image.Image]], query: bool) -> Tensor:
        if self.is_joint:
            return self._embed([{"image": of_item} for of_item in images], query)
        return _mean_of_items(self._embed([image for of_item in images for image in of_item], query), images)

    def _embed_both(self, texts: list[str], images: list[list[Image.Image]], query: bool) -> Tensor | None:
        if not self.is_joint:
            return None
        pairs = zip(texts, images, strict=True)
        return self._embed([{"text": text, "image": of_item} for text, of_item in pairs], query)

    def _embed(self, inputs: list, query: bool) -> Tensor:
        encode = self.model.encode_query if query else self.model.encode_document
        vectors = encode(inputs, batch_size=self.batch_size, show_progress_bar=False, convert_to_tensor=True)
        return normalize(vectors.float().cpu(), dim=-1)


class DualEncoder(PeerEncoder):
    """Encodes with a dual encoder of transformers, such as CLIP and SigLIP.

    Args:
        model: with `get_text_features` and `get_image_features`, on the device to compute on.
        processor: its processor.
        batch_size: items per forward.

    Example:
        >>> model_id = "openai/clip-vit-base-patch32"
        >>> encoder = DualEncoder(AutoModel.from_pretrained(model_id), AutoProcessor.from_pretrained(model_id))
        >>> encoder.encode([{"text": "red mug", "images": []}], view="text").shape
        (1, 512)
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, batch_size: int = 64) -> None:
        self.processor = processor
        super().__init__(model.eval(), batch_size)

    @torch.no_grad()
    def _embed_texts(self, texts: list[str], query: bool) -> Tensor:
        return normalize(text_features(self.model, self.processor, texts).float().cpu(), dim=-1)

    @torch.no_grad()
    def _embed_images(self, images: list[list[Image.Image]], query: bool) -> Tensor:
        flat = [image for of_item in images for image in of_item]
        parts = [flat[start : start + self.batch_size] for start in range(0, len(flat), self.batch_size)]
        vectors = torch.cat([image_features(self.model, self.processor, part).float().cpu() for part in parts])
        return _mean_of_items(normalize(vectors, dim=-1), images)


def load_any_encoder(
    model_id: str | os.PathLike, batch_size: int = 64
) -> Encoder | SentenceTransformersEncoder | DualEncoder:
    """Load what the folder or repository holds: a MOON2.0, sentence-transformers or CLIP-like dual encoder.

    It is put onto the accelerator, or the CPU where there is none. The code that a repository brings is run; weights
    are read from safetensors alone.

    Args:
        model_id: folder of a saved model, or its id on the Hub.
        batch_size: items per forward.

    Raises:
        FileNotFoundError: there is no model in the folder, or none of that name on the Hub.
        ValueError: it is a model of another kind, or cannot be loaded.
    """
    try:
        model_type = AutoConfig.from_pretrained(model_id, trust_remote_code=True).model_type
    except (OSError, ValueError):  # none, as for many of sentence-transformers, or one that transformers does not know
        model_type = None
    if model_type == Moon2Config.model_type:
        return Encoder(*load_encoder(model_id), batch_size)
    is_sentence_transformers = _has_modules(model_id)
    if model_type is None and not is_sentence_transformers:
        load_encoder(model_id)  # says what is wrong
    if not (is_sentence_transformers or model_type in DUAL_ENCODERS):
        raise ValueError(
            f"{model_id}: holds a {model_type} model; give a MOON2.0 encoder, a model of sentence-transformers or a "
            f"dual encoder ({', '.join(DUAL_ENCODERS)})"
        )
    try:
        if is_sentence_transformers:
            return _load_sentence_transformers(model_id, batch_size)
        model = AutoModel.from_pretrained(model_id, trust_remote_code=True, use_safetensors=True)
        processor = AutoProcessor.from_pretrained(model_id, trust_remote_code=True)
        device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        return DualEncoder(model.to(device), processor, batch_size)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise ValueError(
            f"{model_id}: cannot be loaded ({' '.join(str(error).split())[:300]}); give a complete folder or "
            "repository with weights in safetensors"
        ) from error


def _load_sentence_transformers(model_id: str | os.PathLike, batch_size: int) -> SentenceTransformersEncoder:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError("it needs sentence-transformers: pip install 'moon2[bench]'") from error
    safe = {"use_safetensors": True}
    model = SentenceTransformer(str(model_id), trust_remote_code=True, model_kwargs=safe)
    return SentenceTransformersEncoder(model, batch_size)


def _has_modules(model_id: str | os.PathLike) -> bool:
    """Whether it is a model of sentence-transformers."""
    if Path(model_id).is_dir():
        return (Path(model_id) / "modules.json").is_file()
    try:
        return cached_file(str(model_id), "modules.json") is not None
    except OSError:
        return False


def _plain(text: str | Mapping | None) -> str:
    return " ".join(part for _, part in text_parts(text))


def _opened(images: Sequence[Any], name: str) -> list[Image.Image]:
    """RGB images of one item."""
    opened = []
    for number, image in enumerate(images):
        try:
            opened.append(load_image(image))
        except ValueError as error:
            raise ValueError(f"{name}, image {number}: {error}") from error
    return opened


def _mean_of_items(vectors: Tensor, images: list[list[Image.Image]]) -> Tensor:
    """(n, D) normalised mean over the images of every item, of the vectors (M, D) of all images in a row."""
    lengths = torch.tensor([len(of_item) for of_item in images])
    return normalize(torch.segment_reduce(vectors, "mean", lengths=lengths), dim=-1)
