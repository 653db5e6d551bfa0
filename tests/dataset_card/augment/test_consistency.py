from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from moon2_dataset.augment.consistency import Scorer, keep_consistent


@pytest.fixture(scope="module", params=["clip", "siglip", "moon2"])
def checkpoint(request, tiny, tiny_dual_encoder, tmp_path_factory):
    """Folder of a tiny random model with its processor."""
    folder = tmp_path_factory.mktemp(request.param)
    for part in tiny if request.param == "moon2" else tiny_dual_encoder(request.param):
        part.save_pretrained(folder)
    return folder


def test_a_score_depends_on_its_own_pair_alone(checkpoint, make_image):
    images = [make_image(seed, 40 + seed, 50) for seed in range(5)]
    titles = [
        "red mug",
        "navy shoes",
        "red mug",
        "  ",
        "lumo blue handbag with a title beyond the model's length " * 9,
    ]
    together = Scorer(str(checkpoint), device="cpu", batch_size=2).score(images, titles)
    one_by_one = Scorer(str(checkpoint), device="cpu", batch_size=1)
    for image, title, score in zip(images, titles, together, strict=True):
        alone = one_by_one.score([image], [title])
        np.testing.assert_allclose(alone, [score], atol=1e-5)
    assert np.isnan(together[3]) and np.isfinite(together[[0, 1, 2, 4]]).all() and (np.abs(together[:3]) <= 1).all()
    assert together[0] != pytest.approx(together[2], abs=1e-6)  # one title, two pictures


def test_a_model_saved_in_half_precision_scores_as_well(checkpoint, tmp_path, make_image):
    scorer = Scorer(str(checkpoint), device="cpu")
    images, titles = [make_image(1), make_image(2)], ["red mug", "navy shoes"]
    expected = scorer.score(images, titles)
    scorer.model.half().save_pretrained(tmp_path)
    scorer.processor.save_pretrained(tmp_path)
    np.testing.assert_allclose(Scorer(str(tmp_path), device="cpu").score(images, titles), expected, atol=0.02)


def test_a_moon2_score_is_the_dot_product_of_the_views(tiny, tmp_path, make_image):
    model, processor = tiny
    for part in tiny:
        part.save_pretrained(tmp_path)
    image = make_image(3)
    with torch.no_grad():
        views = model.encode_views(**processor(text=["red mug"], images=[image]))
    expected = float(views.text_embeddings[0] @ views.image_embeddings[0])
    assert Scorer(str(tmp_path), device="cpu").score([image], ["red mug"])[0] == pytest.approx(expected, abs=1e-5)


def test_a_picture_that_cannot_be_scored_is_told_and_loses_no_other(tiny, tmp_path, make_image):
    for part in tiny:
        part.save_pretrained(tmp_path)
    scorer = Scorer(str(tmp_path), device="cpu", batch_size=2)
    images = [make_image(1), Image.new("RGB", (4000, 2)), make_image(2)]  # the image processor refuses such a shape
    scores = scorer.score(images, ["red mug", "navy shoes", "mug"])
    assert np.isfinite(scores[[0, 2]]).all() and np.isnan(scores[1])
    assert list(scorer.failures.reasons) == [1] and "ValueError" in scorer.failures.reasons[1]
    np.testing.assert_allclose(scorer.score([images[0]], ["red mug"]), scores[:1], atol=1e-5)
    assert scorer.failures.reasons == {}


def test_a_scorer_that_only_fails_is_an_error_that_names_it(checkpoint, make_image):
    scorer = Scorer(str(checkpoint), device="cpu")
    with torch.no_grad():
        for weight in scorer.model.parameters():
            weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=f"scorer {checkpoint}: failed at . items and succeeded at none; the first"):
        scorer.score([make_image(1), make_image(2)] * 5, ["red mug", "blue shoes"] * 5)
    for weight in scorer.model.parameters():
        weight.data = weight.data.flatten()  # no shape that a layer can work with
    with pytest.raises(ValueError, match="Error: "):
        scorer.score([make_image(1)], ["red mug"])


def test_no_pictures_give_no_scores(checkpoint):
    assert Scorer(str(checkpoint), device="cpu").score([], []).shape == (0,)


def test_another_kind_of_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"scorer .*: cannot be used \(it is a bert model\); give a folder or Hub id"):
        Scorer(str(tmp_path))
    with pytest.raises(ValueError, match="cannot be used"):
        Scorer(str(tmp_path / "nothing"))


def test_what_is_dropped_and_why():
    original = np.array([0.3, 0.3, np.nan], dtype=np.float32)
    variants = np.array([[0.29, 0.05, 0.19], [0.31, np.nan, 0.21], [0.5, 0.09, np.nan]], dtype=np.float32)
    verdict = keep_consistent(original, variants, threshold=0.1, margin=0.1)
    assert verdict.kept.tolist() == [[True, False, False], [True, False, True], [True, False, False]]
    assert verdict.under_threshold.tolist() == [[False, True, False], [False, False, False], [False, True, False]]
    assert verdict.under_original.tolist() == [[False, False, True], [False, False, False], [False, False, False]]


def test_without_a_threshold_the_original_alone_decides():
    original = np.array([0.1, np.nan], dtype=np.float32)  # as SigLIP scores a picture of what the title says
    variants = np.array([[0.09, 0.02, -0.5], [-0.9, np.nan, 0.1]], dtype=np.float32)
    verdict = keep_consistent(original, variants, threshold=None, margin=0.05)
    assert verdict.kept.tolist() == [[True, False, False], [True, False, True]]
    assert not verdict.under_threshold.any() and verdict.under_original.tolist() == [[False, True, True], [False] * 3]
