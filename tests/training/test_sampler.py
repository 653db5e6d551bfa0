from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from moon2_training.sampler import LeafBatchSampler

RNG = np.random.default_rng(0)
SKEWED = RNG.choice(40, size=1000, p=RNG.dirichlet(np.full(40, 0.3)))


def rows(sampler, epoch=0):
    sampler.set_epoch(epoch)
    return [[key.index for key in batch] for batch in sampler]


@pytest.mark.parametrize("leaf_share", [0, 0.3, 0.5, 1])
@pytest.mark.parametrize("leaves", [SKEWED, np.zeros(1000, int), np.arange(1000)], ids=["skewed", "one", "all"])
def test_every_row_at_most_once_and_only_the_tail_left_out(leaves, leaf_share):
    sampler = LeafBatchSampler(leaves, batch_size=24, leaf_share=leaf_share)
    batches = rows(sampler)
    seen = [row for batch in batches for row in batch]
    assert len(batches) == len(sampler) == 1000 // 24
    assert all(len(batch) == 24 for batch in batches)
    assert len(seen) == len(set(seen)) == 41 * 24


def test_the_share_comes_from_one_leaf_while_leaves_last():
    leaves = np.repeat(np.arange(10), 100)
    batches = rows(LeafBatchSampler(leaves, batch_size=20, leaf_share=0.5))
    from_one_leaf = [Counter(leaves[batch]).most_common(1)[0][1] for batch in batches]
    assert min(from_one_leaf[:30]) >= 10
    plain = [Counter(leaves[b]).most_common(1)[0][1] for b in rows(LeafBatchSampler(leaves, 20, leaf_share=0))]
    assert np.mean(plain) < 6


def test_small_leaves_fill_the_slots_together():
    leaves = np.repeat(np.arange(100), 3)
    batch = rows(LeafBatchSampler(leaves, batch_size=30, leaf_share=0.6))[0]
    assert set(Counter(leaves[batch[:18]]).values()) == {3}


def test_leaves_come_in_proportion_to_their_size():
    leaves = np.repeat([0, 1], [900, 100])
    first = [
        leaves[rows(LeafBatchSampler(leaves, batch_size=10, leaf_share=1, seed=seed))[0][0]] for seed in range(400)
    ]
    assert 0.05 < np.mean(first) < 0.16


def test_order_depends_on_seed_and_epoch_alone():
    def make(seed):
        return LeafBatchSampler(SKEWED, batch_size=16, seed=seed)

    assert rows(make(1), epoch=2) == rows(make(1), epoch=2)
    assert rows(make(1), epoch=2) != rows(make(1), epoch=3)
    assert rows(make(1)) != rows(make(2))
    sampler = make(1)
    sampler.set_epoch(7)
    assert {key.epoch for batch in sampler for key in batch} == {7}


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="leaf_share=1.5; give a share from 0 to 1"):
        LeafBatchSampler(SKEWED, 16, leaf_share=1.5)
    with pytest.raises(ValueError, match="1000 rows do not fill one batch of 2000"):
        LeafBatchSampler(SKEWED, 2000)
