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

from .similarity_blocks import in_blocks

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
    rows = torch.arange(len(student), device=student.device)
    teacher = teacher.detach().to(student.dtype)

    def divergence(of_rows: Tensor, of_student: Tensor, of_teacher: Tensor) -> Tensor:
        left_out = (of_rows[:, None] == rows) | ~valid  # (n, N)

        def affinities(left: Tensor, right: Tensor, divisor: float) -> Tensor:
            logits = left @ right.T / divisor
            lowest = torch.finfo(logits.dtype).min  # not -inf: 0·∞ is NaN
            return logits.masked_fill(left_out, lowest).log_softmax(dim=-1)

        with torch.autocast(student.device.type, enabled=False):  # dividing by T magnifies the rounding of bfloat16
            wanted = affinities(of_teacher, teacher, teacher_temperature)  # (n, N)
            return (wanted.exp() * (wanted - affinities(of_student, student, temperature))).sum(dim=-1)  # (n,)

    divergences = in_blocks(divergence, len(student), rows, student, teacher)  # (N,)
    return torch.where(valid, divergences, 0).sum() / valid.sum().clamp(min=1)


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
