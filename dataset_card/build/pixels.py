"""What of a picture is its pixels: whether a file holds anything else, and a JPEG that holds nothing else.

Beside its pixels a file may tell where and when a photo was taken, by whom and with which camera: as Exif, XMP, IPTC
or a comment, as a thumbnail or a further picture, before the pixels, behind them or after the end. So the parts that
pixels need are listed, and a file with any other part is not kept.
"""

from __future__ import annotations

import io
import re

import numpy as np
from PIL import Image, ImageCms, ImageOps

_JPEG_PARTS = frozenset(range(0xC0, 0xDE)) - {0xC8, 0xD8, 0xD9}  # frames, tables, scans, restarts
_JPEG_END, _JPEG_SCAN = 0xD9, 0xDA
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")  # among coded pixels: no stuffed byte, no restart
_PNG_PARTS = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP", b"sBIT",
              b"bKGD", b"pHYs"}  # fmt: skip
_WEBP_PARTS = {b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ICCP"}


def holds_pixels_alone(data: bytes) -> bool:
    """Whether a file is a JPEG, PNG or WebP made of nothing but one picture and its colour space.

    Args:
        data: the bytes of an image file; of any other format the answer is no.
    """
    if data.startswith(b"\xff\xd8"):
        return _is_plain_jpeg(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _is_plain_png(data)
    return data.startswith(b"RIFF") and data[8:12] == b"WEBP" and _is_plain_webp(data)


def as_jpeg(image: Image.Image, quality: int) -> bytes:
    """A JPEG of the pixels of an RGB image, and of nothing else that came with it."""
    image = image.copy()
    image.info = {}  # Pillow writes a comment again
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def upright(image: Image.Image) -> Image.Image:
    """A copy that is turned as the file says; as it is where what the file says about it is damaged.

    Raises:
        OSError: the pixels themselves are damaged.
    """
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged Exif ends in every kind of error
        return image.copy()


def eight_bits(image: Image.Image) -> Image.Image:
    """An image with eight bits a channel: of sixteen bits and more the upper ones stay.

    Raises:
        ValueError: a pixel is NaN or infinite.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    pixels = np.asarray(image)
    if not np.isfinite(pixels).all():
        raise ValueError("holds NaN or infinity")
    top = 65535.0 if pixels.dtype == np.uint16 else float(pixels.max(initial=0))
    top = 1.0 if top <= 1 else 255.0 if top <= 255 else 65535.0
    return Image.fromarray(((pixels / top).clip(0, 1) * 255).astype(np.uint8))


def as_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An RGB image with the colours that an ICC profile gives these pixels.

    Args:
        image: L, RGB or CMYK.
        profile: without one, or with one that cannot be applied, the values count as sRGB.
    """
    if not profile:
        return image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):  # damaged, or of another kind of pixels
        return image.convert("RGB")


def _is_plain_jpeg(data: bytes) -> bool:
    place = 2
    while data[place : place + 1] == b"\xff" and place + 1 < len(data):
        marker = data[place + 1]
        if marker == _JPEG_END:
            return place + 2 == len(data)
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4])
        if marker not in _JPEG_PARTS and not _is_colour_segment(marker, data[place + 4 : end]):
            return False
        place = end
        if marker == _JPEG_SCAN:
            found = _JPEG_MARKER.search(data, place)
            if found is None:
                return False
            place = found.start()
    return False


def _is_colour_segment(marker: int, body: bytes) -> bool:
    """Whether an APP segment of a JPEG tells the colour space alone: JFIF without a thumbnail, Adobe, or ICC."""
    if marker == 0xE0:
        return body.startswith(b"JFIF\0") and len(body) == 14
    if marker == 0xEE:
        return body.startswith(b"Adobe") and len(body) == 12
    return marker == 0xE2 and body.startswith(b"ICC_PROFILE\0")


def _is_plain_png(data: bytes) -> bool:
    place = 8
    while (kind := data[place + 4 : place + 8]) in _PNG_PARTS:
        place += 12 + int.from_bytes(data[place : place + 4])
        if kind == b"IEND":
            return place == len(data)
    return False


def _is_plain_webp(data: bytes) -> bool:
    place = 12
    while data[place : place + 4] in _WEBP_PARTS:
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        place += 8 + size + size % 2
    return place == len(data) == 8 + int.from_bytes(data[4:8], "little")
