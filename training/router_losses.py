"""What the routers' sums over tokens say: the weight ω of every objective, L_aux and L_sparsity.

Plain functions of tensors. Symbols and shapes are those of `losses.py`: M objectives, L MoE layers, R rows, Z experts,
and 3 for the views.

Reference: MOON2.0 (Nie et al., CVPR 2026, arXiv 2511.12449).
"""

from __future__ import annotations

import torch
from torch import Tensor


def objective_weights(gate_sums: Tensor, token_counts: Tensor, alignment_logits: Tensor) -> Tensor:
    """ω_m = (1/|B_m|) Σ_{b∈B_m} Σ_z p_{z,m}·G̃_{z,b}, p_{z,m} = softmax over m of W*_{z,m}; mean over layers.

    Args:
        gate_sums: (M, L, Z), G̃ summed over the tokens of B_m.
        token_counts: (M,), |B_m| in tokens.
        alignment_logits: (L, Z, M), W*.

    Returns:
        (M,) ω; 1/M where B_m is empty.
    """
    preferences = alignment_logits.softmax(dim=-1)  # (L, Z, M), p
    mean_gates = gate_sums / token_counts.clamp(min=1)[:, None, None]  # (M, L, Z)
    omega = (preferences.permute(2, 0, 1) * mean_gates).sum(dim=-1).mean(dim=-1)  # (M,)
    return torch.where(token_counts > 0, omega, 1 / len(token_counts))


def load_balancing_loss(expert_counts: Tensor, prob_sums: Tensor, token_counts: Tensor) -> Tensor:
    """L_aux = Z Σ_z f_z·P_z, mean over layers; 1 at perfect balance, Z when one expert takes all with certainty.

    f_z is expert z's share of the assignments and P_z its mean gate probability over all tokens of all views and rows;
    a token of a prefix that two views share counts in both. Only P_z carries a gradient.

    Args:
        expert_counts: (3, L, R, Z), how many tokens chose each expert.
        prob_sums: (3, L, R, Z), G summed over tokens.
        token_counts: (3, R), tokens.

    Returns:
        Scalar.
    """
    assignments = expert_counts.sum(dim=(0, 2))  # (L, Z)
    shares = assignments / assignments.sum(dim=-1, keepdim=True).clamp(min=1)  # (L, Z), f
    mean_probs = prob_sums.sum(dim=(0, 2)) / token_counts.sum().clamp(min=1)  # (L, Z), P
    return expert_counts.shape[-1] * (shares * mean_probs).sum(dim=-1).mean()


def sparsity_loss(alignment_logits: Tensor) -> Tensor:
    """L_sparsity = (1/Z) Σ_z [ −Σ_m p_{z,m} log p_{z,m} ], mean over layers: each expert is to prefer few objectives.

    Args:
        alignment_logits: (L, Z, M), W*.

    Returns:
        Scalar in nats, 0 for one objective per expert, log M for no preference.
    """
    log_preferences = alignment_logits.log_softmax(dim=-1)  # (L, Z, M)
    return -(log_preferences.exp() * log_preferences).sum(dim=-1).mean()


def mean_distribution(sums: Tensor) -> Tensor:
    """Row sums (3, L, R, Z) to a detached distribution per view and layer (3, L, Z); zeros where no tokens are."""
    totals = sums.detach().sum(dim=2)  # (3, L, Z)
    return totals / totals.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(totals.dtype).tiny)
