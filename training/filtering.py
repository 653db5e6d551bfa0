"""Dynamic sample filtering: how far a triplet is to be trusted, and what weight its terms get in the loss.

Reference: MOON2.0 (Nie et al., CVPR 2026, arXiv 2511.12449).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .similarity_blocks import in_blocks

MARGIN_SHAPES = ("cosine", "linear", "constant")
WEIGHTINGS = ("linear", "drop")


class FilterResult(NamedTuple):
    """What the filter says of a batch, detached.

    Attributes:
        weights: (B,) weight of every triplet's terms, 0 to 1.
        phi: (B,) φ.
        kept: (B,) bool, φ ≥ τ.
    """

    weights: Tensor
    phi: Tensor
    kept: Tensor


def triplet_confidence(positive: Tensor, negative: Tensor, kappa: float, margin: float) -> Tensor:
    """φ = σ( κ ( r_q·r_p − r_q·r_n − m̄ ) ).

    Args:
        positive: (B,) r_q·r_p.
        negative: (B,) r_q·r_n.
        kappa: κ, steepness.
        margin: m̄.

    Returns:
        (B,) between 0 and 1.
    """
    return torch.sigmoid(kappa * (positive - negative - margin))


def mean_negative_similarity(queries: Tensor, items: Tensor, negatives: Tensor) -> Tensor:
    """r_q·r_n for a query without an n of its own: the mean over its in-batch negatives, as if it drew one of them.

    Args:
        queries: (B, D) r_q.
        items: (N, D) r of every item.
        negatives: (B, N) bool, which items are negatives of the query.

    Returns:
        (B,); −1, the least there is, for a query without any negative.
    """

    def mean(of_queries: Tensor, of_negatives: Tensor) -> Tensor:
        counts = of_negatives.sum(dim=-1)
        total = (of_queries @ items.T).masked_fill_(~of_negatives, 0).sum(dim=-1)
        return torch.where(counts > 0, total / counts.clamp(min=1), -1.0)

    return in_blocks(mean, len(items), queries, negatives)


class MarginSchedule(NamedTuple):
    """m̄ over the training, from "trust only the clear triplets" to "take the hard ones too".

    Attributes:
        start: m̄ at the first step.
        end: m̄ at the last step.
        shape: cosine, linear, or constant at `start`.
    """

    start: float = 0.2
    end: float = 0.0
    shape: str = "cosine"

    def at(self, progress: float) -> float:
        """m̄ when `progress`, 0 to 1, of the training is done."""
        passed = {"cosine": (1 - math.cos(math.pi * progress)) / 2, "linear": progress, "constant": 0.0}[self.shape]
        return self.start + (self.end - self.start) * passed


DEFAULT_MARGIN = MarginSchedule()


class SampleFilter:
    """Weighs triplets by φ: 1 from the threshold τ on, φ/τ below it.

    Args:
        threshold: τ.
        kappa: κ.
        margin: the schedule of m̄.
        warmup: share of the training, from its start, in which all weights are 1: before the embeddings mean anything
            φ says nothing.
        weighting: below τ, "linear" gives φ/τ and "drop" gives 0.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        threshold: float = 0.6,
        kappa: float = 10.0,
        margin: MarginSchedule = DEFAULT_MARGIN,
        warmup: float = 0.1,
        weighting: str = "linear",
    ) -> None:
        if not 0 < threshold < 1:
            raise ValueError(f"filter_threshold={threshold}; give a number between 0 and 1")
        if kappa <= 0:
            raise ValueError(f"filter_kappa={kappa}; give a number over 0")
        if margin.shape not in MARGIN_SHAPES:
            raise ValueError(f"filter_margin_shape={margin.shape!r}; give one of {', '.join(MARGIN_SHAPES)}")
        if not 0 <= warmup <= 1:
            raise ValueError(f"filter_warmup={warmup}; give a share from 0 to 1")
        if weighting not in WEIGHTINGS:
            raise ValueError(f"filter_weighting={weighting!r}; give one of {', '.join(WEIGHTINGS)}")
        self.threshold = threshold
        self.kappa = kappa
        self.margin = margin
        self.warmup = warmup
        self.weighting = weighting

    def __call__(self, positive: Tensor, negative: Tensor, progress: float) -> FilterResult:
        """Weigh B triplets; no gradient flows.

        Args:
            positive: (B,) r_q·r_p.
            negative: (B,) r_q·r_n.
            progress: share of the training that is done.
        """
        phi = triplet_confidence(positive.detach(), negative.detach(), self.kappa, self.margin.at(progress))
        kept = phi >= self.threshold
        below = phi / self.threshold if self.weighting == "linear" else torch.zeros_like(phi)
        weights = torch.ones_like(phi) if progress < self.warmup else torch.where(kept, 1.0, below)
        return FilterResult(weights, phi, kept)
