"""Batches that hold hard in-batch negatives: a share of every batch comes from one leaf category."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from .triplets import TripletKey


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
        nexts = ends - sizes  # per leaf, the first of its rows that no leaf slot has taken
        used = np.zeros(len(shuffled), dtype=bool)
        free = 0  # position in `shuffled` before which all rows are used

        for _ in range(len(self)):
            batch: list[int] = []
            while len(batch) < self.leaf_slots:
                leaf = self.leaf_of_row[shuffled[free := _first_unused(shuffled, used, free)]]
                rows = by_leaf[nexts[leaf] : ends[leaf]]
                open_rows = np.flatnonzero(~used[rows])[: self.leaf_slots - len(batch)]
                nexts[leaf] += open_rows[-1] + 1
                used[rows[open_rows]] = True
                batch += rows[open_rows].tolist()
            while len(batch) < self.batch_size:
                free = _first_unused(shuffled, used, free)
                window = shuffled[free : free + 2 * self.batch_size]
                rows = window[~used[window]][: self.batch_size - len(batch)]
                used[rows] = True
                batch += rows.tolist()
            yield [TripletKey(row, self.epoch) for row in batch]


def _first_unused(shuffled: np.ndarray, used: np.ndarray, start: int) -> int:
    """Position of the first unused row in `shuffled`, from `start` on. A random unused row's leaf is a leaf drawn in
    proportion to what is left of it."""
    while used[shuffled[start]]:
        start += 1
    return start
