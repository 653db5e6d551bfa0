"""What a training run says of its objectives, experts, temperatures and filter between two log lines."""

from __future__ import annotations

import torch

from .losses import VIEWS, DualLevelLossOutput
from .non_finite import loss_terms


class ObjectiveLog:
    """Means of a run's diagnostics between two log lines; holds tensors and reads them once, when asked."""

    def __init__(self) -> None:
        self._steps: list[dict[str, torch.Tensor]] = []

    def add(self, result: DualLevelLossOutput, temperatures: torch.Tensor) -> None:
        """Remember one batch; nothing waits for the device."""
        served = result.served.float()  # (M,)
        step = {
            "served": served,
            "loss": result.objective_losses * served,
            "weight": result.objective_weights,
            "regularisers": torch.stack([result.aux_loss, result.sparsity_loss]),
            "temperature": temperatures.detach(),
            "finite": loss_terms(result)[1].isfinite().all(),
        }
        if result.expert_load is not None:
            step |= {"expert_load": result.expert_load, "routing_entropy": result.routing_entropy}
        if result.distillation:
            step["distillation"] = torch.stack(list(result.distillation.values())).detach()
        if result.filtering is not None:
            step["filtering"] = torch.stack([result.filtering.kept.float().mean(), result.filtering.phi.mean()])
        self._objectives = result.objectives
        self._distilled = [f"loss/distillation_{view}" for view in result.distillation]
        self._steps.append(step)

    def flush(self) -> tuple[dict[str, float], float]:
        """Means since the last call over the batches whose loss is finite, and what share of all batches these are.

        Flat: `loss/inter_text`, `weight/inter_text` (M·ω), `loss/aux`, `loss/sparsity`, `loss/distillation_text`,
        `temperature/inter`, `expert_load/text/0`, `routing_entropy/text`, `filter/kept_share` (of triplets with
        φ ≥ τ), `filter/mean_phi`; `unserved/inter_image` is the share of batches in which nothing served the
        objective, where that happened.
        """
        if not self._steps:
            return {}, 0.0
        finite = torch.stack([step.pop("finite") for step in self._steps]).tolist()
        steps = [step for step, is_finite in zip(self._steps, finite, strict=True) if is_finite]
        share, self._steps = len(steps) / len(finite), []
        if not steps:
            return {}, share
        mean = {name: torch.stack([step[name] for step in steps]).mean(0).tolist() for name in steps[0]}
        logs = {}
        for name, served, loss, weight in zip(
            self._objectives, mean["served"], mean["loss"], mean["weight"], strict=True
        ):
            if served:
                logs[f"loss/{name}"] = loss / served
            if served < 1:
                logs[f"unserved/{name}"] = 1 - served
            logs[f"weight/{name}"] = weight
        logs |= dict(zip(("loss/aux", "loss/sparsity"), mean["regularisers"], strict=True))
        logs |= dict(zip(("temperature/inter", "temperature/intra"), mean["temperature"], strict=True))
        logs |= dict(zip(self._distilled, mean.get("distillation", ()), strict=True))
        if "filtering" in mean:
            logs |= dict(zip(("filter/kept_share", "filter/mean_phi"), mean["filtering"], strict=True))
        if "expert_load" in mean:
            for view, load, entropy in zip(VIEWS, mean["expert_load"], mean["routing_entropy"], strict=True):
                logs |= {f"expert_load/{view}/{z}": share for z, share in enumerate(load)}
                logs[f"routing_entropy/{view}"] = entropy
        return logs, share
