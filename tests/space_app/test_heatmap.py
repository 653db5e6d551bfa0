from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from moon2_dataset.demo_catalogue import BRANDS, KINDS
from moon2_dataset.demo_drawing import BACKDROPS, COLOURS, PATTERNS, Camera, Look, photograph, silhouette
from moon2_space.heatmap import SHORT_SIDE_CELLS, Heatmap, draw_heatmap, match_heatmap
from moon2_training.encode import Encoder


def drawn_products(count: int, seed: int, scale: float) -> list[tuple[Image.Image, np.ndarray, str, str]]:
    """Pictures before all kinds of backdrop, their silhouettes, what a shopper would type, and their titles."""
    rng = np.random.default_rng(seed)
    colours, products = list(COLOURS), []
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        look = Look(
            shape=kind.shape,
            colour=colours[rng.integers(len(colours))],
            pattern=PATTERNS[rng.integers(1, len(PATTERNS))],
            material=kind.materials[rng.integers(len(kind.materials))],
            brand=int(rng.integers(len(BRANDS))),
            cut=tuple(rng.random(4)),
        )
        camera = Camera(yaw=rng.uniform(-30, 30), roll=rng.uniform(-10, 10), scale=scale)
        picture = Image.open(io.BytesIO(photograph(look, camera, BACKDROPS[number % len(BACKDROPS)], rng)))
        words = f"{look.colour} {look.pattern} {kind.nouns[0]}"
        products.append((picture, silhouette(look, camera, *picture.size), words, f"{BRANDS[look.brand]} {words}"))
    return products


def share_in(cells: np.ndarray, mask: np.ndarray) -> float:
    """Share of a map's heat within a mask of the picture."""
    heat = np.asarray(Image.fromarray(cells).resize(mask.shape[::-1], Image.Resampling.NEAREST))
    return float((heat * mask).sum() / heat.sum()) if heat.any() else 0.0


def asked(words: str) -> dict:
    return {"text": words, "images": []}


def test_the_silhouette_holds_the_heat(trained_encoder):
    products = drawn_products(17, seed=11, scale=0.8)
    gains = []
    for picture, mask, words, title in products:
        heatmap = match_heatmap(trained_encoder, asked(words), {"text": title, "images": [picture]})
        assert min(heatmap.cells.shape) >= 8 and heatmap.cells.min() >= 0 and heatmap.cells.max() <= 1
        gains.append(share_in(heatmap.cells, mask) / mask.mean())
    assert np.mean(gains) >= 2  # 1 by chance


def test_the_heat_goes_to_the_product_that_the_words_name(trained_encoder):
    products = drawn_products(24, seed=12, scale=0.9)
    moved = []
    for (left, _, left_words, _), (right, _, right_words, _) in zip(products, products[5:], strict=False):
        pair = Image.new("RGB", (320, 160))
        pair.paste(left.resize((160, 160)), (0, 0))
        pair.paste(right.resize((160, 160)), (160, 0))
        on_left = np.zeros((160, 320), dtype=np.float32)
        on_left[:, :160] = 1
        shares = [
            share_in(match_heatmap(trained_encoder, asked(words), {"text": None, "images": [pair]}).cells, on_left)
            for words in (left_words, right_words)
        ]
        moved.append(shares[0] - shares[1])
    assert np.mean(moved) > 0.2 and np.mean(np.array(moved) > 0) > 0.7


def test_the_words_that_were_asked_for_weigh_most(trained_encoder):
    right, wrong = [], []
    for _, _, words, title in drawn_products(17, seed=13, scale=0.9):
        for word in words.split()[:2]:  # colour and pattern
            weights = match_heatmap(trained_encoder, asked(word), asked(title)).words
            assert [text for text, _ in weights] == title.split()
            right.append(dict(weights)[word])
            wrong.append(np.mean([weight for text, weight in weights if text != word]))
    assert np.mean(right) > 0.8 and np.mean(wrong) < 0.2


def test_the_average_of_a_catalogue_is_taken_off_the_query_but_not_off_the_score(trained_encoder):
    (picture, _, _, title), *others = drawn_products(4, seed=14, scale=0.8)
    item = {"text": title, "images": [picture]}
    average = trained_encoder.encode([{"text": p[3], "images": [p[0]]} for p in others], progress=False).mean(0)
    query = {"text": None, "images": [others[0][0]]}
    plain = match_heatmap(trained_encoder, query, item)
    sharper = match_heatmap(trained_encoder, query, item, average)
    assert plain.score == sharper.score and not np.allclose(plain.cells, sharper.cells)


def test_the_score_is_the_similarity_that_search_ranks_by(tiny, make_image):
    encoder = Encoder(*tiny)
    items = [
        {"text": "red mug", "images": []},
        {"text": None, "images": [make_image(1)]},
        {"text": "Lumo navy blue leather handbag", "images": [make_image(2, 90, 50)]},
    ]
    vectors = encoder.encode(items, progress=False)
    for row, item in enumerate(items):
        heatmap = match_heatmap(encoder, items[0], item)
        assert heatmap.score == pytest.approx(float(vectors[0] @ vectors[row]), abs=1e-5)
        assert (heatmap.cells is None) == (not item["images"]) and bool(heatmap.words) == (item["text"] is not None)


def test_frozen_weights_give_the_same_map_and_none_is_left_a_gradient(tiny, make_image):
    encoder = Encoder(*tiny)
    arguments = asked("red mug"), {"text": "navy mug", "images": [make_image(3)]}
    free = match_heatmap(encoder, *arguments)
    assert all(parameter.grad is None for parameter in encoder.model.parameters())
    try:
        encoder.model.requires_grad_(False)
        frozen = match_heatmap(encoder, *arguments)
    finally:
        encoder.model.requires_grad_(True)
    np.testing.assert_allclose(free.cells, frozen.cells, atol=1e-5)
    assert dict(free.words) == pytest.approx(dict(frozen.words), abs=1e-5)


@pytest.mark.parametrize(
    ("size", "cells"), [((60, 60), (12, 12)), ((60, 90), (18, 12)), ((400, 40), (12, 48)), ((20, 900), (48, 12))]
)
def test_the_cells_follow_the_shape_of_the_picture(tiny, make_image, size, cells):
    item = {"text": None, "images": [make_image(4, *size)]}
    assert match_heatmap(Encoder(*tiny), asked("mug"), item).cells.shape == cells
    assert min(cells) == SHORT_SIDE_CELLS


def test_words_are_those_of_the_title_in_any_script(tiny):
    encoder = Encoder(*tiny)
    title = "  Lumo  红色马克杯 كوب أحمر <|image_pad|> déjà-vu "
    words = [word for word, _ in match_heatmap(encoder, asked("mug"), asked(title)).words]
    assert words[:8] == ["Lumo", "红", "色", "马", "克", "杯", "كوب", "أحمر"] and words[-1] == "déjà-vu"


def test_words_behind_what_the_model_reads_weigh_nothing(tiny):
    encoder = Encoder(*tiny)
    limit = encoder.processor.tokenizer.model_max_length
    words = match_heatmap(encoder, asked("mug"), asked("mug " * (2 * limit))).words
    assert len(words) == 2 * limit and words[0][1] >= 0 and not any(weight for _, weight in words[limit:])


def test_a_drawn_map_is_hot_where_its_cells_are(make_image):
    cells = np.zeros((8, 8), dtype=np.float32)
    cells[:, 6:] = 1
    image = Image.new("RGB", (200, 100), "#4060a0")
    drawn = draw_heatmap(image, Heatmap(cells, [], 0.5))
    pixels = np.asarray(drawn, dtype=np.int32)
    height = 240
    assert drawn.width == 480 and drawn.height > height
    left, right = pixels[:height, :200].mean((0, 1)), pixels[:height, -80:].mean((0, 1))
    assert right[0] > left[0] + 80 and right[1] > left[1] + 80  # light yellow
    assert np.ptp(pixels[height:].mean(0).sum(-1)) > 50  # a legend


def test_an_item_without_picture_cannot_be_drawn(make_image):
    with pytest.raises(ValueError, match="map an item that has a picture"):
        draw_heatmap(make_image(0), Heatmap(None, [("mug", 1.0)], 0.5))


def test_an_empty_item_is_refused(tiny):
    with pytest.raises(ValueError, match="item 0 has neither text nor image; give at least one"):
        match_heatmap(Encoder(*tiny), asked("mug"), {"text": " ", "images": []})
