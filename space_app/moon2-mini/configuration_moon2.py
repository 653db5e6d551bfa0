"""Configuration of the MOON2.0 product encoder: Qwen3-VL with a mixture of experts in its language model."""

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import SubConfigSpec
from transformers.models.qwen3_vl.configuration_qwen3_vl import (
    Qwen3VLConfig,
    Qwen3VLTextConfig,
    Qwen3VLVisionConfig,
)

ALIGNMENT_OBJECTIVES = ("inter_text", "inter_image", "inter_multimodal", "intra_positive", "intra_negative")
GUIDED_FIELDS = ("category", "attributes")


class Moon2VisionConfig(Qwen3VLVisionConfig):
    """Vision tower of Qwen3-VL, unchanged."""

    model_type = "moon2_vision"


@strict
class Moon2TextConfig(Qwen3VLTextConfig):
    r"""
    Language model of Qwen3-VL whose feed-forward layers are mixtures of experts.

    Args:
        num_experts (`int`, defaults to 4):
            Z, the number of expert MLPs in every layer. 0 keeps the dense MLP of Qwen3-VL.
        num_experts_per_tok (`int`, defaults to 2):
            k, the number of experts a token visits. Their gate weights are renormalised to sum to one for k >= 2 and
            used as they are for k = 1, where a renormalised weight would be constant and leave the gate no gradient.
        moe_intermediate_size (`int`, *optional*):
            Width of one expert; `intermediate_size` when not given.
        guided_fields (`tuple[str]`, defaults to none):
            Guided MoE of MOON: the fields of an item, of "category" and "attributes", whose tokens go to experts of
            their own instead of through the gate. Each field has k experts beside the Z routed ones, all k are used,
            each with weight 1/k, so a token costs the same wherever it goes.
        moe_layers (`list[int]`, *optional*):
            Layers that are mixtures, counted from 0; the others keep the dense MLP. All of them when not given.
        router_aux_loss_coef (`float`, defaults to 0.01):
            ρ, the weight of the load-balancing loss.
        alignment_objectives (`tuple[str]`):
            Names of the M objectives, the columns of the dual-alignment matrix W* (Z, M), in this order.

    Raises:
        ValueError: k is not in 1..Z, a layer or a guided field does not exist, or the objectives are others.
    """

    model_type = "moon2_text"
    # Dense layers and the vision tower are replicated.
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.experts.gate_up_proj": "packed_colwise",
        "layers.*.mlp.experts.down_proj": "rowwise",
        "layers.*.mlp.experts": "moe_tp_experts",
    }
    base_model_ep_plan = {
        "layers.*.mlp.experts.gate_up_proj": "grouped_gemm",
        "layers.*.mlp.experts.down_proj": "grouped_gemm",
        "layers.*.mlp.experts": "ep_dispatch_experts",
    }

    num_experts: int = 4
    num_experts_per_tok: int = 2
    moe_intermediate_size: int | None = None
    moe_layers: list[int] | tuple[int, ...] | None = None
    guided_fields: list[str] | tuple[str, ...] = ()
    router_aux_loss_coef: float = 0.01
    alignment_objectives: list[str] | tuple[str, ...] = ALIGNMENT_OBJECTIVES
    use_cache: bool = False

    def __post_init__(self, **kwargs):
        if self.moe_intermediate_size is None:
            self.moe_intermediate_size = self.intermediate_size
        if self.num_experts and not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise ValueError(
                f"num_experts_per_tok={self.num_experts_per_tok}: a token visits 1 to num_experts={self.num_experts} "
                "experts"
            )
        if self.moe_layers is not None and not set(self.moe_layers) <= set(range(self.num_hidden_layers)):
            raise ValueError(f"moe_layers={self.moe_layers}: the layers are 0 to {self.num_hidden_layers - 1}")
        if not set(self.guided_fields) <= set(GUIDED_FIELDS):
            raise ValueError(f"guided_fields={self.guided_fields}; give none or some of {', '.join(GUIDED_FIELDS)}")
        if tuple(self.alignment_objectives) != ALIGNMENT_OBJECTIVES:
            raise ValueError(f"alignment_objectives={self.alignment_objectives}: only {ALIGNMENT_OBJECTIVES} is known")
        super().__post_init__(**kwargs)

    @property
    def num_guided_experts(self) -> int:
        """Experts that belong to guided fields, k for each; they follow the Z routed ones."""
        return self.num_experts_per_tok * len(self.guided_fields)

    def is_moe_layer(self, layer_idx: int) -> bool:
        """Whether a layer is a mixture of experts."""
        return self.num_experts > 0 and (self.moe_layers is None or layer_idx in self.moe_layers)


class Moon2Config(Qwen3VLConfig):
    r"""
    Configuration of [`Moon2Model`]: a [`Moon2TextConfig`], a [`Moon2VisionConfig`] and the ids of the tokens that
    stand for images.

    Example:

    ```python
    >>> from modeling_moon2 import Moon2Config, Moon2Model

    >>> config = Moon2Config(text_config={"num_experts": 4, "num_experts_per_tok": 2})
    >>> model = Moon2Model(config)
    ```
    """

    model_type = "moon2"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=Moon2VisionConfig),
        "text_config": SubConfigSpec(config_class=Moon2TextConfig),
    }


__all__ = ["ALIGNMENT_OBJECTIVES", "GUIDED_FIELDS", "Moon2Config", "Moon2TextConfig", "Moon2VisionConfig"]
