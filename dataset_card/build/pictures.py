"""The pictures of a raw row: read, checked, and written anew where they are too long or hold more than pixels."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from PIL import Image

from .column_sample import IMAGE_KEYS, IMAGE_SUFFIXES
from .image_root import ImageRoot, is_address
from .pixels import as_jpeg, as_srgb, eight_bits, holds_pixels_alone, upright

MAX_IMAGES = 16  # of one product
MAX_FILE = 64 << 20  # bytes
MAX_PIXELS = 50_000_000
MIN_SIDE = 16
MAX_RATIO = 20  # longer side over shorter side
JPEG_QUALITY = 90
# No formats that start another program (EPS) or that a browser would not show.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

NOT_FETCHED = "image_url_not_fetched"
SHARED = "image_file_of_several_addresses"
MISSING = "image_missing"
OUTSIDE = "image_outside"
EMPTY = "image_empty"
NO_IMAGE = "image_not_an_image"
BROKEN = "image_broken"
TOO_LARGE = "image_too_large"
TOO_SMALL = "image_too_small"
TOO_LONG = "image_too_long"
NO_REFERENCE = "image_not_understood"
TOO_MANY = "images_over_limit"

PICTURE_REASONS = {
    SHARED: "the addresses of several images end in one file of image_root, so it is not known whose it is; lay the "
    "files out as HOST/PATH of their addresses",
    NOT_FETCHED: "an image is a URL; URLs are not fetched: download the images and give their folder as image_root",
    MISSING: "an image file is not there",
    OUTSIDE: "an image file is outside the folder that may be read",
    EMPTY: "an image has no bytes",
    NO_IMAGE: f"an image is in none of the formats {', '.join(FORMATS)}",
    BROKEN: "an image is damaged or cut short",
    TOO_LARGE: f"an image has over {MAX_PIXELS:,} pixels or {MAX_FILE >> 20} MB",
    TOO_SMALL: f"an image has a side under {MIN_SIDE} pixels",
    TOO_LONG: f"an image is over {MAX_RATIO} times as long as wide",
    NO_REFERENCE: "an image is neither bytes nor a path nor a URL",
    TOO_MANY: f"a product has over {MAX_IMAGES} images; the first ones stay",
}

Problem = tuple[str, str]  # reason code, detail


def read_pictures(
    cells: Sequence[Any],
    folder: Path | None,
    image_root: ImageRoot | None,
    max_side: int,
    within: Path | None = None,
    max_pixels: int = MAX_PIXELS,
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Read every picture that the cells of a row name.

    Args:
        cells: bytes, {bytes, path}, paths, URLs, lists of these, or texts that list several.
        folder: where relative paths start.
        image_root: where they start instead, and where the file of a URL is looked up.
        max_side: pixels; see `check_picture`.
        within: folder outside which no file is read, whatever paths and links say; None: any file is.
        max_pixels: of a picture; one with more is not decoded.

    Returns:
        ([{"bytes", "path"}] of the good ones, [(reason code, detail)] of the others).
    """
    pictures: list[dict[str, Any]] = []
    problems: list[Problem] = []
    seen: set[Any] = set()
    for cell in cells:
        for reference in references(cell):
            if len(pictures) + len(problems) >= MAX_IMAGES:
                problems.append((TOO_MANY, ""))
                return pictures, problems
            key = reference if isinstance(reference, bytes | str) else id(reference)
            if key in seen:
                continue
            seen.add(key)
            data, name, problem = _load(reference, folder, image_root, within)
            if problem is None:
                data, name, problem = check_picture(data, name, max_side, max_pixels)
            if problem is None:
                pictures.append({"bytes": data, "path": name})
            else:
                problems.append(problem)
    return pictures, problems


def check_picture(
    data: bytes, name: str | None, max_side: int, max_pixels: int = MAX_PIXELS
) -> tuple[bytes, str | None, Problem | None]:
    """Open a picture, decode it once to see that it is whole, and leave nothing in it but its pixels.

    A JPEG, PNG or WebP that holds nothing else, and is not longer than `max_side`, keeps its bytes. Any other picture
    is written anew: as JPEG, turned as it is shown, on white, in sRGB, of an animation the first frame.

    Args:
        data: the bytes of an image file.
        name: of the file, for messages.
        max_side: pixels.
        max_pixels: of a picture; one with more is not decoded.

    Returns:
        (bytes, name, None) of the picture to keep, or (b"", name, (reason code, detail)).
    """
    told = name or f"{len(data)} bytes"
    if not data:
        return b"", name, (EMPTY, told)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        return b"", name, (TOO_LARGE, told)
    except Exception as error:  # damaged headers end in every kind of error
        return b"", name, (NO_IMAGE, f"{told}: {_what_it_is(data) or type(error).__name__}")
    width, height = image.size
    told = f"{told}: {width} x {height}"
    if width * height > max_pixels:
        return b"", name, (TOO_LARGE, told)
    if min(width, height) < MIN_SIDE:
        return b"", name, (TOO_SMALL, told)
    if max(width, height) > MAX_RATIO * min(width, height):
        return b"", name, (TOO_LONG, told)
    try:
        if max(width, height) <= max_side and holds_pixels_alone(data):
            image.verify()
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            image.draft("RGB", (max(1, width // 8), max(1, height // 8)))  # every byte is read, few pixels made
            image.load()
            return data, name, None
        return _written_anew(image, max_side), _jpeg_name(name), None
    except Exception as error:  # damaged pixels too
        return b"", name, (BROKEN, f"{told}: {error}"[:200])


def _written_anew(image: Image.Image, max_side: int) -> bytes:
    image.draft("RGB", (2 * max_side, 2 * max_side))
    image = eight_bits(upright(image))
    profile = image.info.get("icc_profile")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image if image.mode in ("L", "CMYK") else image.convert("RGB")
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return as_jpeg(as_srgb(image, profile), JPEG_QUALITY)


def _jpeg_name(name: str | None) -> str | None:
    return name and f"{PurePosixPath(name).stem}.jpg"


def _what_it_is(data: bytes) -> str:
    head = data[:512].lstrip().lower()
    if b"<svg" in head:
        return "an SVG drawing"
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page"
    return "a PDF" if head.startswith(b"%pdf") else ""


def references(cell: Any, depth: int = 0) -> Iterator[Any]:
    """The single pictures a cell names: bytes, text, {bytes, path}; what cannot be one comes as it is."""
    if cell is None or cell == "" or cell == b"" and depth == 0:
        if cell == b"":
            yield cell
        return
    if isinstance(cell, list | tuple) and depth < 3:
        for part in cell:
            yield from references(part, depth + 1)
    elif isinstance(cell, str):
        yield from _listed(cell)
    elif isinstance(cell, dict) and not cell.keys() & {"bytes", "path"}:
        part = next((cell[key] for key in IMAGE_KEYS if cell.get(key)), None)
        yield from references(part, depth + 1) if part is not None and depth < 3 else [cell]
    elif not (isinstance(cell, float) and cell != cell):
        yield cell


def _listed(text: str) -> list[str]:
    text = text.strip()
    if text.casefold() in ("", "nan", "none", "null", "n/a", "[]"):
        return []
    if text.startswith("[") and len(text) < 1 << 20:
        try:
            parts = json.loads(text)
        except (ValueError, RecursionError):
            parts = re.findall(r"'([^']+)'", text)  # a list as Python prints it
        parts = [part.strip() for part in parts if isinstance(part, str)] if isinstance(parts, list) else []
        if parts:
            return parts
    for mark in ("|", ";", "\n", ","):
        if mark in text:
            parts = [part.strip() for part in text.split(mark, MAX_IMAGES + 1) if part.strip()]
            if len(parts) > 1 and all(_one_image(part) for part in parts[:MAX_IMAGES]):
                return parts
    return [text]


def _one_image(text: str) -> bool:
    lower = text.casefold()
    return lower.startswith(("http://", "https://")) or lower.partition("?")[0].endswith(IMAGE_SUFFIXES)


def _load(
    reference: Any, folder: Path | None, image_root: ImageRoot | None, within: Path | None
) -> tuple[bytes, str | None, Problem | None]:
    path = None
    if isinstance(reference, dict):
        data, path = reference.get("bytes"), reference.get("path")
        if data is not None or not isinstance(path, str):
            if isinstance(data, bytes | bytearray):
                return bytes(data), _file_name(path), None
            return b"", None, (NO_REFERENCE, _shortly(reference))
    elif isinstance(reference, bytes | bytearray):
        return bytes(reference), None, None
    elif isinstance(reference, str):
        path = reference
    if path is None:
        return b"", None, (NO_REFERENCE, _shortly(reference))
    if is_address(path):
        local, shared = (None, False) if image_root is None else image_root.find(path)
        if local is None:
            return b"", None, (NOT_FETCHED, _shortly(path))
        if shared:
            end = str(local.relative_to(image_root.folder))
            return b"", local.name, (SHARED, f"{_shortly(end)}: {_shortly(path)}")
        file, path = local, local.name
    else:
        path = unquote(urlsplit(path).path) if path[:7].casefold() == "file://" else path
        root = folder if image_root is None else image_root.folder
        file = Path(path) if root is None else root / path
    if within is not None and not _is_inside(file, within):
        return b"", _file_name(path), (OUTSIDE, _shortly(path))
    return _read(file, path)


def _is_inside(file: Path, folder: Path) -> bool:
    """Whether a file is in a folder once links and dots are followed; what cannot be followed is not."""
    try:
        return file.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a name too long, links in a circle, a NUL
        return False


def _read(file: Path, path: str) -> tuple[bytes, str | None, Problem | None]:
    name = _file_name(path)
    try:
        if not file.is_file():  # devices and pipes are none
            return b"", name, (MISSING, _shortly(path))
        if file.stat().st_size > MAX_FILE:
            return b"", name, (TOO_LARGE, f"{name}: {file.stat().st_size >> 20} MB")
        return file.read_bytes(), name, None
    except (OSError, ValueError) as error:  # no permission, a name too long, a NUL in it
        return b"", name, (MISSING, f"{_shortly(path)}: {type(error).__name__}")


def _file_name(path: Any) -> str | None:
    """The last part of a path, without what a table could not hold."""
    if not isinstance(path, str):
        return None
    name = re.split(r"[/\\]", path[-4096:])[-1]
    return "".join(letter for letter in name if letter.isprintable())[-200:] or None


def _shortly(value: Any) -> str:
    if not isinstance(value, str):
        return type(value).__name__
    text = value[:160]
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else " " for letter in text)
