from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from moon2_training import similarity_blocks
from moon2_training.distillation import affinity_distillation, distillation_losses
from moon2_training.teacher_features import Taught


def unit(rows, width, seed):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64), dim=1)


def slow(student, teacher, valid, temperature, teacher_temperature):
    """The formula, pair by pair."""
    rows, total = [i for i in range(len(student)) if valid[i]], 0.0
    for i in rows:
        others = [j for j in rows if j != i]
        wanted = [math.exp(float(teacher[i] @ teacher[j]) / teacher_temperature) for j in others]
        got = [math.exp(float(student[i] @ student[j]) / temperature) for j in others]
        total += sum(
            w / sum(wanted) * math.log(w / sum(wanted) / (g / sum(got))) for w, g in zip(wanted, got, strict=True)
        )
    return total / max(len(rows), 1)


@pytest.mark.parametrize("valid", [[1] * 7, [1, 0, 1, 1, 0, 1, 1], [0, 0, 1, 1, 0, 0, 1]])
@pytest.mark.parametrize("temperatures", [(0.05, 0.05), (0.1, 0.03)])
@pytest.mark.parametrize("at_once", [1 << 22, 2 * 7])  # the second takes four blocks
def test_it_is_the_mean_divergence_over_valid_rows(monkeypatch, valid, temperatures, at_once):
    monkeypatch.setattr(similarity_blocks, "SIMILARITIES_AT_ONCE", at_once)
    student, teacher, valid = unit(7, 4, 0), unit(7, 9, 1), torch.tensor(valid, dtype=torch.bool)
    teacher[3] = teacher[2]  # one product twice
    loss = affinity_distillation(student, teacher, valid, *temperatures)
    assert loss > 0.01
    assert float(loss) == pytest.approx(slow(student, teacher, valid, *temperatures), rel=1e-9)


def test_the_gradient_in_blocks_is_that_of_the_whole(monkeypatch):
    student, teacher, valid = unit(9, 4, 0).requires_grad_(), unit(9, 5, 1), torch.arange(9) != 4
    found = []
    for at_once in (1 << 22, 2 * 9):
        monkeypatch.setattr(similarity_blocks, "SIMILARITIES_AT_ONCE", at_once)
        found.append(torch.autograd.grad(affinity_distillation(student, teacher, valid, 0.05, 0.1), student)[0])
    torch.testing.assert_close(*found)
    assert found[0].abs().max() > 0.01


def test_rows_that_are_not_valid_change_nothing_and_get_no_gradient():
    student, teacher = unit(6, 4, 0), unit(6, 9, 1)
    valid = torch.tensor([1, 1, 0, 1, 0, 1], dtype=torch.bool)
    spoilt = [torch.where(valid[:, None], vectors, 0) for vectors in (student, teacher)]
    spoilt[0].requires_grad_()
    loss = affinity_distillation(*spoilt, valid, 0.05, 0.05)
    torch.testing.assert_close(
        loss, affinity_distillation(student[valid], teacher[valid], valid[valid], 0.05, 0.05), check_stride=False
    )
    loss.backward()
    assert spoilt[0].grad[~valid].eq(0).all() and spoilt[0].grad[valid].ne(0).all()


def test_a_student_with_the_affinities_of_its_teacher_has_nothing_to_learn():
    teacher = unit(6, 5, 0)
    turned = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))[0]
    student = (teacher @ turned).requires_grad_()
    valid = torch.ones(6, dtype=torch.bool)
    loss = affinity_distillation(student, teacher, valid, 0.05, 0.05)
    loss.backward()
    assert loss.abs() < 1e-12 and student.grad.abs().max() < 1e-12
    assert affinity_distillation(student, teacher, valid, 0.05, 0.1) > 0.01


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_rows_teach_nothing(count):
    student = unit(5, 4, 0).float().requires_grad_()
    valid = torch.arange(5) < count
    loss = affinity_distillation(student, unit(5, 9, 1).float(), valid, 0.01, 0.01)
    loss.backward()
    assert loss == 0 and student.grad.eq(0).all()


def test_gradients_are_finite_where_the_affinities_are_sharp():
    student = torch.cat([unit(6, 4, 0), unit(6, 4, 0)]).float().requires_grad_()
    loss = affinity_distillation(student, unit(12, 9, 1).float(), torch.ones(12, dtype=torch.bool), 1e-3, 1e-3)
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all() and student.grad.any()


def test_autocast_does_not_round_the_affinities():
    student, teacher = unit(8, 16, 0).float(), unit(8, 16, 1).float()
    valid = torch.ones(8, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = affinity_distillation(student, teacher, valid, 0.05, 0.05)
    assert rounded == affinity_distillation(student, teacher, valid, 0.05, 0.05)


def test_views_are_told_apart_and_teachers_of_one_view_averaged():
    students = {view: (unit(6, 4, seed), torch.arange(6) != seed) for seed, view in enumerate(("text", "image"))}
    present = torch.arange(6) != 5
    taught = [Taught(view, unit(6, 9, 7 + i), present) for i, view in enumerate(("text", "image", "text"))]
    losses = distillation_losses(students, taught, 0.1)

    def alone(number):
        student, has_view = students[taught[number].view]
        return slow(student, taught[number].vectors, has_view & present, 0.1, 0.1)

    assert list(losses) == ["text", "image"]
    assert float(losses["text"]) == pytest.approx((alone(0) + alone(2)) / 2, rel=1e-9)
    assert float(losses["image"]) == pytest.approx(alone(1), rel=1e-9)
