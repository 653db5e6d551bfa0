from __future__ import annotations

import numpy as np
import pytest

from moon2_training.comparison import Difference, compare, paired_difference, short_names
from moon2_training.retrieval import DIRECTIONS


def hits(rng: np.random.Generator, seeds: int, ease: np.ndarray, seed_spread: float = 0.0) -> np.ndarray:
    """(S, Q) of 0 and 1: a query is hit with the probability of its ease (Q,), shifted by the luck of the seed."""
    luck = seed_spread * rng.standard_normal((seeds, 1))
    return (rng.random((seeds, len(ease))) < np.clip(ease + luck, 0, 1)).astype(float)


def test_one_run_against_itself_differs_by_exactly_nothing():
    values = hits(np.random.default_rng(0), 3, np.full(200, 0.4))
    assert paired_difference(values, values) == Difference(0.0, 0.0, 0.0)
    assert paired_difference(values[0], values[0]) == Difference(0.0, 0.0, 0.0)


def test_a_constant_difference_is_found_exactly():
    values = np.random.default_rng(1).random((2, 50))
    found = paired_difference(values + 0.25, values)
    np.testing.assert_allclose(found, [0.25] * 3, atol=1e-12)
    assert found.excludes_zero and not Difference(0.1, -0.1, 0.3).excludes_zero


def test_it_equals_a_loop_over_samples():
    """The mean and the spread are those of drawing queries and seeds one by one."""
    rng = np.random.default_rng(2)
    ease = rng.random(60)
    for a, b in (
        (hits(rng, 1, ease), hits(rng, 1, ease)),
        (hits(rng, 4, ease, 0.2), hits(rng, 4, ease, 0.2)),
        (hits(rng, 4, ease, 0.2), hits(rng, 2, ease, 0.2)),
    ):
        slow = []
        for _ in range(6000):
            queries = rng.integers(0, 60, 60)
            of_a = rng.integers(0, len(a), len(a))
            of_b = of_a if len(a) == len(b) else rng.integers(0, len(b), len(b))
            slow.append(a[of_a][:, queries].mean() - b[of_b][:, queries].mean())
        found = paired_difference(a, b, samples=6000)
        assert found.mean == pytest.approx(a.mean() - b.mean())
        np.testing.assert_allclose(found[1:], np.quantile(slow, [0.025, 0.975]), atol=0.02)


def test_pairing_makes_the_interval_narrow():
    rng = np.random.default_rng(3)
    base = hits(rng, 1, np.full(400, 0.5))
    better = np.where(rng.random(base.shape) < 0.05, 1.0, base)
    paired = paired_difference(better, base)
    shuffled = paired_difference(better, base[:, rng.permutation(400)])
    assert paired.excludes_zero and paired.high - paired.low < 0.5 * (shuffled.high - shuffled.low)


@pytest.mark.parametrize("seeds", [(1, 1), (6, 6), (6, 5)])
@pytest.mark.parametrize("difference", [0.0, 0.1])
def test_the_interval_covers_the_true_difference_as_often_as_it_says(seeds, difference):
    rng = np.random.default_rng(4)
    spread = 0.02 if max(seeds) > 1 else 0.0
    covered = []
    for draw in range(300):
        ease = rng.uniform(0.2, 0.7, 150)
        a, b = hits(rng, seeds[0], ease + difference, spread), hits(rng, seeds[1], ease, spread)
        found = paired_difference(a, b, samples=400, seed=draw)
        covered.append(found.low <= difference <= found.high)
    # of several seeds the bootstrap errs on the wide side
    assert 0.89 <= np.mean(covered) <= (0.99 if seeds == (1, 1) else 1)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="a has 3 queries and b 4; give the same ones"):
        paired_difference(np.zeros(3), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="give one seed and one query or more"):
        paired_difference(np.zeros((0, 4)), np.zeros((2, 4)))


def scored(rng: np.random.Generator, missing: dict[str, list[str]], ease: float) -> dict:
    """Recalls of 80 queries in the five directions, but for those that are missing from some."""
    ids = [f"q{number}" for number in range(80)]
    per_query = {}
    for direction in DIRECTIONS:
        there = [query_id for query_id in ids if query_id not in missing.get(direction.key, [])]
        recalls = hits(rng, 1, np.full(len(there), ease))[0].tolist()
        per_query[direction.key] = {"query_ids": there, "recall@10": recalls}
    return {"per_query": per_query}


def test_directions_and_their_mean_are_compared_on_the_queries_in_both():
    rng = np.random.default_rng(5)
    everyone = [f"q{number}" for number in range(80)]
    first = scored(rng, {"t2i": ["q0"], "i2t": everyone[40:]}, 0.4)
    other = scored(rng, {"t2i": ["q1", "q2"], "i2t": everyone[40:]}, 0.6)
    found = compare(other, first)
    assert list(found) == ["t2mm", "i2mm", "mm2mm", "t2i", "i2t", "mean"]
    assert [difference["queries"] for difference in found.values()] == [80, 80, 80, 77, 40, 80]
    alone = paired_difference(*(side["per_query"]["i2t"]["recall@10"] for side in (other, first)))
    assert tuple(found["i2t"][end] for end in ("value", "low", "high")) == alone
    of_directions = [found[direction.key] for direction in DIRECTIONS]
    assert found["mean"]["value"] == pytest.approx(np.mean([difference["value"] for difference in of_directions]))
    widths = [difference["high"] - difference["low"] for difference in of_directions]
    assert found["mean"]["low"] <= found["mean"]["value"] <= found["mean"]["high"]
    assert found["mean"]["high"] - found["mean"]["low"] < min(widths)  # five directions tell more than one


def test_of_equal_directions_the_mean_is_as_uncertain_as_each():
    rng = np.random.default_rng(6)
    recalls = [scored(rng, {}, ease)["per_query"]["t2i"] for ease in (0.4, 0.5)]
    first, other = ({"per_query": {direction.key: of_all for direction in DIRECTIONS}} for of_all in recalls)
    found = compare(other, first)
    for end in ("value", "low", "high"):
        assert found["mean"][end] == pytest.approx(found["t2mm"][end])
    itself = compare(first, first)
    assert all((d["value"], d["low"], d["high"]) == (0, 0, 0) for d in itself.values())


def test_a_direction_that_one_of_them_lacks_is_not_compared():
    rng = np.random.default_rng(7)
    first, other = scored(rng, {}, 0.4), scored(rng, {}, 0.4)
    del other["per_query"]["i2t"]
    first["per_query"]["t2i"] = {"query_ids": ["somebody else"], "recall@10": [1.0]}
    assert set(compare(other, first)) == {"t2mm", "i2mm", "mm2mm"}


def test_models_are_called_by_what_tells_them_apart():
    assert short_names(["runs/a"]) == ["a"]
    assert short_names(["runs/a/last", "runs/b/last", "org/clip"]) == ["a/last", "b/last", "org/clip"]
    assert short_names(["runs/a/", "clip"]) == ["a", "clip"]
    with pytest.raises(ValueError, match="runs/a: given twice"):
        short_names(["runs/b", "runs/a", "runs/a"])
    with pytest.raises(ValueError, match="runs/a: given twice"):
        short_names(["runs/a", "clip", "./runs/a/"])
