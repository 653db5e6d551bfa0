"""Pictures as they are stored: their size from the header, and large JPEGs decoded at a fraction of it."""

from __future__ import annotations

import io
import math
import os
from typing import Any

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from modeling_moon2.processing_moon2 import open_image


def _file(image: Any) -> io.BytesIO | str | os.PathLike | None:
    """What `open_image` reads an encoded image from; None for one that is decoded."""
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes | bytearray | memoryview):
        return io.BytesIO(image)
    return image if isinstance(image, str | os.PathLike) else None


def picture_size(image: Any) -> tuple[int, int]:
    """Size of an image in pixels, read from the header if it is encoded.

    Raises:
        ValueError: it is none, or the header cannot be read.
    """
    file = _file(image)
    if file is None:
        height, width = image.size[::-1] if isinstance(image, Image.Image) else np.shape(image)[:2]
        return height, width
    with open_image(file) as opened:
        return opened.height, opened.width


def decode_picture(image: Any, budget: int) -> Any:
    """Decode an encoded JPEG, one of many times the model's pixel budget directly at a fraction of its size.

    Along each side at least twice what the budget allows is kept, so the resizing that follows still does the
    filtering. Other images are left to the processor.
    """
    file = _file(image)
    if file is None:
        return image
    try:
        with open_image(file) as opened:
            if not isinstance(opened, JpegImageFile):
                return image
            scale = math.sqrt(4 * budget / (opened.width * opened.height))
            opened.draft(None, (math.ceil(opened.width * scale), math.ceil(opened.height * scale)))
            opened.load()
            return opened
    except Exception:  # damage ends in every kind of error; the processor says what is wrong
        return image
