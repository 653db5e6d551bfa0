from __future__ import annotations

import math

import torch
from loss_batches import TEXT, assert_close
from torch import Tensor

from moon2_training.router_losses import load_balancing_loss, objective_weights, sparsity_loss


def test_objective_weights_without_tokens_are_one_over_m_and_have_finite_gradients() -> None:
    gate_sums = torch.zeros(4, 2, 3, requires_grad=True)
    logits = torch.randn(2, 3, 4, requires_grad=True)
    omega = objective_weights(gate_sums, torch.zeros(4), logits)
    assert omega.tolist() == [0.25] * 4
    for gradient in torch.autograd.grad(omega.sum(), [gate_sums, logits]):
        assert not gradient.any()


def routing_statistics(gates: list[list[float]]) -> tuple[Tensor, Tensor, Tensor]:
    """One-layer statistics of a text-only row with these tokens, for k = 1 and G = the given distribution."""
    probs = torch.tensor(gates)
    expert_counts, prob_sums = torch.zeros(2, 3, 1, 1, probs.shape[-1])
    expert_counts[TEXT, 0, 0] = torch.nn.functional.one_hot(probs.argmax(-1), probs.shape[-1]).sum(0).float()
    prob_sums[TEXT, 0, 0] = probs.sum(0)
    return expert_counts, prob_sums, torch.tensor([[float(len(gates))], [0.0], [0.0]])


def test_load_balancing_loss_by_hand() -> None:
    balanced = routing_statistics((0.1 + 0.6 * torch.eye(4)).tolist())
    assert_close(load_balancing_loss(*balanced), torch.tensor(1.0), 1e-6)
    collapsed = routing_statistics([[1.0, 0.0, 0.0, 0.0]] * 4)
    assert_close(load_balancing_loss(*collapsed), torch.tensor(4.0), 1e-6)
    # Two layers, balanced and collapsed: the mean of 1 and 4.
    both = [torch.cat(parts, dim=1) for parts in zip(balanced[:2], collapsed[:2], strict=True)]
    assert_close(load_balancing_loss(*both, balanced[2]), torch.tensor(2.5), 1e-6)
    # Z = 2: chosen by 2 and 1 tokens, P = ((0.9+0.6+0.3)/3, (0.1+0.4+0.7)/3) = (0.6, 0.4); 2·(⅔·0.6 + ⅓·0.4) = 16/15.
    uneven = routing_statistics([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
    assert_close(load_balancing_loss(*uneven), torch.tensor(16 / 15), 1e-6)


def test_load_balancing_counts_a_shared_token_in_every_view_it_is_in() -> None:
    # The image token [0.9, 0.1] is also the prefix of the multimodal view; the text token [0.2, 0.8] is its end.
    # f = (2, 1)/3, P = (0.9+0.9+0.2, 0.1+0.1+0.8)/3 = (2, 1)/3; Z Σ f·P = 2·(4/9 + 1/9) = 10/9.
    expert_counts = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])[:, None, None]
    prob_sums = torch.tensor([[0.0, 0.0], [0.9, 0.1], [1.1, 0.9]])[:, None, None]
    aux = load_balancing_loss(expert_counts, prob_sums, torch.tensor([[0.0], [1.0], [2.0]]))
    assert_close(aux, torch.tensor(10 / 9), 1e-6)


def test_sparsity_loss_is_zero_for_one_hot_and_log_m_for_uniform() -> None:
    one_hot = (200 * torch.eye(5)[:4].repeat(2, 1, 1)).requires_grad_()
    assert sparsity_loss(one_hot).item() == 0
    assert torch.autograd.grad(sparsity_loss(one_hot), one_hot)[0].isfinite().all()
    assert_close(sparsity_loss(torch.full((2, 4, 5), 3.0)), torch.tensor(math.log(5)), 1e-6)
    # One layer of each: the mean.
    mixed = torch.cat([one_hot[:1], torch.zeros(1, 4, 5)])
    assert_close(sparsity_loss(mixed), torch.tensor(math.log(5) / 2), 1e-6)
