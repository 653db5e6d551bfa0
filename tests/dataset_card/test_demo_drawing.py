from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from moon2_dataset.demo_catalogue import KINDS
from moon2_dataset.demo_drawing import BACKDROPS, COLOURS, GLOSS, PATTERNS, Camera, Look, photograph, silhouette
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


def test_two_colours_differ_on_the_silhouette_alone():
    camera = Camera(yaw=25, roll=-8, scale=0.7)
    red, blue = (drawn(Look("t-shirt", colour, "plain", "cotton", 0, CUT), camera) for colour in ("red", "blue"))
    covered = silhouette(Look("t-shirt", "red", "plain", "cotton", 0, CUT), camera, red.shape[1], red.shape[0])
    differs = np.abs(red - blue).sum(-1) > 60
    assert covered.shape == differs.shape and 0 <= covered.min() and covered.max() <= 1
    assert differs[covered > 0.9].mean() > 0.9 and differs[covered == 0].mean() < 0.01


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


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.shape)
def test_a_picture_tells_a_material_that_looks_like_no_other(kind):
    looks = {m: Look(kind.shape, "green", "plain", m, 3, CUT) for m in kind.materials}
    pictures = {material: drawn(look) for material, look in looks.items()}
    alike = set()
    for one, other in itertools.combinations(kind.materials, 2):
        difference = np.abs(pictures[one] - pictures[other]).mean(-1)
        if np.sort(difference.ravel())[-200:].mean() < 7:  # levels of 255, where they differ most
            alike |= {one, other}
    for material, look in looks.items():
        assert ("material" in look.told(kind.materials)) == (material not in alike)
        assert {"colour", "pattern"} <= look.told(kind.materials)


@pytest.mark.parametrize("trait", ["colour", "pattern", "material"])
@pytest.mark.parametrize("shape", ["t-shirt", "mug", "sunglasses"])
def test_a_bare_sample_does_not_show_the_trait(shape, trait):
    look = {"shape": shape, "colour": "green", "pattern": "striped", "material": "denim", "brand": 0, "cut": CUT}
    other = {"colour": "red", "pattern": "dotted", "material": "leather"}[trait]
    one, two = Look(**look), Look(**look | {trait: other})
    assert np.array_equal(drawn(one.without([trait])), drawn(two.without([trait])))
    assert not np.array_equal(drawn(one), drawn(two))
    rest = [name for name in ("colour", "pattern", "material") if name != trait]
    assert not np.array_equal(drawn(one.without([trait])), drawn(one.without([trait, *rest])))
