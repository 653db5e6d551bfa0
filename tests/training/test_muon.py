from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from moon2_training.muon import MuonAdamW, hidden_matrices, orthogonalised
from moon2_training.trainer import Moon2Trainer
from moon2_training.trainer_config import Moon2TrainingArguments


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_singular_values_come_out_near_one_and_directions_stay(shape):
    torch.manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.randn(3, *shape), full_matrices=False)
    values = torch.linspace(0.05, 1, min(shape))
    scale = torch.tensor([1e-4, 1.0, 1e4])[:, None, None]
    result = orthogonalised(scale * (u * values) @ vh)
    inner = u.mT @ result @ vh.mT  # diagonal where the singular directions are kept
    torch.testing.assert_close(inner, torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1)), atol=1e-4, rtol=0)
    assert inner.diagonal(dim1=-2, dim2=-1).min() > 0.4 and inner.max() < 1.3  # were twenty to one


def test_a_zero_gradient_moves_nothing():
    assert not orthogonalised(torch.zeros(2, 4, 6)).any()


def test_a_step_equals_the_formula_and_stacked_experts_are_matrices_of_their_own():
    torch.manual_seed(1)
    experts, alone = nn.Parameter(torch.randn(3, 8, 12)), nn.Parameter(torch.randn(8, 12))
    vector = nn.Parameter(torch.randn(5))
    before = [p.detach().clone() for p in (experts, alone)]
    optimizer = MuonAdamW([{"params": [experts, alone], "muon": True}, {"params": [vector]}], lr=0.1, weight_decay=0.5)
    expected, buffers = [b.clone() for b in before], [torch.zeros_like(b) for b in before]
    for _ in range(3):
        gradients = [torch.randn_like(b) for b in before]
        for number, (parameter, gradient) in enumerate(zip((experts, alone), gradients, strict=True)):
            parameter.grad = gradient
            buffers[number] = 0.95 * buffers[number] + 0.05 * gradient
            update = 0.05 * gradient + 0.95 * buffers[number]
            each = update.view(-1, 8, 12)
            made = torch.cat([orthogonalised(one[None]) for one in each]).view_as(update)
            expected[number] = expected[number] * (1 - 0.1 * 0.5) - 0.1 * 0.2 * 12**0.5 * made
        vector.grad = torch.randn(5)
        optimizer.step()
    for parameter, wanted in zip((experts, alone), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), wanted, atol=1e-5, rtol=1e-5)


def test_what_is_no_matrix_follows_adamw():
    torch.manual_seed(2)
    mine, theirs = (nn.Parameter(torch.ones(7)) for _ in range(2))
    matrix = nn.Parameter(torch.randn(4, 4))
    options = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.9)}
    optimizer = MuonAdamW([{"params": [matrix], "muon": True}, {"params": [mine]}], **options)
    reference = torch.optim.AdamW([theirs], **options)
    for _ in range(4):
        mine.grad = theirs.grad = torch.randn(7)
        matrix.grad = torch.randn(4, 4)
        optimizer.step()
        reference.step()
    assert torch.equal(mine, theirs)


def test_a_loaded_state_goes_on_as_before():
    def made():
        torch.manual_seed(3)
        parameters = [nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(3))]
        return parameters, MuonAdamW([{"params": parameters[:1], "muon": True}, {"params": parameters[1:]}], lr=0.1)

    def step(parameters, optimizer, seed):
        torch.manual_seed(seed)
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()

    whole, optimizer = made()
    step(whole, optimizer, 0)
    state, weights = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in whole]
    step(whole, optimizer, 1)
    resumed, other = made()
    other.load_state_dict(state)
    with torch.no_grad():
        for parameter, weight in zip(resumed, weights, strict=True):
            parameter.copy_(weight)
    step(resumed, other, 1)
    for one, two in zip(whole, resumed, strict=True):
        assert torch.equal(one, two)


def test_the_trainer_gives_it_the_matrices_alone(shop, tiny, tmp_path):
    model = copy.deepcopy(tiny[0])
    names = hidden_matrices(model)
    assert any(name.endswith("experts.gate_up_proj") for name in names)
    assert not any(part in name for name in names for part in ("embed", "mlp.gate.", "dual_alignment", "norm", "bias"))
    arguments = Moon2TrainingArguments(
        str(tmp_path), muon=True, learning_rate=1e-3, router_learning_rate=2e-3, per_device_train_batch_size=4,
        max_steps=2, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Moon2Trainer(model, arguments, shop, processing_class=tiny[1])
    trainer.train()
    groups = trainer.optimizer.optimizer.param_groups  # inside accelerate's wrapper
    by_id = {id(p): name for name, p in model.named_parameters()}
    assert {by_id[id(p)] for g in groups if g["muon"] for p in g["params"]} == names
    assert sum(len(g["params"]) for g in groups) == len(by_id)
    moved = dict(model.named_parameters())
    for name, weight in tiny[0].named_parameters():
        if "experts" in name:
            assert not torch.equal(weight, moved[name]), name


def test_what_does_not_go_with_it_is_refused(tmp_path):
    with pytest.raises(ValueError, match="leaves what is no matrix to AdamW, but optim="):
        Moon2TrainingArguments(str(tmp_path), muon=True, optim="sgd", report_to="none")
    with pytest.raises(ValueError, match="a parameter that is no matrix"):
        MuonAdamW([{"params": [nn.Parameter(torch.ones(3))], "muon": True}])
