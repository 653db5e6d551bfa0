from __future__ import annotations

import io

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from moon2_dataset import demo_drawing
from moon2_dataset.augment.subject import Subject, extract_subject
from moon2_dataset.augment.variants import KINDS, WITHOUT_MASK, expand, main_image, surroundings
from moon2_dataset.demo_catalogue import _original


@pytest.fixture(scope="module")
def product() -> tuple[Image.Image, Subject]:
    """A drawn product, and the subject in it."""
    look = _original(np.random.default_rng(4)).look
    picture = demo_drawing.photograph(look, demo_drawing.Camera(scale=0.7), "white", np.random.default_rng(0))
    picture = Image.open(io.BytesIO(picture)).convert("RGB")
    return picture, extract_subject(picture)


def pixels(variants) -> list[tuple[str, bytes]]:
    return [(variant.kind, variant.image.tobytes()) for variant in variants]


def test_variants_depend_on_product_and_seed_alone(product):
    first = expand(*product, "a", 0, 5)
    expand(*product, "b", 1, 3)
    assert pixels(expand(*product, "a", 0, 5)) == pixels(first)
    assert pixels(expand(*product, "b", 0, 5)) != pixels(first) != pixels(expand(*product, "a", 1, 5))


def test_every_kind_comes_before_any_comes_again(product):
    kinds = [variant.kind for variant in expand(*product, "a", 0, 12)]
    assert sorted(kinds[:5]) == sorted(KINDS) == sorted(kinds[5:10]) and len(kinds) == 12
    assert {variant.kind for variant in expand(*product, "a", 0, 4, ("light", "detail"))} == {"light", "detail"}


def test_an_unsure_mask_is_not_cut_out(product):
    picture, subject = product
    for unsure in (subject._replace(confidence=0.01), subject._replace(method="none")):
        kinds = {variant.kind for variant in expand(picture, unsure, "a", 0, 6)}
        assert kinds == set(WITHOUT_MASK)
        assert expand(picture, unsure, "a", 0, 3, ("background", "detail")) == []


def test_variants_are_pictures_no_larger_than_the_source(product):
    picture, subject = product
    before = np.asarray(picture)
    for variant in expand(picture, subject, "c", 0, 10):
        assert variant.image.mode == "RGB" and max(variant.image.size) <= max(picture.size)
        assert (variant.to_source is None) == (variant.kind == "detail")
        after = np.asarray(variant.image)
        assert after.shape != before.shape or np.abs(after.astype(int) - before).max() > 20


def test_the_main_image_is_the_product_alone(product):
    picture, subject = product
    on_grey = Image.open(io.BytesIO(demo_drawing.photograph(
        _original(np.random.default_rng(4)).look, demo_drawing.Camera(scale=0.7), "grey", np.random.default_rng(0)
    )))  # fmt: skip
    alone = np.asarray(main_image(on_grey, extract_subject(on_grey)))
    corners = alone[:5, :5], alone[-5:, -5:]
    assert all((corner == 255).all() for corner in corners) and (alone < 200).any(axis=2).mean() > 0.05


def test_surroundings_differ():
    scenes = [surroundings(40, 60, np.random.default_rng(number)) for number in range(20)]
    assert all(scene.shape == (40, 60, 3) and 0 <= scene.min() and scene.max() <= 255 for scene in scenes)
    assert len({scene.tobytes() for scene in scenes}) == 20


def test_the_product_stays_whole_on_real_photos(shared_data):
    table = pq.read_table(shared_data / "fashion" / "products-validation.parquet", columns=["images"])
    worst = {kind: 1.0 for kind in KINDS if kind != "detail"}
    for number, images in enumerate(table["images"].to_pylist()[::8]):
        picture = Image.open(io.BytesIO(images[0]["bytes"])).convert("RGB")
        subject = extract_subject(picture)
        for variant in expand(picture, subject, f"p{number}", 0, len(KINDS)):
            if variant.to_source is None:
                continue
            there = cv2.warpPerspective(subject.mask, np.linalg.inv(variant.to_source), variant.image.size)
            back = cv2.warpPerspective(there, variant.to_source, picture.size) > 0.5
            mask = subject.mask > 0.5
            worst[variant.kind] = min(worst[variant.kind], (back & mask).sum() / (back | mask).sum())
    assert min(worst.values()) >= 0.9, worst


def test_a_variant_shows_the_product_where_the_homography_says(product):
    """The mask found anew in a variant, brought back to the source, is the source's."""
    picture, subject = product
    found = 0
    for seed in range(6):
        for variant in expand(picture, subject, "d", seed, 2, ("framing", "viewpoint")):
            again = extract_subject(variant.image)
            back = cv2.warpPerspective(again.mask, variant.to_source, picture.size) > 0.5
            mask = subject.mask > 0.5
            assert (back & mask).sum() / (back | mask).sum() > 0.8
            found += 1
    assert found == 12
