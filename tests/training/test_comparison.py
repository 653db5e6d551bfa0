from __future__ import annotations

import numpy as np
import pytest

from moon2_training.comparison import Difference, paired_difference


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
