"""Spatial negatives: rows and sums of all processes, with gradients (MOON's spatial-temporal sampling).

Every process scores its own anchors against everybody's candidates. What is summed or gathered here has the same value
everywhere, and its gradient comes back from everywhere; data-parallel wrappers then average gradients over processes.
So a loss made of these sums has, on n processes of B / n rows, the value and the gradient of one process of B rows.

Reference: MOON (Zhang et al., WSDM 2026, arXiv 2508.11999).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def num_processes() -> int:
    """Number of processes, 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if num_processes() > 1 else 0


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        gathered = tensor.new_empty(num_processes() * len(tensor), *tensor.shape[1:])
        dist.all_gather(list(gathered.chunk(num_processes())), tensor.contiguous())
        return gathered

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(num_processes())[process_rank()]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


def gather_rows(tensor: Tensor) -> Tensor:
    """Rows of all processes, in their order.

    Args:
        tensor: (N, …), of equal shape everywhere.

    Returns:
        (processes · N, …).
    """
    if num_processes() == 1:
        return tensor
    if tensor.dtype == torch.bool:
        return _Gather.apply(tensor.byte()).bool()
    return _Gather.apply(tensor)


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes."""
    return tensor if num_processes() == 1 else _Sum.apply(tensor)
