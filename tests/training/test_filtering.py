from __future__ import annotations

import math

import pytest
import torch

from moon2_training import similarity_blocks
from moon2_training.filtering import MarginSchedule, SampleFilter, mean_negative_similarity, triplet_confidence


def test_confidence_by_hand():
    phi = triplet_confidence(torch.tensor([0.9, 0.3]), torch.tensor([0.1, 0.5]), kappa=10.0, margin=0.2)
    expected = [1 / (1 + math.exp(-10 * x)) for x in (0.6, -0.4)]
    torch.testing.assert_close(phi, torch.tensor(expected))


@pytest.mark.parametrize("at_once", [1 << 22, 3])  # the second takes a block for each query
def test_the_negative_of_a_query_without_one_is_the_mean_of_the_batch(monkeypatch, at_once):
    monkeypatch.setattr(similarity_blocks, "SIMILARITIES_AT_ONCE", at_once)
    queries, items = torch.eye(2), torch.tensor([[0.9, 0.2], [0.1, 0.8], [0.3, 0.4]])
    negatives = torch.tensor([[False, True, True], [False, False, False]])
    assert mean_negative_similarity(queries, items, negatives).tolist() == pytest.approx([0.2, -1.0])


@pytest.mark.parametrize(
    ("shape", "middle", "end"), [("cosine", 0.1, 0.0), ("linear", 0.1, 0.0), ("constant", 0.2, 0.2)]
)
def test_the_margin_goes_from_start_to_end(shape, middle, end):
    schedule = MarginSchedule(0.2, 0.0, shape)
    assert [schedule.at(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.2, middle, end])
    values = [schedule.at(p / 20) for p in range(21)]
    assert values == sorted(values, reverse=True)


def test_weights_are_full_from_the_threshold_on_and_in_the_warm_up():
    positive, negative = torch.tensor([0.9, 0.5, 0.2], requires_grad=True), torch.tensor([0.1, 0.45, 0.4])
    linear = SampleFilter(threshold=0.6, kappa=10.0, warmup=0.1)
    result = linear(positive, negative, progress=1.0)
    phi = triplet_confidence(positive, negative, 10.0, 0.0)
    assert result.kept.tolist() == [True, True, False] and not result.weights.requires_grad
    assert result.weights.tolist() == pytest.approx([1.0, 1.0, float(phi[2]) / 0.6])
    assert linear(positive, negative, progress=0.05).weights.tolist() == [1.0, 1.0, 1.0]
    assert linear(positive, negative, progress=0.2).kept.sum() < 2  # the margin still is large
    dropping = SampleFilter(weighting="drop", warmup=0.0)
    assert dropping(positive, negative, progress=1.0).weights.tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.0}, "filter_threshold=1.0; give a number between 0 and 1"),
        ({"kappa": 0.0}, "filter_kappa=0.0"),
        ({"margin": MarginSchedule(shape="step")}, "give one of cosine, linear, constant"),
        ({"warmup": 1.5}, "filter_warmup=1.5"),
        ({"weighting": "square"}, "give one of linear, drop"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SampleFilter(**options)
