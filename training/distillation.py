"""Affinity distillation: products that a teacher finds alike are to be alike to the student.

Reference: CLIP-KD (Yang et al., CVPR 2024, arXiv 2307.12732), affinity mimicking; RKD (Park et al., CVPR 2019, arXiv
1904.05068), relations instead of vectors, so that student and teacher may differ in width and nothing is added to the
student.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .teacher_features import Taught


def affinity_distillation(
    student: Tensor, teacher: Tensor, valid: Tensor, temperature: float, teacher_temperature: float
) -> Tensor:
    """(1/|V|) Σ_{i∈V} KL( softmax_{j∈V∖i}(t_i·t_j/T') ‖ softmax_{j∈V∖i}(s_i·s_j/T) ).

    Products may occur more than once; they are as alike as the teacher says, which is entirely.

    Args:
        student: (N, D) normalised s.
        teacher: (N, D') normalised t; no gradient goes there.
        valid: (N,) bool, V: the rows that have both.
        temperature: T.
        teacher_temperature: T'.

    Returns:
        Scalar in nats. 0, with gradient 0, where V has fewer than three rows: one neighbour leaves no choice.

    Reference: CLIP-KD (Yang et al., CVPR 2024, arXiv 2307.12732), affinity mimicking.
    """
    itself = torch.eye(len(student), dtype=torch.bool, device=student.device)
    left_out = itself | ~valid  # (N, N)

    def affinities(vectors: Tensor, divisor: float) -> Tensor:
        logits = vectors @ vectors.T / divisor
        return logits.masked_fill(left_out, torch.finfo(logits.dtype).min).log_softmax(dim=-1)  # not -inf: 0·∞ is NaN

    with torch.autocast(student.device.type, enabled=False):  # dividing by T magnifies the rounding of bfloat16
        wanted = affinities(teacher.detach().to(student.dtype), teacher_temperature)  # (N, N)
        divergence = (wanted.exp() * (wanted - affinities(student, temperature))).sum(dim=-1)  # (N,)
    return torch.where(valid, divergence, 0).sum() / valid.sum().clamp(min=1)


def distillation_losses(
    students: Mapping[str, tuple[Tensor, Tensor]], taught: Sequence[Taught], temperature: float
) -> dict[str, Tensor]:
    """Affinity distillation of each view, the mean over the teachers who know it.

    Args:
        students: embeddings (N, D) of each view, and (N,) bool which products have it.
        taught: what the teachers say of the same N products.
        temperature: of student and teachers.

    Returns:
        A scalar for each view that a teacher knows.
    """
    by_view: dict[str, list[Tensor]] = {}
    for view, vectors, present in taught:
        student, has_view = students[view]
        loss = affinity_distillation(student, vectors, has_view & present, temperature, temperature)
        by_view.setdefault(view, []).append(loss)
    return {view: torch.stack(losses).mean() for view, losses in by_view.items()}
