from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from moon2_dataset.demo_drawing import BACKDROPS, COLOURS, GLOSS, PATTERNS, Camera, Look, photograph
from moon2_dataset.demo_shapes import SHAPES

CUT = (0.5, 0.5, 0.5, 0.5)


def drawn(look: Look, camera: Camera | None = None, backdrop: str = "white", seed: int = 0) -> np.ndarray:
    data = photograph(look, camera or Camera(), backdrop, np.random.default_rng(seed))
    return np.asarray(Image.open(io.BytesIO(data)), dtype=float)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_shows_a_product_of_its_colour(shape):
    red, blue = (drawn(Look(shape, colour, "plain", "cotton", 0, CUT)) for colour in ("red", "blue"))
    differs = np.abs(red - blue).sum(-1) > 60
    assert 0.02 < differs.mean() < 0.8  # the product, not the backdrop
    assert (red - blue)[differs][:, 0].mean() > 20 > (red - blue)[differs][:, 2].mean()


@pytest.mark.parametrize("trait", ["pattern", "shape", "brand", "material"])
def test_every_trait_shows(trait):
    look = {"shape": "tote", "colour": "green", "pattern": "plain", "material": "leather", "brand": 0, "cut": CUT}
    values = {"pattern": PATTERNS, "shape": SHAPES, "brand": range(12), "material": ["denim", "leather", "wool"]}[
        trait
    ]
    pictures = [drawn(Look(**look | {trait: value})) for value in values]
    assert len({picture.tobytes() for picture in pictures}) >= len(values) * 0.5


@pytest.mark.parametrize("backdrop", BACKDROPS)
def test_backdrops_and_cameras_change_the_picture(backdrop):
    look = Look("mug", "navy", "dotted", "ceramic", 3, CUT)
    front, turned = drawn(look, Camera(), backdrop), drawn(look, Camera(yaw=35, roll=10, scale=0.7), backdrop)
    assert front.shape != turned.shape or np.abs(front - turned).mean() > 2


def test_every_colour_is_told_apart():
    means = np.array(
        [drawn(Look("t-shirt", c, "plain", "cotton", 0, CUT))[60:110, 60:100].mean((0, 1)) for c in COLOURS]
    )
    distance = np.linalg.norm(means[:, None] - means, axis=-1) + 1e9 * np.eye(len(COLOURS))
    assert distance.min() > 12
    assert set(GLOSS) and all(0 <= gloss <= 1 for gloss in GLOSS.values())
