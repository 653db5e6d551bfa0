"""Processor of MOON2.0: a product's title, its photos, or both become the model's inputs."""

import io
import os
import re
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .configuration_moon2 import GUIDED_FIELDS
from .patches_moon2 import makes_patches, picture_patches

MAX_ASPECT_RATIO = 200
ORIENTATION, UPRIGHT = ExifTags.Base.Orientation, 1
MAX_TOKEN_CHARACTERS = 256  # what is beyond so many for every token cannot be among those that are kept
MAX_PIXELS = 50_000_000  # of an image that is decoded whole
# Of what Pillow reads: none that starts another program, as EPS does, or that hardly a photo is kept in.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "PPM")
TEXT_FIELDS = ("title", *GUIDED_FIELDS)
FIELD_SEPARATOR = ". "
IMAGE_TOKEN, VISION_START_TOKEN, VISION_END_TOKEN = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"
# What the model reads: the images of all messages, then their texts, without roles.
CHAT_TEMPLATE = """\
{%- for message in messages if message.content is not string -%}
  {%- for part in message.content if part.type == "image" -%}
    <|vision_start|><|image_pad|><|vision_end|>
  {%- endfor -%}
{%- endfor -%}
{%- for message in messages -%}
  {%- if message.content is string -%}
    {{- message.content -}}
  {%- else -%}
    {%- for part in message.content if part.type == "text" -%}
      {{- part.text -}}
    {%- endfor -%}
  {%- endif -%}
{%- endfor -%}
"""


def open_image(file) -> Image.Image:
    """Read the header of an encoded image in one of IMAGE_FORMATS; its pixels are not decoded.

    Args:
        file: a path or a binary stream.

    Raises:
        ValueError: it cannot be read as an image.
    """
    Image.init()
    formats = [name for name in IMAGE_FORMATS if name in Image.OPEN]
    try:
        return Image.open(file, formats=formats)
    except Exception as error:  # damaged headers end in every kind of error
        raise ValueError(f"unreadable image ({_told(error)})") from error


def load_image(image) -> Image.Image:
    """Open one image as 8-bit RGB: EXIF rotation applied, transparency on white, first frame of an animation.

    Args:
        image: a PIL image, a path, encoded bytes, `{"bytes", "path"}` as `datasets` stores it, or an array (H, W) or
            (H, W, 1 | 3 | 4) of uint8, or of floats in 0..1.

    Raises:
        ValueError: what is given cannot be read as an image, has too many pixels, or one side is more than 200 times
            the other.
    """
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes | bytearray | memoryview):
        image = open_image(io.BytesIO(image))
    elif isinstance(image, str) and image.startswith(("http://", "https://")):
        raise ValueError(f"{image} is not fetched; download it and give its bytes or its path")
    elif isinstance(image, str | os.PathLike):
        image = open_image(image)
    elif isinstance(image, np.ndarray | torch.Tensor):
        image = _image_from_array(image)
    elif not isinstance(image, Image.Image):
        raise ValueError(f"{type(image).__name__} is no image; give a PIL image, path, bytes or array")
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"a {image.width}x{image.height} image has over {MAX_PIXELS:,} pixels; make it smaller")
    try:
        image.load()  # so damage shows here
        if image.getexif().get(ORIENTATION, UPRIGHT) != UPRIGHT:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith(("I", "F")):  # 16-bit and float images: PIL's own conversion would clip them
            image = _image_from_array(_to_unit_range(np.asarray(image)))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        if image.mode != "RGB":
            image = image.convert("RGB")
    except Exception as error:  # as damaged headers do
        raise ValueError(f"unreadable image ({_told(error)})") from error
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise ValueError(f"a {image.width}x{image.height} image has no usable shape; crop it to at most 200:1")
    return image


def _told(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # which names an address in memory
        return "of no known format"
    return str(error) or type(error).__name__


def _to_unit_range(pixels: np.ndarray) -> np.ndarray:
    """Scale pixels that are not 8-bit to 0..1: 16-bit ones by their type, others by the range their values imply."""
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise ValueError("holds NaN or infinity; give finite pixels")
    top = 65535.0 if pixels.dtype == np.uint16 else float(pixels.max(initial=0.0))
    return pixels / (1.0 if top <= 1.0 else 255.0 if top <= 255.0 else 65535.0)


def _image_from_array(pixels: np.ndarray | torch.Tensor) -> Image.Image:
    if isinstance(pixels, torch.Tensor):
        pixels = pixels.detach().cpu()
        pixels = (pixels.float() if pixels.dtype == torch.bfloat16 else pixels).numpy()
    if pixels.dtype.kind not in "buif":
        raise ValueError(f"an array of {pixels.dtype} is no image; give uint8, or floats in 0..1")
    if pixels.ndim == 3 and pixels.shape[-1] not in (1, 3, 4) and pixels.shape[0] in (1, 3, 4):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim not in (2, 3) or 0 in pixels.shape or (pixels.ndim == 3 and pixels.shape[-1] not in (1, 3, 4)):
        raise ValueError(f"an array of shape {pixels.shape} is no image; give (H, W) or (H, W, 1 | 3 | 4)")
    if pixels.dtype != np.uint8:
        pixels = (np.clip(_to_unit_range(pixels), 0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels)


def text_parts(text: str | Mapping | None) -> list[tuple[str, str]]:
    """(field, text) for each non-empty field of an item's text, in the order in which they are read.

    Args:
        text: a title; or fields: "title"; "category", a text or a path from coarse to fine; "attributes", a text, a
            mapping of names to values, or a list of `{"name", "value"}`.

    Raises:
        ValueError: a field of another name or type, or a level or an attribute that is none.
    """
    if text is None or isinstance(text, str):
        text = {"title": text}
    if not isinstance(text, Mapping):
        raise ValueError(f"text is {type(text).__name__}; give a str, or a mapping of {', '.join(TEXT_FIELDS)}")
    if unknown := set(text) - set(TEXT_FIELDS):
        raise ValueError(f"text has a field {min(map(str, unknown))!r}; give {', '.join(TEXT_FIELDS)}")
    category, attributes = text.get("category"), text.get("attributes")
    if isinstance(category, list | tuple):
        if wrong := [level for level in category if not isinstance(level, str)]:
            raise ValueError(f"the category has a level that is {type(wrong[0]).__name__}, not str")
        category = " > ".join(category)
    if isinstance(attributes, Mapping):
        attributes = [{"name": name, "value": value} for name, value in attributes.items()]
    if isinstance(attributes, list | tuple):
        for number, attribute in enumerate(attributes):
            if not isinstance(attribute, Mapping) or not {"name", "value"} <= set(attribute):
                raise ValueError(f'attributes[{number}] is {type(attribute).__name__}; give {{"name", "value"}}')
        attributes = ", ".join(f"{attribute['name']}: {attribute['value']}" for attribute in attributes)
    parts = list(zip(TEXT_FIELDS, (text.get("title"), category, attributes), strict=True))
    for field, part in parts:
        if part is not None and not isinstance(part, str):
            raise ValueError(f"the {field} is {type(part).__name__}, not str")
    return [(field, part) for field, part in parts if part and part.strip()]


class Moon2Processor(ProcessorMixin):
    r"""
    Turns items into model inputs: images first, then the text, one row per item, padded on the right.

    Args:
        image_processor: a Qwen2-VL image processor (its PIL version needs no torchvision).
        tokenizer: a tokenizer that knows `<|vision_start|>`, `<|image_pad|>` and `<|vision_end|>`.
        chat_template (`str`, *optional*): `CHAT_TEMPLATE` when not given.

    Example:

    ```python
    >>> processor(text=["red mug", "blue lamp", None], images=[None, photo, [front, back]], return_tensors="pt")
    >>> processor(text={"title": "red mug", "category": ["Kitchen", "Mugs"], "attributes": {"colour": "red"}})
    ```
    """

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
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
        return ["input_ids", "attention_mask", "mm_token_type_ids", "field_ids", "pixel_values", "image_grid_thw"]

    def __call__(
        self,
        images=None,
        text: str | Mapping | list[str | Mapping | None] | None = None,
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
                A text may be given as fields, see `text_parts`; they are joined, and their tokens marked.
            max_length: most tokens of a row, images included; the tokenizer's `model_max_length` when not given.
                Cuts text, never image tokens.
            padding_side: "right" or "left".
            kwargs: go to the image processor, for example `size`. `text_kwargs` and `images_kwargs`, as
                transformers' processors take them, are understood.

        Returns:
            input_ids, attention_mask, mm_token_type_ids (1 on image tokens), each (B, L); if a category or attributes
            are given, field_ids (B, L), the index in GUIDED_FIELDS from 1, 0 elsewhere; and if there is an image,
            pixel_values (patches, channels * time * patch²) and image_grid_thw (num_images, 3).

        Raises:
            ValueError: an item has neither text nor image, an image cannot be read or leaves no room for the text,
                or the lists differ in length. The message names the item.
        """
        texts, image_lists = _align_items(text, images)
        texts = [self._clean_parts(t, item) for item, t in enumerate(texts)]
        for item, (parts, item_images) in enumerate(zip(texts, image_lists, strict=True)):
            if not parts and not item_images:
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
            pixel_values, grids = self._patches(pictures, _image_kwargs(kwargs))
            data = {"pixel_values": pixel_values, "image_grid_thw": grids}
            counts = iter((grids.prod(-1) // self.image_processor.merge_size**2).tolist())
            image_tokens = [[next(counts) for _ in item_images] for item_images in image_lists]

        if max_length is None:
            max_length = kwargs.get("text_kwargs", {}).get("max_length") or self.tokenizer.model_max_length
        token_ids, token_fields = self._tokenize(texts, MAX_TOKEN_CHARACTERS * max(0, max_length))
        rows, row_fields = [], []
        for item, (counts, ids, fields) in enumerate(zip(image_tokens, token_ids, token_fields, strict=True)):
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
            row_fields.append([0] * len(prefix) + fields[: max_length - len(prefix)])

        length = max(map(len, rows))
        input_ids = np.full((len(rows), length), self.tokenizer.pad_token_id or 0, dtype=np.int64)  # (B, L)
        attention_mask, field_ids = np.zeros_like(input_ids), np.zeros_like(input_ids)
        for row, (ids, fields) in enumerate(zip(rows, row_fields, strict=True)):
            span = slice(0, len(ids)) if padding_side == "right" else slice(length - len(ids), length)
            input_ids[row, span] = ids
            attention_mask[row, span] = 1
            field_ids[row, span] = fields
        if any(field != "title" for parts in texts for field, _ in parts):
            data["field_ids"] = field_ids
        data |= {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "mm_token_type_ids": (input_ids == self.image_token_id).astype(np.int64),
        }
        return BatchFeature(data, tensor_type=return_tensors)

    def apply_chat_template(
        self, conversation, *args, tokenize: bool = False, **kwargs
    ) -> str | list[str] | BatchFeature:
        """Render conversations, or make model inputs of them.

        Args:
            conversation: one conversation or a list of them: messages whose content is a text or a list of
                `{"type": "text", "text"}` and `{"type": "image", "image"}`.
            tokenize: make inputs. The parts then go to `__call__` as they are, so that a control token which a user
                wrote stays harmless; in the rendered text it could not be told from the template's own.
            kwargs: as in transformers' processors.

        Returns:
            The rendered text; if tokenize, the input ids, or all inputs with `return_dict=True`.

        Raises:
            ValueError: as `__call__`, or a message has parts of another type.
        """
        if not tokenize:
            return super().apply_chat_template(conversation, *args, **kwargs)
        conversations = [conversation] if isinstance(conversation[0], Mapping) else conversation
        texts, images = [], []
        for item, messages in enumerate(conversations):
            parts = [part for message in messages for part in _message_parts(message, item)]
            texts.append("".join(part["text"] for part in parts if part["type"] == "text"))
            images.append([_message_image(part, item) for part in parts if part["type"] == "image"])
        inputs = self(
            text=texts,
            images=images,
            return_tensors=kwargs.get("return_tensors", "pt"),
            **kwargs.get("processor_kwargs") or {},
        )
        return inputs if kwargs.get("return_dict") else inputs["input_ids"]

    def _patches(self, pictures: list[Image.Image], options: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """pixel_values and image_grid_thw of pictures."""
        if not options and makes_patches(self.image_processor):
            return picture_patches(pictures, self.image_processor)
        inputs = self.image_processor(images=pictures, return_tensors="pt", **options)
        return inputs["pixel_values"], inputs["image_grid_thw"]

    def _clean_parts(self, text: str | Mapping | None, item: int) -> list[tuple[str, str]]:
        """The fields of an item's text, without lone surrogates and with control tokens broken up."""
        try:
            parts = text_parts(text)
        except ValueError as error:
            raise ValueError(f"item {item}: {error}") from error
        cleaned = []
        for field, part in parts:
            part = part.encode("utf-8", "replace").decode("utf-8").strip()
            while (broken_up := self._control_tokens.sub(lambda match: " ".join(match[0]), part)) != part:
                part = broken_up
            cleaned.append((field, part))
        return cleaned

    def _tokenize(
        self, texts: list[list[tuple[str, str]]], characters: int
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of the first characters of every text's joined fields, and each token's field in TEXT_FIELDS."""
        present = [FIELD_SEPARATOR.join(part for _, part in parts)[:characters] for parts in texts if parts]
        # `verbose` would warn of long texts, which are cut later
        options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
        encoded = self.tokenizer(present, **options) if present else {}
        ids_and_offsets = zip(encoded.get("input_ids", ()), encoded.get("offset_mapping", ()), strict=True)
        token_ids, token_fields = [], []
        for parts in texts:
            ids, offsets = next(ids_and_offsets) if parts else ([], [])
            token_ids.append(ids)
            if all(field == "title" for field, _ in parts):
                token_fields.append([0] * len(ids))
                continue
            ends = np.cumsum([len(part) + len(FIELD_SEPARATOR) for _, part in parts])
            # by its last character, for a token may begin with the space of the separator before it
            part_of_token = np.searchsorted(ends, [max(end - 1, 0) for _, end in offsets], side="right")
            token_fields.append([TEXT_FIELDS.index(parts[part][0]) for part in part_of_token])
        return token_ids, token_fields


def _image_kwargs(kwargs: dict) -> dict:
    """What of a call's options belongs to the image processor; padding and truncation are this processor's own."""
    nested = ("text_kwargs", "images_kwargs", "videos_kwargs", "audio_kwargs", "common_kwargs")
    ignored = ("padding", "truncation", "add_special_tokens", "return_mm_token_type_ids", "return_tensors", *nested)
    return {key: value for key, value in (kwargs | kwargs.get("images_kwargs", {})).items() if key not in ignored}


def _message_parts(message: Mapping, item: int) -> list[Mapping]:
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    for part in parts:
        if part["type"] not in ("text", "image"):
            raise ValueError(f"item {item}: a message holds a part of type {part['type']!r}; give text and image")
    return parts


def _message_image(part: Mapping, item: int):
    for key in ("image", "path", "url"):
        if key in part:
            return part[key]
    raise ValueError(f"item {item}: an image part of a message has no `image`")


def _align_items(text, images) -> tuple[list[str | None], list[list]]:
    """One text (or None) and one list of images per item."""
    if text is None and images is None:
        raise ValueError("give text, images or both")
    if isinstance(text, str | Mapping):
        return [text], [_image_list(images)]
    if images is not None and not isinstance(images, list | tuple):
        images = [images]
    if text is not None and not isinstance(text, Iterable):
        raise ValueError(f"text is {type(text).__name__}; give a str, or a list with one for every item")
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
