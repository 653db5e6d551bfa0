"""Turns a catalogue picture into what a shopper's phone would have made of the product."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image, ImageFilter

MAX_SIDE = 512  # photos are made at most this large: queries are small, and so is the time


def make_query_photo(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Photograph a product picture anew: turned, cropped, perhaps mirrored, in other light, blurred, compressed.

    One resampling step does turn, tilt and crop; what lies outside the picture becomes a random backdrop colour.

    Args:
        image: RGB picture of the product, any size.
        rng: the only source of randomness; the same state gives the same photo.

    Returns:
        An RGB photo, 0.8 to 1 times as large as the picture and never larger than 512 pixels.
    """
    image = image.convert("RGB")
    scale = min(1.0, MAX_SIDE / max(image.size)) * rng.uniform(0.8, 1.0)
    width, height = (max(1, round(side * scale)) for side in image.size)
    backdrop = tuple(int(value) for value in rng.integers(60, 256, 3))
    photo = image.transform(
        (width, height),
        Image.Transform.PERSPECTIVE,
        _viewpoint(image.size, (width, height), rng),
        Image.Resampling.BILINEAR,
        fillcolor=backdrop,
    )
    if rng.random() < 0.3:
        photo = photo.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0) * max(photo.size) / 160))

    pixels = np.asarray(photo, dtype=np.float32)
    pixels = (pixels - 128) * rng.uniform(0.8, 1.2) + 128  # contrast
    pixels *= rng.uniform(0.7, 1.25) * rng.uniform(0.94, 1.06, 3)  # light and its colour temperature
    pixels += rng.normal(0, rng.uniform(0, 6), (height, width, 1))  # sensor noise
    photo = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))

    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=int(rng.integers(40, 86)))
    return Image.open(buffer).convert("RGB")


def _viewpoint(
    source: tuple[int, int], target: tuple[int, int], rng: np.random.Generator
) -> tuple[float, float, float, float, float, float, float, float]:
    """Coefficients that take a pixel of the photo to a point of the picture: crop, turn up to 12°, tilt, mirror."""
    angle = math.radians(rng.uniform(-12, 12))
    zoom = math.sqrt(rng.uniform(0.75, 1.05))  # side of the part that the photo shows
    mirror = -1 if rng.random() < 0.5 else 1
    slack = abs(1 - zoom) / 2
    centre_x, centre_y = (side * (0.5 + rng.uniform(-slack, slack)) for side in source)
    step_x, step_y = (zoom * s / t for s, t in zip(source, target, strict=True))
    cos, sin = math.cos(angle), math.sin(angle)
    a, b = mirror * cos * step_x, -sin * step_y
    d, e = mirror * sin * step_x, cos * step_y
    c = centre_x - a * target[0] / 2 - b * target[1] / 2
    f = centre_y - d * target[0] / 2 - e * target[1] / 2
    g, h = (rng.uniform(-0.1, 0.1) / side for side in target)  # tilt
    return a, b, c, d, e, f, g, h
