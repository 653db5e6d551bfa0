"""NaN and infinity: found in weights, vectors and steps of a training, named, and kept from the weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .gathering import num_processes, process_rank
from .items import item_name
from .losses import DualLevelLossOutput

MOST_IN_A_ROW = 100  # steps left out one after the other, from which on leaving out does not help


def holds_non_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds NaN or infinity; waits for its device."""
    if isinstance(tensor, DTensor):
        tensor = tensor.to_local()
    if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
        return False
    return not torch.stack(tensor.detach().aminmax()).isfinite().all()


def non_finite_weight(model: nn.Module) -> str | None:
    """Name of the first parameter or buffer that holds NaN or infinity, None if all are finite."""
    named = chain(model.named_parameters(), model.named_buffers())
    return next((name for name, tensor in named if holds_non_finite(tensor)), None)


def check_vectors(
    vectors: np.ndarray, rows: np.ndarray, items: Sequence[Mapping[str, Any]], model: nn.Module
) -> np.ndarray:
    """Give vectors back if they are finite.

    Args:
        vectors: (n, D), of some of the items.
        rows: (n,) which.
        items: as they were given to the encoder.
        model: that made the vectors.

    Raises:
        ValueError: one is not; names the item, and the weight that is the cause if one is.
    """
    bad = rows[~np.isfinite(vectors).all(axis=-1)]
    if not bad.size:
        return vectors
    weight = non_finite_weight(model)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    cause = (
        f"all weights are finite, so {dtype} does not reach: load them as float32 or bfloat16"
        if weight is None
        else f"the weight {weight} holds NaN or infinity: load another model"
    )
    row = int(bad[0])
    raise ValueError(f"{item_name(items[row], row)}: its vector is not finite; {cause}")


class StepGuard:
    """Finds the steps of a training whose loss or gradient is not finite.

    Nothing waits for the device but `check` and `tell`; all processes come to the same decision.

    Args:
        skip: such steps are left out and counted; else `check` raises.
        at_once: whether to `check` after every step, as is free on a CPU; else when something waits anyway.
    """

    def __init__(self, skip: bool, at_once: bool) -> None:
        self.skip = skip
        self.at_once = at_once
        self.terms: tuple[str, ...] = ()
        self._bad: Tensor | None = None  # (T,) bool, terms that were not finite since the last step
        # (T + 4,): steps found since `tell`, steps found in a row; of the first one its number, gradient and terms
        self._found: Tensor | None = None

    def look(self, result: DualLevelLossOutput) -> None:
        """Look at the loss of one batch of a step."""
        self.terms, values = loss_terms(result)
        bad = ~values.isfinite()
        self._bad = bad if self._bad is None else self._bad | bad

    def judge(self, gradient_norm: Tensor | float | None, step: int) -> Tensor:
        """Decide on a step when all of its batches were looked at.

        Args:
            gradient_norm: of the whole step; None to judge by the loss alone.
            step: its number, from 1.

        Returns:
            Scalar bool, whether the step is not to be taken.
        """
        gradient = torch.zeros_like(self._bad[:1])
        if isinstance(gradient_norm, DTensor):
            gradient_norm = gradient_norm.full_tensor()
        if gradient_norm is not None:
            norm = gradient_norm if isinstance(gradient_norm, Tensor) else torch.full((), float(gradient_norm))
            gradient = ~norm.to(gradient.device).isfinite().view(1)
        bad = torch.cat([gradient, self._bad]).long()  # (T + 1,)
        if num_processes() > 1:
            dist.all_reduce(bad, dist.ReduceOp.MAX)
        found, self._bad = bad.any(), None
        before = bad.new_zeros(len(bad) + 3) if self._found is None else self._found
        count, in_a_row, first = before[:1], before[1:2], before[2:]
        first = torch.where(found & (count == 0), torch.cat([torch.full_like(count, step), bad]), first)
        self._found = torch.cat([count + found, (in_a_row + 1) * found, first])
        return found

    def check(self, model: nn.Module) -> int:
        """How many steps were found since `tell`; waits for the device.

        Raises:
            ValueError: there is one, and it is not to be left out; or leaving out does not help, for a weight is not
                finite, or no step has been for long. Names the first of the steps, its terms and the weight.
        """
        count, in_a_row = (0, 0) if self._found is None else self._found[:2].tolist()
        if not count:
            return 0
        weight = non_finite_weight(model)
        if weight is not None:
            raise ValueError(
                f"{self._told()}, and so is the weight {weight}: start from other weights, or go on from an earlier "
                "checkpoint (resume_from_checkpoint)"
            )
        if not self.skip:
            raise ValueError(
                f"{self._told()}; all weights are still finite, for the step was not taken. Go on from the last "
                "checkpoint (resume_from_checkpoint) with a lower learning_rate or with bf16 in place of fp16, or "
                "leave such steps out: on_nan=skip"
            )
        if in_a_row >= MOST_IN_A_ROW:
            raise ValueError(
                f"{self._told()}, nor is any of the last {in_a_row}: leaving out does not help; go on from an earlier "
                "checkpoint (resume_from_checkpoint) with a lower learning_rate"
            )
        return count

    def tell(self, model: nn.Module, logs: dict[str, float], finite: float = 1.0) -> None:
        """Put into a log line how many steps were left out since the last one, and warn of the first.

        Args:
            model: as for `check`.
            logs: the line; gets `skipped_steps` where there are any, loses what is not finite, and its `loss`, in
                which batches that are not finite count as 0, becomes the mean over the others.
            finite: share of the batches since the last line whose loss is finite.

        Raises:
            ValueError: as `check`.
        """
        count = self.check(model)
        if not count:
            return
        if "loss" in logs:
            logs["loss"] = logs["loss"] / finite if finite else math.nan
        for name in [name for name, value in logs.items() if not math.isfinite(value)]:
            del logs[name]
        logs["skipped_steps"] = count
        if process_rank() == 0:
            warnings.warn(f"{self._told()}; {count:,} since the last log left out", stacklevel=2)
        self._found[:1] = 0

    def _told(self) -> str:
        step, gradient, *bad = self._found[2:].tolist()
        names = [name for name, is_bad in zip(self.terms, bad, strict=True) if is_bad]
        if not names and gradient:
            return f"step {step}: the gradient is not finite, though the loss is"
        return f"step {step}: the loss is not finite in {', '.join(names)}"


def loss_terms(result: DualLevelLossOutput) -> tuple[tuple[str, ...], Tensor]:
    """The terms of a batch's loss: names (T,) and values (T,), weighted where they are objectives, detached."""
    others = {"aux": result.aux_loss, "sparsity": result.sparsity_loss}
    others |= {f"distillation_{view}": loss for view, loss in result.distillation.items()}
    objectives = result.objective_losses * result.objective_weights
    return (*result.objectives, *others), torch.cat([objectives, torch.stack(list(others.values()))]).detach()


def withhold_step(optimizer: torch.optim.Optimizer, found: Tensor) -> None:
    """Have the next step of an optimizer do nothing if `found` is set, without asking the device.

    Fused Adam and AdamW, and Muon with the latter, are told as a gradient scaler tells them, and leave weights and
    state alone. For any other, and for sharded weights, the gradient becomes zero, while momentum and weight decay go
    on; torch's fused SGD would make its first momentum of memory that holds anything.

    Args:
        optimizer: whose gradients are ready.
        found: scalar bool, as `StepGuard.judge` returns it.
    """
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sharded = any(isinstance(gradient, DTensor) for gradient in gradients)  # which do not mix with plain tensors
    fused = getattr(optimizer, "_step_supports_amp_scaling", False)  # the name by which torch's scaler knows
    if fused and isinstance(optimizer, torch.optim.Adam) and not sharded:
        optimizer.found_inf = found.float()
        return
    for gradient in gradients:
        local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
        local.masked_fill_(found.to(local.device), 0)
