from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from moon2_training.query_photo import MAX_SIDE, make_query_photo


def colourful(width: int, height: int) -> Image.Image:
    """A smooth picture: left to right red, top to bottom green."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([255 * x / max(width - 1, 1), 255 * y / max(height - 1, 1), 0 * x + 80], -1)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize("size", [(1, 1), (60, 80), (120, 160), (1500, 2000), (300, 7)])
def test_any_size_gives_a_smaller_rgb_photo(size):
    photo = make_query_photo(colourful(*size), np.random.default_rng(0))
    assert photo.mode == "RGB"
    assert all(1 <= new <= min(old, MAX_SIDE) for new, old in zip(photo.size, size, strict=True))


def test_the_same_state_gives_the_same_photo_and_others_differ(make_image):
    photos = [np.asarray(make_query_photo(make_image(0), np.random.default_rng(seed))) for seed in (1, 1, 2, 3)]
    np.testing.assert_array_equal(photos[0], photos[1])
    assert len({photo.tobytes() for photo in photos}) == 3


def test_it_is_never_the_picture_itself_but_still_resembles_it():
    picture = colourful(120, 160)
    similarities = []
    for seed in range(40):
        photo = make_query_photo(picture, np.random.default_rng(seed))
        pixels = np.asarray(photo.resize(picture.size), dtype=float)
        original = np.asarray(picture, dtype=float)
        assert np.abs(pixels - original).mean() > 3
        # away from the corners, rows survive every change and columns may be mirrored
        pixels, original = pixels[40:120, 30:90], original[40:120, 30:90]
        rows = np.corrcoef(pixels[..., 1].mean(1), original[..., 1].mean(1))[0, 1]
        columns = np.corrcoef(pixels[..., 0].mean(0), original[..., 0].mean(0))[0, 1]
        similarities.append((rows, columns))
    rows, columns = np.array(similarities).T
    assert rows.min() > 0.8 and np.abs(columns).min() > 0.8
    assert 8 < (columns < 0).sum() < 32  # about half are mirrored


def test_most_of_the_product_stays_in_the_frame():
    dot = Image.new("RGB", (120, 160), (30, 30, 30))
    dot.paste((250, 40, 40), (50, 70, 70, 90))
    shares = []
    for seed in range(40):
        pixels = np.asarray(make_query_photo(dot, np.random.default_rng(seed)).resize(dot.size), dtype=int)
        centre = pixels[30:130, 25:95]  # the corners may hold a reddish backdrop
        shares.append((centre[..., 0] - centre[..., 1] > 60).sum() / (20 * 20))
    assert 0.7 < min(shares) and max(shares) < 2.5
