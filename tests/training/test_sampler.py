from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard, skip_first_batches
from trainer_arguments import arguments

from moon2_training.sampler import LeafBatchSampler
from moon2_training.trainer import Moon2Trainer

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


@pytest.mark.parametrize(
    "options", [{}, {"cached_chunk_size": 3}, {"negatives": "explicit", "mine_every_steps": 1}], ids=str
)
def test_the_epoch_reaches_the_sampler_behind_the_wrappers_of_a_resume(tiny, shop, tmp_path, options):
    trainer = Moon2Trainer(tiny[0], arguments(tmp_path, **options), shop, processing_class=tiny[1])
    sampler = trainer.get_train_dataloader().batch_sampler
    shard = BatchSamplerShard(sampler, num_processes=2, process_index=1)
    loader = skip_first_batches(DataLoaderShard(range(24), batch_sampler=shard), 1)
    trainer.state.epoch = 4.25
    trainer.callback_handler.on_epoch_begin(trainer.args, trainer.state, trainer.control)
    found = list(loader.batch_sampler)
    sampler.set_epoch(4)
    assert found == list(sampler)[3:4]


@pytest.mark.slow
def test_two_processes_resumed_within_an_epoch_read_the_rows_of_the_uninterrupted_ones(tiny, shop, tmp_path):
    for part in tiny:
        part.save_pretrained(tmp_path / "model")
    for name, table in (("products", shop.products), ("queries", shop.queries)):
        table.to_parquet(tmp_path / f"{name}.parquet")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               Path(__file__).parent / "resumed_rows.py", tmp_path]  # fmt: skip
    result = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0 and result.stdout.count("the same rows") == 2, result.stderr[-3000:]


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="leaf_share=1.5; give a share from 0 to 1"):
        LeafBatchSampler(SKEWED, 16, leaf_share=1.5)
    with pytest.raises(ValueError, match="1000 rows do not fill one batch of 2000"):
        LeafBatchSampler(SKEWED, 2000)
