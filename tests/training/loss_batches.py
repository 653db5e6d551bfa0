"""Random batches for the losses: embeddings, routing of every token, and keys that collide."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from modeling_moon2 import Moon2Routing, Moon2ViewsOutput

TEXT, IMAGE, MULTIMODAL = range(3)


class Batch(NamedTuple):
    """A batch before any sum over tokens; its float tensors are leaves, so that gradients are compared per token."""

    embeddings: Tensor  # (3, R, D)
    has: Tensor  # (2, R) bool, text and image
    gates: Tensor  # (3, L, R, T, Z), G̃; padding holds numbers too
    probs: Tensor  # (3, L, R, T, Z), G
    lengths: Tensor  # (3, R)
    alignment_logits: Tensor  # (L, Z, 5)
    temperatures: Tensor  # (2,)
    product_keys: Tensor  # (N,)
    title_keys: Tensor  # (N,)
    positive_keys: Tensor  # (B, P)

    @property
    def leaves(self) -> list[Tensor]:
        return [self.embeddings, self.gates, self.probs, self.alignment_logits, self.temperatures]

    @property
    def keys(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.product_keys, self.title_keys, self.positive_keys

    def views(self, *, dense: bool = False) -> Moon2ViewsOutput:
        present = torch.stack([*self.has, torch.ones_like(self.has[0])])
        text, image, multimodal = self.embeddings * present[:, :, None]
        return Moon2ViewsOutput(
            text_embeddings=text,
            image_embeddings=image,
            multimodal_embeddings=multimodal,
            has_text=self.has[TEXT],
            has_image=self.has[IMAGE],
            routing=None if dense else sum_tokens(self.gates, self.probs, self.lengths),
            alignment_logits=None if dense else self.alignment_logits,
            temperatures=self.temperatures,
        )


def sum_tokens(gates: Tensor, probs: Tensor, lengths: Tensor) -> Moon2Routing:
    real = torch.arange(gates.shape[3]) < lengths[:, :, None]  # (3, R, T)
    real = real[:, None, :, :, None]
    return Moon2Routing(
        gate_sums=(gates * real).sum(3),
        prob_sums=(probs * real).sum(3),
        expert_counts=((gates > 0) * real).sum(3).to(gates.dtype),
        token_counts=lengths.to(gates.dtype),
    )


def make_batch(
    seed: int,
    batch_size: int = 5,
    *,
    explicit: bool = True,
    missing: float = 0.3,
    temperature: float = 0.3,
    dtype: torch.dtype = torch.float64,
    has: Tensor | None = None,
    num_products: int = 8,
) -> Batch:
    """Random embeddings and routing; few products and fewer titles, so that both collide within the batch."""
    rng = torch.Generator().manual_seed(seed)
    rows, layers, experts, size = batch_size * (3 if explicit else 2), 3, 4, 6

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=rng, dtype=torch.float64)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=rng)

    if has is None:
        has = uniform(2, rows) >= missing
        has[TEXT] |= ~has[IMAGE]
    lengths = torch.stack([integers(1, 5, rows) * has[TEXT], integers(1, 4, rows) * has[IMAGE]])
    lengths = torch.stack([*lengths, lengths.sum(0) * has.all(0)])
    probs = (4 * uniform(3, layers, rows, 8, experts)).softmax(-1)
    best, chosen = probs.topk(2)
    gates = torch.zeros_like(probs).scatter(-1, chosen, best / best.sum(-1, keepdim=True))
    product_keys = integers(1, num_products + 1, rows - batch_size)
    others = integers(0, num_products + 1, batch_size, 2)  # further positives of the query; 0 is padding
    return Batch(
        embeddings=torch.nn.functional.normalize(uniform(3, rows, size) - 0.5, dim=-1).to(dtype).requires_grad_(),
        has=has,
        gates=gates.to(dtype).requires_grad_(),
        probs=probs.to(dtype).requires_grad_(),
        lengths=lengths,
        alignment_logits=(uniform(layers, experts, 5) * 4).to(dtype).requires_grad_(),
        temperatures=torch.tensor([temperature, 0.7 * temperature], dtype=dtype, requires_grad=True),
        product_keys=product_keys,
        title_keys=product_keys % 4,
        positive_keys=torch.cat([product_keys[:batch_size, None], others], dim=1),
    )


def assert_close(actual: Tensor, expected, tolerance: float = 1e-10) -> None:
    if not isinstance(expected, Tensor):
        expected = torch.stack([torch.as_tensor(value) for value in expected])
    torch.testing.assert_close(actual, expected.detach().to(actual.dtype), rtol=tolerance, atol=tolerance)
