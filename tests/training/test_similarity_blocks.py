from __future__ import annotations

import pytest
import torch

from moon2_training import similarity_blocks
from moon2_training.similarity_blocks import in_blocks


@pytest.mark.parametrize("rows", [1, 6, 7, 20])
def test_blocks_are_the_whole_in_value_and_gradient(monkeypatch, rows):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(n, 4, generator=generator, dtype=torch.float64, requires_grad=True) for n in (rows, 9))
    weights = torch.rand(rows, generator=generator, dtype=torch.float64)
    heights = []

    def term(of_left, of_weights):
        heights.append(len(of_left))
        return (of_left @ right.T).logsumexp(dim=-1) * of_weights

    found = []
    for at_once in (1 << 22, 6 * 9 + 8):
        monkeypatch.setattr(similarity_blocks, "SIMILARITIES_AT_ONCE", at_once)
        values = in_blocks(term, 9, left, weights)
        found.append((values, *torch.autograd.grad(values.square().sum(), [left, right])))
    for whole, blocks in zip(*found, strict=True):
        torch.testing.assert_close(blocks, whole)
    assert heights[0] == rows and max(heights[1 + (rows > 6) :], default=6) <= 6
