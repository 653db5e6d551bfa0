"""Temporal negatives: a queue of item embeddings from earlier batches (MOON's spatial-temporal sampling).

Reference: MOON (Zhang et al., WSDM 2026, arXiv 2508.11999).
"""

from __future__ import annotations

import torch
from torch import Tensor

EMPTY = torch.iinfo(torch.int64).min // 2  # step of a place without an item: long ago


class MemoryQueue(torch.nn.Module):
    """The last `size` items, their embeddings detached; a ring of fixed shape, so nothing waits for the device.

    A module for its buffers' sake: they follow a device and make a state dict.

    Args:
        size: Q, number of items.
        width: D, of the embeddings.
        max_age: steps after which an item counts no more, for its embedding is stale.
    """

    def __init__(self, size: int, width: int, max_age: int) -> None:
        super().__init__()
        self.size = size
        self.max_age = max_age
        self.register_buffer("multimodal", torch.zeros(size, width))  # r^mm
        self.register_buffer("text", torch.zeros(size, width))  # r^t
        self.register_buffer("has_text", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("product_keys", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("title_keys", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("step", torch.full((size,), EMPTY))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(
        self, multimodal: Tensor, text: Tensor, has_text: Tensor, product_keys: Tensor, title_keys: Tensor, step: int
    ) -> None:
        """Put N items in the place of the oldest; one whose embeddings are not finite leaves its place empty.

        Args:
            multimodal, text: (N, D) embeddings; N at most `size`.
            has_text: (N,) bool.
            product_keys, title_keys: (N,) int64.
            step: number of the training step.
        """
        count = len(multimodal)
        slots = (self.position + torch.arange(count, device=self.position.device)) % self.size
        finite = (multimodal.isfinite() & text.isfinite()).all(dim=-1)  # (N,)
        self.multimodal[slots] = torch.where(finite[:, None], multimodal, 0).to(self.multimodal.dtype)
        self.text[slots] = torch.where(finite[:, None], text, 0).to(self.text.dtype)
        self.has_text[slots] = has_text
        self.product_keys[slots] = product_keys
        self.title_keys[slots] = title_keys
        self.step[slots] = torch.where(finite, step, EMPTY)
        self.position += count

    def valid(self, step: int) -> Tensor:
        """(Q,) bool: slots that hold an item which is not too old at a step."""
        return self.step >= step - self.max_age
