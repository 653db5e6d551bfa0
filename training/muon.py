"""Muon for the matrices of a model, AdamW for everything else.

torch's own Muon takes two-dimensional parameters alone; experts are stacked in three. Here the last two dimensions are
the matrix, and all matrices of one shape are orthogonalised together.

Reference: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024,
https://kellerjordan.github.io/posts/muon; the scale of the update is that of Liu et al., "Muon is Scalable for LLM
Training", arXiv 2502.16982, with which learning rate and weight decay are those of AdamW.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from modeling_moon2.modeling_moon2 import Moon2Experts

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # as published: steep at zero
STEPS = 5
UPDATE_RMS = 0.2  # of an entry, as AdamW's usually is


def hidden_matrices(model: nn.Module) -> set[str]:
    """Names of the parameters that are matrices between hidden states: of linear layers and of experts.

    Tables of embeddings, the gate, W* and the patch embedding are not among them.
    """
    names = set()
    for prefix, module in model.named_modules():
        if isinstance(module, nn.Linear):
            names.add(f"{prefix}.weight")
        elif isinstance(module, Moon2Experts):
            names |= {f"{prefix}.{name}" for name, _ in module.named_parameters(recurse=False)}
    return {name.removeprefix(".") for name in names}


def orthogonalised(matrices: Tensor) -> Tensor:
    """U Vᵀ of each matrix U S Vᵀ, approximately, by Newton-Schulz iteration: most singular values end in 0.7 to 1.2.

    Args:
        matrices: (n, rows, columns).
    """
    a, b, c = COEFFICIENTS
    wide = matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT
    wide = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(STEPS):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if matrices.shape[-2] <= matrices.shape[-1] else wide.mT


class MuonAdamW(torch.optim.AdamW):
    """One optimizer of both: groups with `muon` set are matrices and follow Muon, the others AdamW.

    M ← μM + (1−μ)∇;  W ← (1 − η·λ)·W − η·0.2·√max(rows, columns)·orthogonalised((1−μ)∇ + μM).

    Args:
        params: groups, those of matrices with `"muon": True`; in these the last two dimensions are the matrix.
        momentum: μ.
        kwargs: as for `torch.optim.AdamW`; `lr` η and `weight_decay` λ are used by both.
    """

    def __init__(self, params, momentum: float = 0.95, **kwargs) -> None:
        super().__init__(params, **kwargs)
        for group in self.param_groups:
            group.setdefault("muon", False)
            group.setdefault("momentum", momentum)
            if group["muon"] and any(p.ndim < 2 for p in group["params"]):
                raise ValueError("a group with muon=True holds a parameter that is no matrix; leave it to AdamW")

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        """Take one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        for group in groups:
            if group["muon"]:
                self._muon_step(group)
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            super().step()
        finally:
            self.param_groups = groups
        return loss

    def _muon_step(self, group: dict) -> None:
        by_shape: dict[tuple, list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape[(*parameter.shape[-2:], parameter.dtype, parameter.device)].append(parameter)
        for (rows, columns, dtype, device), parameters in by_shape.items():
            updates = []
            for parameter in parameters:
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                    state["step"] = torch.zeros(())  # AdamW looks for it when a state is loaded
                buffer = state["momentum_buffer"]
                momentum = buffer.lerp(parameter.grad, 1 - group["momentum"])
                updates.append(parameter.grad.lerp(momentum, group["momentum"]).view(-1, rows, columns))
                buffer.copy_(self._unless_withheld(buffer, momentum))
            stacked = torch.cat(updates)  # (n, rows, columns)
            if device.type != "cpu":
                stacked = stacked.bfloat16()
            scale = group["lr"] * UPDATE_RMS * math.sqrt(max(rows, columns))
            parts = orthogonalised(stacked).to(dtype).split([len(update) for update in updates])
            for parameter, update in zip(parameters, parts, strict=True):
                moved = parameter * (1 - group["lr"] * group["weight_decay"])
                moved.add_(update.reshape(parameter.shape), alpha=-scale)
                parameter.copy_(self._unless_withheld(parameter, moved))

    def _unless_withheld(self, old: Tensor, new: Tensor) -> Tensor:
        """The new value, but the old one in a step that is to do nothing: `found_inf` says so, as to AdamW."""
        found = getattr(self, "found_inf", None)
        return new if found is None else torch.where(found.bool(), old, new)
