from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from moon2_training import similarity_blocks
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


def pair_by_pair(product_keys: Tensor, title_keys: Tensor, positive_keys: Tensor, positive_titles: Tensor) -> Tensor:
    same_product = (positive_keys[:, :, None] == product_keys).any(dim=1)
    return ~(same_product | (positive_titles[:, None] == title_keys))


def random_keys(seed: int, anchors: int, right: int, candidates: int) -> tuple[Tensor, ...]:
    """Few products, so that they meet; negative ones too, and 0 both as padding and as an empty candidate."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((candidates,), (candidates,), (anchors, right), (anchors,))
    keys = [torch.randint(-20, 20, shape, generator=generator) * (1 << 55) for shape in shapes]
    keys[2] = keys[2] * (torch.rand(anchors, right, generator=generator) < 0.5)
    return tuple(keys)


@pytest.mark.parametrize(("anchors", "right", "candidates"), [(1, 1, 1), (7, 1, 30), (30, 9, 50), (5, 40, 3)])
def test_negative_mask_is_that_of_all_pairs(anchors: int, right: int, candidates: int) -> None:
    for seed in range(5):
        keys = random_keys(seed, anchors, right, candidates)
        assert torch.equal(negative_mask(*keys), pair_by_pair(*keys))


def test_negative_mask_is_traced_and_has_no_row_for_each_right_product() -> None:
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            for tensor in made if isinstance(made, tuple | list) else [made]:
                self.elements = max(self.elements, tensor.numel())
            return made

    keys = random_keys(0, 60, 50, 70)
    with Largest() as largest:
        negative_mask(*keys)
    assert largest.elements <= 60 * 71
    with FakeTensorMode() as fake:  # nothing of it depends on what the keys are
        assert negative_mask(*map(fake.from_tensor, keys)).shape == (60, 70)


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
    for at_once in (1 << 22, 9 * 90):  # the second takes eight blocks, the last of them smaller
        monkeypatch.setattr(similarity_blocks, "SIMILARITIES_AT_ONCE", at_once)
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
    assert largest == [negatives.numel(), 9 * anchors.shape[1]]  # the second keeps the anchors of a block
