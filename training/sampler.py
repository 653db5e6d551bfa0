"""Batches that hold hard in-batch negatives: a share of every batch comes from one leaf category."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Sampler
from transformers import TrainerCallback

from .triplets import TripletKey

if TYPE_CHECKING:
    from .mining import MinedBatchSampler


class LeafBatchSampler(Sampler[list[TripletKey]]):
    """Draws batches in which `round(leaf_share * batch_size)` rows share a leaf category and the rest is random.

    Every row comes at most once an epoch; only the last rows that do not fill a batch are left out. The order depends
    on (seed, epoch) alone. When a leaf runs out inside a batch, further leaves fill its slots.

    Args:
        leaf_of_row (N,): leaf category of every row, as non-negative ints.
        batch_size: B, rows of a batch.
        leaf_share: share of a batch from one leaf, 0 to 1; 0 shuffles plainly.
        seed: seed of the order.

    Raises:
        ValueError: `leaf_share` is no share, or the rows do not fill one batch.
    """

    drop_last = True

    def __init__(self, leaf_of_row: np.ndarray, batch_size: int, leaf_share: float = 0.0, seed: int = 0) -> None:
        if not 0 <= leaf_share <= 1:
            raise ValueError(f"leaf_share={leaf_share}; give a share from 0 to 1")
        if len(leaf_of_row) < batch_size:
            raise ValueError(f"{len(leaf_of_row)} rows do not fill one batch of {batch_size}; lower the batch size")
        self.leaf_of_row = np.asarray(leaf_of_row)
        self.batch_size = batch_size
        self.leaf_slots = round(leaf_share * batch_size)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order `iter` gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.leaf_of_row) // self.batch_size

    def __iter__(self) -> Iterator[list[TripletKey]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        shuffled = rng.permutation(len(self.leaf_of_row))
        by_leaf = shuffled[np.argsort(self.leaf_of_row[shuffled], kind="stable")]  # leaf after leaf, random inside
        sizes = np.bincount(self.leaf_of_row)
        ends = sizes.cumsum()
        nexts = ends - sizes  # per leaf, where its unused rows in `by_leaf` begin at the earliest
        free = 0  # the same for `shuffled`
        used = np.zeros(len(shuffled), dtype=bool)

        for _ in range(len(self)):
            batch: list[int] = []
            while len(batch) < self.leaf_slots:
                # the leaf of a random unused row is a leaf drawn in proportion to what is left of it
                (row,), _ = _first_unused(shuffled, free, len(shuffled), used, 1)
                leaf = self.leaf_of_row[row]
                rows, nexts[leaf] = _first_unused(by_leaf, nexts[leaf], ends[leaf], used, self.leaf_slots - len(batch))
                used[rows] = True
                batch += rows.tolist()
            rows, free = _first_unused(shuffled, free, len(shuffled), used, self.batch_size - len(batch))
            used[rows] = True
            batch += rows.tolist()
            yield [TripletKey(row, self.epoch) for row in batch]


class EpochCallback(TrainerCallback):
    """Tells a batch sampler its epoch.

    Of a run that is resumed within an epoch on several processes nothing else does: there the sampler stands behind
    two wrappers, of which neither hands an epoch on.

    Attributes:
        batches: the batch sampler of the training; has `set_epoch`.
    """

    batches: LeafBatchSampler | MinedBatchSampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.batches.set_epoch(int(state.epoch))


def _first_unused(order: np.ndarray, start: int, end: int, used: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """The first `count` unused rows of order[start:end], fewer if there are no more, and the position after them."""
    found = []
    while count and start < end:
        window = order[start : min(end, start + 2 * count + 64)]
        at = np.flatnonzero(~used[window])[:count]
        found.append(window[at])
        count -= len(at)
        start += len(window) if count else int(at[-1]) + 1
    return np.concatenate(found) if found else order[:0], start
