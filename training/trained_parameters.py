"""Which parameters of a model a run trains, where its temperatures start, and how fast each part learns."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch

from .muon import hidden_matrices
from .trainer_config import Moon2TrainingArguments


@torch.no_grad()
def set_temperatures(model: torch.nn.Module, starts: tuple[float | None, float | None]) -> None:
    """Set ε and ε̃ where a start is given; also those of the copy that PEFT trains."""
    for name, weight in model.named_parameters():
        if ".temperature." in f".{name}":
            for i, start in enumerate(starts):
                if start is not None:
                    weight[i] = math.log(start)


def freeze(model: torch.nn.Module, modules: list[str]) -> None:
    """Stop training the parameters of the named modules, wherever in the model a module of that name stands."""
    for module in modules:
        found = [weight for name, weight in model.named_parameters() if f".{module}." in f".{name}."]
        if not found:
            names = ", ".join(name for name, _ in model.named_children())
            raise ValueError(f"freeze: the model has no module {module!r}; its largest are {names}")
        for weight in found:
            weight.requires_grad_(False)


def _own_rates(arguments: Moon2TrainingArguments) -> dict[str, float | None]:
    """Part of a parameter's name -> the learning rate of its own that it has, if any."""
    return {
        ".experts.": arguments.expert_learning_rate,
        ".mlp.gate.": arguments.router_learning_rate,
        ".dual_alignment.": arguments.router_learning_rate,
        "temperature.": arguments.temperature_learning_rate,
    }


def has_own_rates(arguments: Moon2TrainingArguments) -> bool:
    """Whether experts, gate and W*, or ε and ε̃ learn at a rate of their own; 0 is one."""
    return any(rate is not None for rate in _own_rates(arguments).values())


def parameter_groups(
    model: torch.nn.Module, arguments: Moon2TrainingArguments, decays: Collection[str]
) -> list[dict[str, Any]]:
    """Parameters of a model as an optimizer takes them: those of one rate, one decay and one rule together.

    Args:
        model: what is trained; what is frozen is left out.
        arguments: of the run.
        decays: names of the parameters that weight decay is for.
    """
    own_rates = _own_rates(arguments)
    matrices = hidden_matrices(model) if arguments.muon else set()
    groups: dict[tuple[float, bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        own = next((rate for part, rate in own_rates.items() if part in f".{name}"), None)
        key = (arguments.learning_rate if own is None else own, name in decays, name in matrices)
        groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": arguments.weight_decay if decayed else 0.0}
        | ({"muon": is_matrix} if arguments.muon else {})
        for (rate, decayed, is_matrix), parameters in groups.items()
    ]
