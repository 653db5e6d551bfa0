"""The pictures of one product, expanded: subject, variants and box from its first readable picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError

from ..build.pictures import FORMATS
from ..build.pixels import as_jpeg, eight_bits, upright
from .core_region import subject_box
from .subject import Subject, extract_subject
from .variants import expand, main_image

JPEG_QUALITY = 90


@dataclass(frozen=True)
class Expansion:
    """What is wanted of every product.

    Attributes:
        kinds: of variants.
        per_product: variants of a product.
        max_side: pixels; a longer picture is made smaller first.
        seed: of all chance, with the product's id.
        folder: where relative paths of pictures start, if they are not found where they are.
        wants_main_image: whether I_m is needed too.
    """

    kinds: tuple[str, ...]
    per_product: int
    max_side: int
    seed: int
    folder: Path
    wants_main_image: bool


class Expanded(NamedTuple):
    """What came of a product's pictures.

    Attributes:
        variants: (kind, JPEG) of each.
        core_region: left, top, right, bottom in shares of the first picture; [] where none was found.
        method: how the subject was found; "no_image" where no picture can be read.
        unreadable: numbers of the pictures before it that could not be read, with the reason.
        picture: JPEG of the picture that it is all made of; None without one.
        main_image: JPEG of I_m, if it was wanted.
    """

    variants: list[tuple[str, bytes]]
    core_region: list[float]
    method: str
    unreadable: list[tuple[int, str]]
    picture: bytes | None
    main_image: bytes | None


def read_first(
    images: Sequence[Mapping[str, Any]], folder: Path, max_side: int
) -> tuple[int, Image.Image | None, list[tuple[int, str]]]:
    """The first picture that can be read.

    Args:
        images: {"bytes", "path"} each.
        folder: where relative paths start, if they are not found where they are.
        max_side: pixels.

    Returns:
        Its number, the picture, RGB or RGBA, and (number, reason) of those before it that cannot be read; the picture
        is None if none can.
    """
    unreadable = []
    for number, reference in enumerate(images):
        try:
            return number, _open(reference, folder, max_side), unreadable
        except UnidentifiedImageError:
            unreadable.append((number, "no picture"))
        except Exception as error:  # damaged files end in every kind of error, and one must not cost the run
            unreadable.append((number, f"{type(error).__name__}: {error}"))
    return len(images), None, unreadable


def expand_product(
    product_id: str, images: Sequence[Mapping[str, Any]], wanted: Expansion, subject: Subject | None = None
) -> Expanded:
    """Find the subject of a product's first readable picture and make variants of it; runs in worker processes.

    Args:
        product_id: with the seed, fixes all chance.
        images: {"bytes", "path"} each.
        wanted: what to make.
        subject: where it is, if that is known already.
    """
    number, picture, unreadable = read_first(images, wanted.folder, wanted.max_side)
    if picture is None:
        return Expanded([], [], "no_image", unreadable, None, None)
    subject = extract_subject(picture) if subject is None else subject
    made = expand(picture, subject, product_id, wanted.seed, wanted.per_product, wanted.kinds)
    return Expanded(
        variants=[(variant.kind, to_jpeg(variant.image)) for variant in made],
        core_region=subject_box(subject) if number == 0 else [],  # boxes are of the first picture
        method=subject.method,
        unreadable=unreadable,
        picture=to_jpeg(picture),
        main_image=to_jpeg(main_image(picture, subject)) if wanted.wants_main_image else None,
    )


def to_jpeg(picture: Image.Image) -> bytes:
    """Bytes of a picture, transparency on white."""
    if picture.mode != "RGB":
        colours = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")
    return as_jpeg(picture, JPEG_QUALITY)


def _open(reference: Mapping[str, Any], folder: Path, max_side: int) -> Image.Image:
    data, path = reference.get("bytes"), reference.get("path")
    if data:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    else:
        place = Path(path)
        picture = Image.open(place if place.is_absolute() or place.exists() else folder / place, formats=FORMATS)
    if max(picture.size) > max_side:
        picture.draft(None, (max_side, max_side))
    picture = eight_bits(upright(picture))
    picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return picture
