from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text
from PIL import Image

from moon2_space.balance import (
    ExpertLoad,
    draw_expert_load,
    draw_modality_gap,
    expert_load,
    modality_gap,
)
from moon2_training.encode import VIEWS, Encoder, Views
from moon2_training.items import ProductItems
from moon2_training.mini import build_mini


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def views_with_gap(number: int, seed: int = 0) -> Views:
    """Views of products in 8 dimensions; the images lie off the texts along the last one."""
    rng = np.random.default_rng(seed)
    product = rng.normal(size=(number, 8)) * [3, 1, 1, 1, 1, 1, 1, 0.1]
    away = np.eye(8)[7]
    text, image = unit(product + 0.1 * rng.normal(size=(number, 8))), unit(product + 2 * away)
    both = np.ones(number, dtype=bool)
    return Views(text, image, unit(text + image), both, both)


def texts_of(figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if text.get_text()]


def saved(figure) -> np.ndarray:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return np.asarray(Image.open(buffer).convert("RGBA"))


def test_loads_are_those_of_the_items_one_by_one(tiny, shop):
    encoder, items = Encoder(*tiny, batch_size=5), ProductItems(shop.products)
    load = expert_load(encoder, items)
    assert load.load.shape == (3, 2, 4) and load.layers == [0, 1] and load.experts_per_token == 2
    np.testing.assert_allclose(load.load.sum(-1), 1, atol=1e-6)
    assert load.load.max() <= 0.5 + 1e-6  # a token goes to two of them
    alone = [expert_load(encoder, [items[row]]) for row in range(len(items))]
    tokens = np.stack([one.tokens for one in alone])  # (24, 3)
    assert (tokens.sum(0) == load.tokens).all() and tokens[3, 1] == 0  # product 3 has no picture
    weighted = sum(one.load * one.tokens[:, None, None] for one in alone)
    np.testing.assert_allclose(weighted / load.tokens[:, None, None], load.load, atol=1e-5)


def test_texts_alone_load_the_text_view_and_a_dense_model_has_no_experts(tiny_config, tiny):
    texts = [{"text": "red mug", "images": []}]
    load = expert_load(Encoder(*tiny), texts)
    assert load.tokens[0] > 0 and load.tokens[1:].tolist() == [0, 0] and not load.load[1:].any()
    dense = Encoder(*build_mini(type(tiny_config)(**vars(tiny_config) | {"num_experts": 0}), ["red mug"] * 20))
    with pytest.raises(ValueError, match="the model is dense: it has no experts to choose from"):
        expert_load(dense, texts)


def test_the_gap_is_the_distance_of_the_centroids_and_drawn_at_its_length():
    views = views_with_gap(60)
    gap = modality_gap(views)
    true = np.linalg.norm(views.text.mean(0) - views.image.mean(0))
    assert gap.distances["text", "image"] == pytest.approx(true, rel=1e-5) and true > 0.3
    centres = {view: points.mean(0) for view, points in gap.points.items()}
    assert np.linalg.norm(centres["text"] - centres["image"]) == pytest.approx(true, rel=1e-4)
    assert centres["text"][0] < centres["multimodal"][0] < centres["image"][0]
    assert 0 < gap.explained.sum() <= 1 and gap.explained[1] > gap.explained[0]  # products differ more than views
    similar = views.text @ views.image.T
    off = similar[~np.eye(60, dtype=bool)]
    assert gap.own["text", "image"] == pytest.approx(np.diag(similar).mean(), abs=1e-5)
    assert gap.other["text", "image"] == pytest.approx(off.mean(), abs=1e-5)


def test_no_gap_between_equal_views():
    text = unit(np.random.default_rng(1).normal(size=(20, 6)))
    gap = modality_gap(Views(text, text, text, np.ones(20, dtype=bool), np.ones(20, dtype=bool)))
    assert max(gap.distances.values()) == 0 and np.isfinite(gap.points["text"]).all()


def test_products_that_lack_a_view_are_left_out_of_the_gap():
    views = views_with_gap(30)
    has_image = np.arange(30) < 20
    part = views._replace(image=views.image * has_image[:, None], has_image=has_image)
    assert len(modality_gap(part).points["text"]) == 20
    with pytest.raises(ValueError, match="1 of 30 products have text and image; the gap between views needs two"):
        modality_gap(views._replace(has_image=np.arange(30) < 1))


@pytest.mark.parametrize("ink", ["#1d1d1f", "#f5f5f7"])
def test_figures_say_their_numbers_in_the_given_ink_on_nothing(ink):
    shares = np.array([[[0.5, 0.25, 0.25], [0.4, 0.3, 0.3]]] * 2 + [[[0.0] * 3] * 2])
    loads = draw_expert_load(ExpertLoad(shares, np.array([1200, 40, 0]), [1, 3], 2), ink)
    gap = draw_modality_gap(modality_gap(views_with_gap(40)), ink)
    assert [axes.get_label() for axes in loads.axes[:3]] == list(VIEWS)
    said = " ".join(text.get_text() for text in texts_of(loads))
    assert all(part in said for part in ("layer 3", "1,200 tokens", "50%", "2 of 3", "no product has this view"))
    said = " ".join(text.get_text() for text in texts_of(gap))
    assert "Modality gap: 0." in said and all(view in said for view in VIEWS)
    assert {to_hex(text.get_color()) for text in texts_of(gap)} == {ink}
    for figure in (loads, gap):
        pixels = saved(figure)
        assert pixels[0, 0, 3] == 0 and (pixels[..., 3] > 0).mean() > 0.01


def test_many_experts_are_drawn_without_numbers():
    shares = np.random.default_rng(2).dirichlet(np.ones(32), size=(3, 4)).astype(np.float32)
    figure = draw_expert_load(ExpertLoad(shares, np.array([9, 9, 9]), [0, 1, 2, 3], 4))
    assert not figure.axes[0].texts and len(figure.axes[0].images) == 1 and len(figure.axes[0].get_xticks()) == 8
