"""Eight-bit weights for a CPU: linear layers and experts compute in int8, each activation scaled as it comes."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.ao.quantization import quantize_dynamic
from transformers import PreTrainedModel

from modeling_moon2.modeling_moon2 import Moon2Experts


class SeparateExperts(nn.Module):
    """The experts of a layer as linear layers of their own, which can be quantised; computes as `Moon2Experts`.

    Args:
        experts: with their weights stacked.
    """

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.act_fn = experts.act_fn
        self.gate_up = nn.ModuleList(_linear(weight) for weight in experts.gate_up_proj)
        self.down = nn.ModuleList(_linear(weight) for weight in experts.down_proj)

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """ĥ = Σ_z G̃_z f_z(h) for hidden_states (T, D) with chosen experts and weights (T, k)."""
        output = torch.zeros_like(hidden_states)
        for z, (gate_up, down) in enumerate(zip(self.gate_up, self.down, strict=True)):
            token, slot = torch.where(top_k_index == z)
            if len(token):
                gate, up = gate_up(hidden_states[token]).chunk(2, dim=-1)
                output.index_add_(0, token, down(self.act_fn(gate) * up) * top_k_weights[token, slot, None])
        return output


def quantize_int8(model: PreTrainedModel) -> float:
    """Quantise a model on the CPU in place, for inference: every linear layer, and every expert.

    Tables of tokens and positions, norms, gates and the patch embedding stay as they are.

    Args:
        model: in float32 on the CPU.

    Returns:
        The share of its weights that are eight bits wide, tables of tokens and positions aside.

    Raises:
        ValueError: the model is of another type, or elsewhere.
    """
    if model.dtype != torch.float32 or model.device.type != "cpu":
        raise ValueError(f"the model is {model.dtype} on {model.device}; int8 starts from float32 on the CPU")
    tables = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Embedding))
    total = sum(parameter.numel() for parameter in model.parameters()) - tables
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, Moon2Experts) or type(child).__name__ == Moon2Experts.__name__:
                setattr(module, name, SeparateExperts(child))
    quantised = sum(module.weight.numel() for module in model.modules() if type(module) is nn.Linear)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is to move into a package of its own
        quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=True)
    return quantised / total


def _linear(weight: torch.Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    return linear


__all__ = ["SeparateExperts", "quantize_int8"]
