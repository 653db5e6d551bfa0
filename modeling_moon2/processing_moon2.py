"""Processor of MOON2.0: a product's title, its photos, or both become the model's inputs."""

import io
import os
import re

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin

MAX_ASPECT_RATIO = 200
IMAGE_TOKEN, VISION_START_TOKEN, VISION_END_TOKEN = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"


def load_image(image) -> Image.Image:
    """Open one image as 8-bit RGB: EXIF rotation applied, transparency on white, first frame of an animation.

    Args:
        image: a PIL image, a path, encoded bytes, `{"bytes", "path"}` as `datasets` stores it, or an array (H, W) or
            (H, W, 1 | 3 | 4) of uint8, or of floats in 0..1.

    Raises:
        ValueError: what is given cannot be read as an image, or one side is more than 200 times the other.
    """
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    try:
        if isinstance(image, bytes | bytearray | memoryview):
            image = Image.open(io.BytesIO(image))
        elif isinstance(image, str | os.PathLike):
            image = Image.open(image)
        elif isinstance(image, np.ndarray | torch.Tensor):
            image = _image_from_array(np.asarray(image))
        elif not isinstance(image, Image.Image):
            raise ValueError(f"{type(image).__name__} is no image; give a PIL image, path, bytes or array")
        image = ImageOps.exif_transpose(image)  # loads the pixels, so damage shows here
        if image.mode.startswith(("I", "F")):  # 16-bit and float images: PIL's own conversion would clip them
            image = _image_from_array(_to_unit_range(np.asarray(image)))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"unreadable image ({error})") from error
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise ValueError(f"a {image.width}x{image.height} image has no usable shape; crop it to at most 200:1")
    return image


def _to_unit_range(pixels: np.ndarray) -> np.ndarray:
    """Scale pixels that are not 8-bit to 0..1: 16-bit ones by their type, others by the range their values imply."""
    top = 65535.0 if pixels.dtype == np.uint16 else float(pixels.max(initial=0.0))
    return pixels / (1.0 if top <= 1.0 else 255.0 if top <= 255.0 else 65535.0)


def _image_from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.ndim == 3 and pixels.shape[-1] not in (1, 3, 4) and pixels.shape[0] in (1, 3, 4):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim not in (2, 3) or 0 in pixels.shape or (pixels.ndim == 3 and pixels.shape[-1] not in (1, 3, 4)):
        raise ValueError(f"an array of shape {pixels.shape} is no image; give (H, W) or (H, W, 1 | 3 | 4)")
    if pixels.dtype != np.uint8:
        pixels = (np.clip(np.nan_to_num(_to_unit_range(pixels)), 0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels)


class Moon2Processor(ProcessorMixin):
    r"""
    Turns items into model inputs: images first, then the text, one row per item, padded on the right.

    Args:
        image_processor: a Qwen2-VL image processor (its PIL version needs no torchvision).
        tokenizer: a tokenizer that knows `<|vision_start|>`, `<|image_pad|>` and `<|vision_end|>`.
        chat_template (`str`, *optional*): kept with the processor.

    Example:

    ```python
    >>> processor(text=["red mug", "blue lamp", None], images=[None, photo, [front, back]], return_tensors="pt")
    ```
    """

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        tokens = (VISION_START_TOKEN, IMAGE_TOKEN, VISION_END_TOKEN)
        ids = [tokenizer.get_vocab().get(token) for token in tokens]
        if None in ids:
            raise ValueError(f"the tokenizer lacks {tokens[ids.index(None)]}; take one of a Qwen3-VL model")
        self.vision_start_token_id, self.image_token_id, self.vision_end_token_id = ids
        self._control_tokens = re.compile(
            "|".join(re.escape(token) for token in sorted(tokenizer.get_added_vocab(), key=len, reverse=True))
        )

    @property
    def model_input_names(self) -> list[str]:
        """Names of the model's inputs that this processor makes."""
        return ["input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw"]

    def __call__(
        self,
        images=None,
        text: str | list[str | None] | None = None,
        max_length: int | None = None,
        padding_side: str = "right",
        return_tensors: str | None = "pt",
        **kwargs,
    ) -> BatchFeature:
        """Prepare a batch of items.

        Args:
            images: one image for the single item; or a list with, for every item, None, one image, or a list of
                images. For what an image may be see `load_image`.
            text: the single item's text; or a list with one text or None for every item. Blank text counts as none.
            max_length: most tokens of a row, images included; the tokenizer's `model_max_length` when not given.
                Cuts text, never image tokens.
            padding_side: "right" or "left".
            kwargs: go to the image processor, for example `size`.

        Returns:
            input_ids, attention_mask, mm_token_type_ids (1 on image tokens), each (B, L); and if there is an image,
            pixel_values (patches, channels * time * patch²) and image_grid_thw (num_images, 3).

        Raises:
            ValueError: an item has neither text nor image, an image cannot be read or leaves no room for the text,
                or the lists differ in length. The message names the item.
        """
        texts, image_lists = _align_items(text, images)
        texts = [self._clean_text(t, item) for item, t in enumerate(texts)]
        for item, (t, item_images) in enumerate(zip(texts, image_lists, strict=True)):
            if t is None and not item_images:
                raise ValueError(f"item {item}: neither text nor image; give at least one")

        data, image_tokens = {}, [[] for _ in texts]
        if any(image_lists):
            pictures = []
            for item, item_images in enumerate(image_lists):
                for number, image in enumerate(item_images):
                    try:
                        pictures.append(load_image(image))
                    except ValueError as error:
                        raise ValueError(f"item {item}, image {number}: {error}") from error
            image_inputs = self.image_processor(images=pictures, return_tensors="pt", **_image_kwargs(kwargs))
            data = {"pixel_values": image_inputs["pixel_values"], "image_grid_thw": image_inputs["image_grid_thw"]}
            counts = iter((data["image_grid_thw"].prod(-1) // self.image_processor.merge_size**2).tolist())
            image_tokens = [[next(counts) for _ in item_images] for item_images in image_lists]

        token_ids = self._tokenize(texts)
        if max_length is None:
            max_length = self.tokenizer.model_max_length
        rows = []
        for item, (counts, ids) in enumerate(zip(image_tokens, token_ids, strict=True)):
            prefix = [
                token
                for count in counts
                for token in (self.vision_start_token_id, *[self.image_token_id] * count, self.vision_end_token_id)
            ]
            if len(prefix) + bool(ids) > max_length:
                raise ValueError(
                    f"item {item}: its {len(counts)} images take {len(prefix)} of max_length={max_length} tokens; "
                    "raise max_length, give fewer images or a smaller pixel budget"
                )
            rows.append(prefix + ids[: max_length - len(prefix)])

        length = max(map(len, rows))
        input_ids = np.full((len(rows), length), self.tokenizer.pad_token_id or 0, dtype=np.int64)  # (B, L)
        attention_mask = np.zeros_like(input_ids)
        for row, ids in enumerate(rows):
            span = slice(0, len(ids)) if padding_side == "right" else slice(length - len(ids), length)
            input_ids[row, span] = ids
            attention_mask[row, span] = 1
        data |= {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "mm_token_type_ids": (input_ids == self.image_token_id).astype(np.int64),
        }
        return BatchFeature(data, tensor_type=return_tensors)

    def _clean_text(self, text: str | None, item: int) -> str | None:
        """The text without lone surrogates and with control tokens broken up; None if nothing is left."""
        if text is None:
            return None
        if not isinstance(text, str):
            raise ValueError(f"item {item}: text is {type(text).__name__}, not str")
        text = text.encode("utf-8", "replace").decode("utf-8").strip()
        while (cleaned := self._control_tokens.sub(lambda match: " ".join(match[0]), text)) != text:
            text = cleaned
        return text or None

    def _tokenize(self, texts: list[str | None]) -> list[list[int]]:
        """Token ids of every text, [] for None."""
        present = [text for text in texts if text is not None]
        encoded = iter(self.tokenizer(present, add_special_tokens=False)["input_ids"] if present else [])
        return [[] if text is None else next(encoded) for text in texts]


def _image_kwargs(kwargs: dict) -> dict:
    """What of a call's options belongs to the image processor; padding and truncation are this processor's own."""
    ignored = ("padding", "truncation", "add_special_tokens", "return_mm_token_type_ids", "text_kwargs")
    return {key: value for key, value in kwargs.items() if key not in ignored} | kwargs.get("images_kwargs", {})


def _align_items(text, images) -> tuple[list[str | None], list[list]]:
    """One text (or None) and one list of images per item."""
    if text is None and images is None:
        raise ValueError("give text, images or both")
    if isinstance(text, str):
        return [text], [_image_list(images)]
    if images is not None and not isinstance(images, list | tuple):
        images = [images]
    texts = [None] * len(images) if text is None else list(text)
    image_lists = [[]] * len(texts) if images is None else [_image_list(item) for item in images]
    if len(texts) != len(image_lists):
        raise ValueError(f"{len(texts)} texts but {len(image_lists)} entries in images; give one entry per item")
    if not texts:
        raise ValueError("an empty batch; give at least one item")
    return texts, image_lists


def _image_list(images) -> list:
    if images is None:
        return []
    return list(images) if isinstance(images, list | tuple) else [images]


__all__ = ["Moon2Processor", "load_image"]
