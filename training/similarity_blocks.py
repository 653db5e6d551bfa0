"""Rows of a matrix of similarities a block at a time, so that a large batch's is never whole in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

SIMILARITIES_AT_ONCE = 1 << 22


def in_blocks(term: Callable[..., Tensor], columns: int, *of_rows: Tensor) -> Tensor:
    """What `term` makes of R rows that do not depend on each other; its gradient computes a block again.

    Args:
        term: takes a block of each tensor of `of_rows`, (r, …), and gives (r,); makes a matrix (r, columns) on the
            way. Nothing in it may be random.
        columns: of the matrix.
        of_rows: tensors (R, …).

    Returns:
        (R,).
    """
    block = max(1, SIMILARITIES_AT_ONCE // columns)
    if len(of_rows[0]) <= block:
        return term(*of_rows)
    blocks = zip(*(tensor.split(block) for tensor in of_rows), strict=True)
    return torch.cat([checkpoint(term, *part, use_reentrant=False, preserve_rng_state=False) for part in blocks])
