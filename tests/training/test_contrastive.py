from __future__ import annotations

import math

import torch
from torch import Tensor

from moon2_training import contrastive
from moon2_training.contrastive import masked_info_nce, negative_mask


def test_negative_mask_by_hand() -> None:
    mask = negative_mask(
        product_keys=torch.tensor([1, 2, 3, 4, 1]),
        title_keys=torch.tensor([10, 20, 10, 40, 11]),
        positive_keys=torch.tensor([[1, 4], [2, 0]]),
        positive_titles=torch.tensor([10, 20]),
    )
    # Row 1: itself, its title again, another known positive, its product again. Row 2: only itself.
    assert mask.tolist() == [[False, True, False, False, False], [True, False, True, True, True]]


def test_info_nce_by_hand_and_zero_without_negatives() -> None:
    anchors = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    candidates = torch.tensor([[0.6, 0.8], [1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    negatives = torch.tensor([[False, True, False], [False, False, False]])
    terms = masked_info_nce(anchors, candidates, torch.tensor([0, 2]), negatives, torch.tensor(0.5))
    torch.testing.assert_close(terms, torch.tensor([math.log(1 + math.exp((1.0 - 0.6) / 0.5)), 0.0]))
    assert terms[1].item() == 0
    gradient = torch.autograd.grad(terms[1], [anchors, candidates])
    assert not gradient[0].any() and not gradient[1].any()


def test_large_info_nce_in_blocks_is_the_whole_and_keeps_no_matrix(monkeypatch) -> None:
    generator = torch.Generator().manual_seed(0)
    anchors, candidates = (
        torch.nn.functional.normalize(torch.randn(n, 8, generator=generator), dim=-1).requires_grad_()
        for n in (70, 90)
    )
    negatives = torch.rand(70, 90, generator=generator) < 0.7
    temperature = torch.tensor(0.1, requires_grad=True)
    weights = torch.rand(70, generator=generator)
    found, largest = [], []
    for logits_at_once in (1 << 22, 9 * 90):  # the second takes eight blocks, the last of them smaller
        monkeypatch.setattr(contrastive, "LOGITS_AT_ONCE", logits_at_once)
        kept: list[int] = []

        def keep(tensor: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(tensor.numel() if tensor.is_floating_point() else 0)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            terms = masked_info_nce(anchors, candidates, torch.arange(5, 75), negatives, temperature)
        gradients = torch.autograd.grad((weights * terms).sum(), [anchors, candidates, temperature])
        found.append((terms, *gradients))
        largest.append(max(kept))
    for whole, blocks in zip(*found, strict=True):
        torch.testing.assert_close(blocks, whole)
    assert largest == [negatives.numel(), candidates.numel()]
