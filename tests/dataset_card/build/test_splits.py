from __future__ import annotations

import numpy as np
import pytest

from moon2_dataset.build.splits import assign_splits, draw, over_category_limit, parse_splits

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


def random_keys(number: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 2**64, number, dtype=np.uint64)


def test_shares_are_read_in_their_order():
    assert list(parse_splits(["train=0.7", "dev=.2", "test=1e-1"]).items()) == [
        ("train", 0.7),
        ("dev", 0.2),
        ("test", 0.1),
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["train"], "'train'; give different names with shares above 0"),
        (["train=x"], "'train=x'"),
        (["train=1", "test=0"], "'test=0'"),
        (["train=nan"], "'train=nan'"),
        (["train=0.5", "train=0.5"], "'train=0.5'"),
        (["../up=1"], "'../up=1'"),
        (["train=0.8", "test=0.1"], "add up to 0.9; make that 1"),
    ],
)
def test_shares_that_make_no_sense_are_refused(given, message):
    with pytest.raises(ValueError, match=r"^splits: ") as error:
        parse_splits(given)
    assert message in str(error.value)


def test_a_draw_is_even_and_depends_on_key_seed_and_purpose_alone():
    keys = random_keys(20_000)
    drawn = draw(keys, 0, "split")
    assert 0 <= drawn.min() and drawn.max() < 1
    counts = np.histogram(drawn, 20, (0, 1))[0]
    assert abs(counts - 1000).max() < 5 * 1000**0.5
    assert (draw(keys[100:105], 0, "split") == drawn[100:105]).all()
    for other in (draw(keys, 1, "split"), draw(keys, 0, "limit")):
        assert abs(np.corrcoef(drawn, other)[0, 1]) < 0.03


def test_groups_stay_whole_and_shares_are_met():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 8000, 20_000)
    splits = assign_splits(groups, random_keys(20_000), SHARES, 0)
    order = np.argsort(groups, kind="stable")
    same = groups[order][1:] == groups[order][:-1]
    assert (splits[order][1:][same] == splits[order][:-1][same]).all()
    assert np.bincount(splits) / 20_000 == pytest.approx([0.8, 0.1, 0.1], abs=0.015)


def test_products_stay_in_their_split_when_others_are_added_in_any_order():
    rng = np.random.default_rng(1)
    titles = random_keys(300)
    of_product = rng.integers(0, 300, 900)  # products with one title are one group
    before = assign_splits(of_product, titles[of_product], SHARES, 5)
    # New products, with new titles and with known ones, come between the others; groups get other numbers.
    more = np.r_[of_product, rng.integers(0, 300, 200), np.arange(300, 400)]
    keys = np.r_[titles, random_keys(100, seed=2)]
    order = rng.permutation(len(more))
    after = assign_splits(1000 - more[order], keys[more[order]], SHARES, 5)
    assert (after[np.argsort(order)][:900] == before).all()
    assert (assign_splits(of_product, titles[of_product], SHARES, 6) != before).any()


def test_no_products_and_a_single_split():
    assert len(assign_splits(np.empty(0, np.int64), np.empty(0, np.uint64), SHARES, 0)) == 0
    assert not assign_splits(np.arange(50), random_keys(50), {"train": 1.0}, 0).any()


def test_the_limit_of_a_category_keeps_what_is_wanted_then_draws():
    leaf = np.repeat(np.array([7, 0, 9, 8], np.uint64), [100, 50, 4, 10])
    wanted = np.zeros(164, dtype=bool)
    wanted[[3, 40, 99, 160]] = True
    keys = random_keys(164)
    over = over_category_limit(leaf, wanted, keys, 10, 0)
    assert over[leaf == 7].sum() == 90 and not over[leaf != 7].any()
    assert not over[wanted].any()
    assert (over == over_category_limit(leaf, wanted, keys, 10, 0)).all()
    assert (over != over_category_limit(leaf, wanted, keys, 10, 1)).any()
    order = np.random.default_rng(0).permutation(164)
    assert (over_category_limit(leaf[order], wanted[order], keys[order], 10, 0) == over[order]).all()
    many = over_category_limit(leaf, leaf == 7, keys, 10, 0)
    assert many.sum() == 90
    assert not over_category_limit(leaf[:0], wanted[:0], keys[:0], 10, 0).size
