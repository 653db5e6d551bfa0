"""MOON2.0: one vector for a product's title, its photos, or both.

Read top to bottom: experts, gate, mixture block W*, layer, language model, vision tower, encoder. The embedding is
the L2-normalised mean of the last hidden states over the real tokens, r = MeanPool(h).

Reference: Nie et al., "MOON2.0: Dynamic Modality-balanced Multimodal Representation Learning for E-commerce Product
Understanding", CVPR 2026, arXiv 2511.12449.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.integrations import use_experts_implementation
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    BaseModelOutputWithDeepstackFeatures,
    Qwen3VLPreTrainedModel,
    Qwen3VLTextAttention,
    Qwen3VLTextMLP,
    Qwen3VLTextRMSNorm,
    Qwen3VLTextRotaryEmbedding,
    Qwen3VLVisionAttention,
    Qwen3VLVisionModel,
    Qwen3VLVisionPatchEmbed,
    apply_rotary_pos_emb,
    apply_rotary_pos_emb_vision,
    eager_attention_forward,
)
from transformers.utils import ModelOutput, can_return_tuple
from transformers.utils.generic import is_flash_attention_requested
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_moon2 import GUIDED_FIELDS, Moon2Config, Moon2TextConfig, Moon2VisionConfig
from .layout_moon2 import image_parts, multimodal_position_ids, pad_packed, sequence_packing, vision_layout

INITIAL_TEMPERATURE = 0.07
MINIMAL_TEMPERATURE, MAXIMAL_TEMPERATURE = 0.01, 100.0


class Moon2Routing(NamedTuple):
    """Routing statistics of the three views (text, image, multimodal) of B items, summed over the tokens of a view.

    gate_sums (3, layers, B, Z): Σ of the chosen experts' renormalised weights G̃, differentiable.
    prob_sums (3, layers, B, Z): Σ of the full gate distribution G, differentiable.
    expert_counts (3, layers, B, Z): how many tokens went to each expert.
    token_counts (3, B): tokens of the view that the gate routed; 0 where the item lacks the view. An item without
        text or without image has no multimodal entry: its tokens count once, in the view they belong to.
    """

    gate_sums: torch.Tensor
    prob_sums: torch.Tensor
    expert_counts: torch.Tensor
    token_counts: torch.Tensor


@dataclass
class Moon2Output(ModelOutput):
    """
    last_hidden_state (B, L, D): hidden states after the final norm.
    embeddings (B, D): L2-normalised float32 mean of `last_hidden_state` over the real tokens.
    router_logits: per mixture layer (B, L, Z), W_g h in float32, before the softmax.
    expert_weights: per mixture layer (B, L, Z), G̃: the chosen experts' weights, zero for the others and for tokens
        that go to a guided field's experts.
    alignment_logits: per mixture layer (Z, M), W*.
    hidden_states, attentions: as everywhere in transformers, on request.
    """

    last_hidden_state: torch.FloatTensor | None = None
    embeddings: torch.FloatTensor | None = None
    router_logits: tuple[torch.FloatTensor, ...] | None = None
    expert_weights: tuple[torch.FloatTensor, ...] | None = None
    alignment_logits: tuple[torch.FloatTensor, ...] | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class Moon2ViewsOutput(ModelOutput):
    """
    text_embeddings, image_embeddings (B, D): r^t and r^i, zero where the item lacks the view.
    multimodal_embeddings (B, D): r^mm, of whatever the item has.
    has_text, has_image (B,): which views exist.
    routing: [`Moon2Routing`], None for a dense model.
    alignment_logits (layers, Z, M): W* of every mixture layer, None for a dense model.
    temperatures (2,): ε (inter-product) and ε̃ (intra-product).
    expert_choices: on request, (layers, 1, T, Z) bool: the experts that the gate chose for each of the packed tokens.
    """

    text_embeddings: torch.FloatTensor | None = None
    image_embeddings: torch.FloatTensor | None = None
    multimodal_embeddings: torch.FloatTensor | None = None
    has_text: torch.BoolTensor | None = None
    has_image: torch.BoolTensor | None = None
    routing: Moon2Routing | None = None
    alignment_logits: torch.FloatTensor | None = None
    temperatures: torch.FloatTensor | None = None
    expert_choices: torch.BoolTensor | None = None


def mean_pool(hidden_states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """L2-normalised float32 mean (B, D) of `hidden_states` (B, L, D) where `mask` (B, L) is set; empty rows give 0."""
    mask = mask.to(torch.float32).unsqueeze(-1)  # (B, L, 1)
    mean = (hidden_states.float() * mask).sum(1) / mask.sum(1).clamp(min=1)  # (B, D)
    return F.normalize(mean, dim=-1)


def routing_sums(
    router_logits: torch.Tensor, expert_weights: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sum routing over the tokens of one view that the gate routed; those of guided fields have no G̃ and are left out.

    Args:
        router_logits, expert_weights (layers, B, L, Z): of the mixture layers, of one forward.
        mask (B, L): true on the tokens of the view.

    Returns:
        gate_sums, prob_sums, expert_counts, each (layers, B, Z), and token_counts (B,): one view of [`Moon2Routing`].
    """
    routed = mask & (expert_weights[0] != 0).any(-1)  # (B, L)
    mask = routed.to(torch.float32).unsqueeze(-1)  # (B, L, 1)
    probs = router_logits.softmax(-1)  # (layers, B, L, Z)
    sums = ((x * mask).sum(2) for x in (expert_weights, probs, (expert_weights.detach() != 0).float()))
    return *sums, mask.sum((1, 2))


@use_experts_implementation
class Moon2Experts(nn.Module):
    """The Z expert MLPs f_z, SwiGLU as in Qwen3, and behind them those of guided fields; their weights are stacked.

    `config._experts_implementation` chooses between this loop ("eager"), "grouped_mm" and "batched_mm".
    """

    def __init__(self, config: Moon2TextConfig):
        super().__init__()
        self.num_experts = config.num_experts + config.num_guided_experts
        width, hidden = config.moe_intermediate_size, config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(self.num_experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, hidden, width))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """ĥ = Σ_z G̃_z f_z(h) for hidden_states (T, D) with chosen experts and weights (T, k)."""
        output = torch.zeros_like(hidden_states)
        for z in range(self.num_experts):
            token, slot = torch.where(top_k_index == z)
            gate, up = F.linear(hidden_states[token], self.gate_up_proj[z]).chunk(2, dim=-1)
            expert_output = F.linear(self.act_fn(gate) * up, self.down_proj[z]) * top_k_weights[token, slot, None]
            output.index_add_(0, token, expert_output.to(output.dtype))
        return output


class Moon2TopKGate(nn.Module):
    """G = softmax(W_g h) over Z experts, in float32; the k largest are chosen and, for k >= 2, renormalised to G̃.

    Guided MoE (MOON): the token of a guided field passes by the gate, to all k experts of its field in equal parts.
    Choices made before can be given again: close decisions could fall otherwise in a second pass over the same input.
    """

    def __init__(self, config: Moon2TextConfig):
        super().__init__()
        self.num_experts = config.num_experts
        self.num_experts_per_tok = config.num_experts_per_tok
        self.guided_fields = [GUIDED_FIELDS.index(field) + 1 for field in config.guided_fields]
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))

    def forward(
        self,
        hidden_states: torch.Tensor,
        field_ids: torch.Tensor | None = None,
        choices: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Route hidden_states (T, D), field_ids (T,), choices (T, Z): logits (T, Z), weights, expert index (T, k)."""
        with torch.autocast(hidden_states.device.type, enabled=False):  # bfloat16 would round away close decisions
            logits = F.linear(hidden_states.float(), self.weight.float())
        probs = logits.softmax(-1)
        index = (probs if choices is None else choices + probs.detach()).topk(self.num_experts_per_tok, dim=-1).indices
        weights = probs.gather(-1, index)
        if self.num_experts_per_tok > 1:
            weights = weights / weights.sum(-1, keepdim=True)
        if field_ids is not None:
            experts = self.num_experts + torch.arange(self.num_experts_per_tok, device=index.device)  # (k,)
            for group, field_id in enumerate(self.guided_fields):
                guided = (field_ids == field_id).unsqueeze(-1)  # (T, 1)
                index = torch.where(guided, experts + group * self.num_experts_per_tok, index)
                weights = torch.where(guided, 1 / self.num_experts_per_tok, weights)
        return logits, weights, index


class Moon2DualAlignment(nn.Module):
    """Dual-alignment matrix W* (Z, M): how much each expert serves each objective.

    A module, and called as one, so that PEFT can train and save a copy of it.
    """

    def __init__(self, config: Moon2TextConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_experts, len(config.alignment_objectives)))

    def forward(self) -> torch.Tensor:
        """W* (Z, M); a copy, for sharded wrappers take the weight itself away when a layer is done."""
        return self.weight.clone()


class Moon2SparseMoeBlock(nn.Module):
    """Modality-driven mixture of experts in the place of a layer's MLP."""

    def __init__(self, config: Moon2TextConfig):
        super().__init__()
        self.num_experts = config.num_experts + config.num_guided_experts  # of all processes, in expert parallelism
        self.gate = Moon2TopKGate(config)
        self.experts = Moon2Experts(config)
        self.dual_alignment = Moon2DualAlignment(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        field_ids: torch.Tensor | None = None,
        choices: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mix experts for hidden_states (B, L, D), field_ids (B, L), choices (B, L, Z).

        Returns:
            Output (B, L, D), gate logits (B, L, Z), G̃ (B, L, Z), W* (Z, M).
        """
        tokens = hidden_states.flatten(0, 1)  # (T, D)
        logits, weights, index = self.gate(
            tokens,
            None if field_ids is None else field_ids.flatten(),
            None if choices is None else choices.flatten(0, 1),
        )
        output = self.experts(tokens, index, weights)
        gates = logits.new_zeros(len(tokens), self.num_experts).scatter(-1, index, weights)
        gates = gates[:, : logits.shape[-1]]  # (T, Z)
        shape = hidden_states.shape[:2]
        routing = logits.unflatten(0, shape), gates.unflatten(0, shape), self.dual_alignment()
        return output.view_as(hidden_states), *routing


class Moon2TextAttention(Qwen3VLTextAttention):
    """Qwen3-VL's attention, also over packed sequences: then all but the attention itself is done without padding."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | list | None = None,
        packing: dict | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend in hidden_states (B, L, D), or in (1, T, D) with the layout of [`sequence_packing`]; `attention_mask`
        is then a list, for the sequences and for the texts.
        """
        if packing is None:
            return super().forward(hidden_states, position_embeddings, attention_mask, **kwargs)
        if is_flash_attention_requested(self.config):
            bounds = {f"cu_seq_lens_{side}": packing["cu_seqlens"] for side in "qk"}
            bounds |= {f"max_length_{side}": packing["max_seqlen"] for side in "qk"}
            return super().forward(hidden_states, position_embeddings, None, **bounds, **kwargs)
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_norm(self.q_proj(hidden_states).view(shape)).transpose(1, 2)  # (1, H, T, d)
        key = self.k_norm(self.k_proj(hidden_states).view(shape)).transpose(1, 2)
        value = self.v_proj(hidden_states).view(shape)
        query, key = (s.transpose(1, 2) for s in apply_rotary_pos_emb(query, key, *position_embeddings))
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        counts = [len(slots) for slots in packing["slots"]]
        rows = (len(packing["cu_seqlens"]) - 1) // len(counts)
        outputs = []
        for slots, length, mask, *states in zip(
            packing["slots"],
            packing["lengths"],
            attention_mask,
            *(s.squeeze(0).split(counts) for s in (query, key, value)),
            strict=True,
        ):
            states = (pad_packed(s, slots, length, rows).transpose(1, 2) for s in states)  # (rows, H, length, d)
            dropout = self.attention_dropout if self.training else 0.0
            output, _ = attend(self, *states, mask, dropout=dropout, scaling=self.scaling, **kwargs)
            outputs.append(output.flatten(2).flatten(0, 1)[slots])
        return self.o_proj(torch.cat(outputs).unsqueeze(0)), None


class Moon2DecoderLayer(GradientCheckpointingLayer):
    """Qwen3-VL's layer; returns the routing beside the hidden states so that its gradient survives checkpointing."""

    def __init__(self, config: Moon2TextConfig, layer_idx: int):
        super().__init__()
        self.self_attn = Moon2TextAttention(config=config, layer_idx=layer_idx)
        self.mlp = Moon2SparseMoeBlock(config) if config.is_moe_layer(layer_idx) else Qwen3VLTextMLP(config)
        self.input_layernorm = Qwen3VLTextRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = Qwen3VLTextRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        field_ids: torch.Tensor | None = None,
        choices: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Hidden states (B, L, D), gate logits and G̃ (B, L, Z), W* (Z, M); the last three are None if dense."""
        attention_output, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + attention_output
        mlp_input = self.post_attention_layernorm(hidden_states)
        if isinstance(self.mlp, Moon2SparseMoeBlock):
            mlp_output, *routing = self.mlp(mlp_input, field_ids, choices)
        else:
            mlp_output, routing = self.mlp(mlp_input), (None, None, None)
        return hidden_states + mlp_output, *routing


class BoundedLogarithm(torch.autograd.Function):
    """Clamps to the logarithms of the bounds; from outside a gradient passes that a step would follow back inside."""

    @staticmethod
    def forward(ctx, logarithms: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(logarithms)
        return logarithms.clamp(math.log(MINIMAL_TEMPERATURE), math.log(MAXIMAL_TEMPERATURE))

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        (logarithms,) = ctx.saved_tensors
        too_low = (logarithms <= math.log(MINIMAL_TEMPERATURE)) & (gradient > 0)
        too_high = (logarithms >= math.log(MAXIMAL_TEMPERATURE)) & (gradient < 0)
        return gradient.masked_fill(too_low | too_high, 0)


class Moon2Temperature(nn.Module):
    """Learnable temperatures ε (inter-product) and ε̃ (intra-product), kept as logarithms; 0.01 to 100."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), math.log(INITIAL_TEMPERATURE)))

    def forward(self) -> torch.Tensor:
        """(2,) temperatures in float32."""
        return BoundedLogarithm.apply(self.weight.float()).exp()  # bounded before exp, which would overflow


class Moon2PreTrainedModel(Qwen3VLPreTrainedModel):
    """Weight initialisation and the switches that transformers reads from a model class."""

    config: Moon2Config
    input_modalities = ("image", "text")
    _no_split_modules = ["Moon2DecoderLayer", "Qwen3VLVisionBlock"]
    _can_record_outputs = {
        "hidden_states": Moon2DecoderLayer,
        "attentions": Moon2TextAttention,
        "router_logits": OutputRecorder(Moon2DecoderLayer, index=1),
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        std = self.config.get_text_config().initializer_range
        if isinstance(module, Moon2Experts):
            init.normal_(module.gate_up_proj, mean=0.0, std=std)
            init.normal_(module.down_proj, mean=0.0, std=std)
        elif isinstance(module, Moon2TopKGate | Moon2DualAlignment):
            init.normal_(module.weight, mean=0.0, std=std)
        elif isinstance(module, Moon2Temperature):
            init.constant_(module.weight, math.log(INITIAL_TEMPERATURE))


class Moon2VisionPatchEmbed(Qwen3VLVisionPatchEmbed):
    """Patches arrive already cut, so the convolution is one matrix product; the weight keeps its convolution shape."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        weight = self.proj.weight.flatten(1)  # (D, channels * time * height * width)
        return F.linear(hidden_states.to(weight.dtype), weight, self.proj.bias)


class Moon2VisionAttention(Qwen3VLVisionAttention):
    """Attention inside each image; images of equal patch counts are one batch instead of a loop over images."""

    def forward(self, hidden_states: torch.Tensor, cu_seqlens, position_embeddings=None, buckets=None, **kwargs):
        """Attend in hidden_states (patches, D), which holds the images one after the other.

        `buckets` comes from [`Moon2VisionModel`]: per patch count the indices (images, patches) of its patches, or an
        int where all images have that many patches.
        """
        if is_flash_attention_requested(self.config):
            return super().forward(hidden_states, cu_seqlens, position_embeddings=position_embeddings, **kwargs)
        kwargs.pop("max_seqlen", None)
        query, key, value = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)  # (P, H, d)
        query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)

        def attend_images(*states: torch.Tensor) -> torch.Tensor:
            states = (s.transpose(1, 2) for s in states)  # (images, H, patches, d)
            output, _ = attend(
                self, *states, attention_mask=None, scaling=self.scaling, dropout=0.0, is_causal=False, **kwargs
            )
            return output.flatten(2)  # (images, patches, D)

        if isinstance(buckets, int):
            output = attend_images(*(s.unflatten(0, (-1, buckets)) for s in (query, key, value))).flatten(0, 1)
        else:
            output = torch.empty_like(hidden_states)
            parts = [attend_images(query[index], key[index], value[index]).flatten(0, 1) for index in buckets]
            output = output.index_copy(0, torch.cat([index.flatten() for index in buckets]), torch.cat(parts))
        return self.proj(output)


class Moon2VisionModel(Qwen3VLVisionModel, Moon2PreTrainedModel):
    """Qwen3-VL's vision tower with the same weights, its per-image loops batched."""

    config: Moon2VisionConfig
    input_modalities = ("image",)

    def __init__(self, config: Moon2VisionConfig):
        super().__init__(config)
        self.patch_embed = Moon2VisionPatchEmbed(config)
        for block in self.blocks:
            block.attn = Moon2VisionAttention(config)
        self.post_init()

    def layout(self, grid_thw: torch.Tensor) -> dict[str, torch.Tensor | int | list[torch.Tensor] | None]:
        """[`vision_layout`] of images with grids grid_thw (num_images, 3)."""
        return vision_layout(self.config, grid_thw)

    def forward(self, hidden_states: torch.Tensor, grid_thw: torch.Tensor, layout: dict | None = None, **kwargs):
        """Encode images.

        Args:
            hidden_states (patches, channels * time * patch²), grid_thw (num_images, 3): of all images.
            layout: of the same images; made here if absent.
        """
        return super().forward(
            hidden_states, grid_thw, **(self.layout(grid_thw) if layout is None else layout), **kwargs
        )


class Moon2TextModel(Moon2PreTrainedModel):
    """The language model: causal, without cache and without language-modelling head."""

    config: Moon2TextConfig
    input_modalities = ("text",)

    def __init__(self, config: Moon2TextConfig):
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(Moon2DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = Qwen3VLTextRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = Qwen3VLTextRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        deepstack_visual_embeds: list[torch.FloatTensor] | None = None,
        field_ids: torch.Tensor | None = None,
        expert_choices: torch.Tensor | None = None,
        packing: dict | None = None,
        **kwargs,
    ) -> Moon2Output:
        """Run the layers.

        Args:
            input_ids (B, L) or inputs_embeds (B, L, D): exactly one.
            attention_mask (B, L): 1 for real tokens.
            position_ids (3, B, L): positions in time, height, width; counted from `attention_mask` if absent.
            deepstack_visual_embeds: per early layer (B, L, D), added to its output; zero off the image tokens.
            field_ids (B, L): which field of GUIDED_FIELDS a token belongs to, from 1; 0 for all other tokens.
            expert_choices (mixture layers, B, L, Z): the k experts that each token shall visit, chosen before.
            packing: [`sequence_packing`] of several sequences that stand in one row without padding, L = T and B = 1;
                their position_ids must be given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if attention_mask is None:
            attention_mask = inputs_embeds.new_ones(inputs_embeds.shape[:2], dtype=torch.long)
        if position_ids is None:
            position_ids = multimodal_position_ids(attention_mask, attention_mask == 0, None, 1)
        causal_mask = self._causal_mask(inputs_embeds, attention_mask, packing)
        position_embeddings = self.rotary_emb(inputs_embeds, position_ids)

        hidden_states, routing = inputs_embeds, []  # routing: per mixture layer, what it returns beside the states
        for i, layer in enumerate(self.layers):
            hidden_states, *layer_routing = layer(
                hidden_states,
                field_ids=field_ids,
                choices=None if expert_choices is None else expert_choices[len(routing)],
                attention_mask=causal_mask,
                position_embeddings=position_embeddings,
                packing=packing,
                **kwargs,
            )
            if self.config.is_moe_layer(i):
                routing.append(layer_routing)
            if deepstack_visual_embeds is not None and i < len(deepstack_visual_embeds):
                hidden_states = hidden_states + deepstack_visual_embeds[i].to(hidden_states.device)
        home = inputs_embeds.device  # layers that device_map put on other devices leave their states there
        routing = [[states.to(home) for states in of_layer] for of_layer in routing]
        router_logits, expert_weights, alignment_logits = zip(*routing, strict=True) if routing else (None, None, None)
        return Moon2Output(
            last_hidden_state=self.norm(hidden_states).to(home),
            router_logits=router_logits,
            expert_weights=expert_weights,
            alignment_logits=alignment_logits,
        )

    def _causal_mask(self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor, packing: dict | None):
        """The attention's mask; for packed sequences one for each padded shape, of causality alone, since they are
        padded on the right.
        """
        if packing is None:
            return create_causal_mask(
                self.config,
                inputs_embeds,
                attention_mask,
                None,  # no cache; by position, for its name is not the same in all versions of transformers
                # to see that a batch has no padding the host would wait for the device in every step
                allow_is_causal_skip=not self.training,
            )
        rows = (len(packing["cu_seqlens"]) - 1) // len(packing["lengths"])
        return [
            create_causal_mask(self.config, inputs_embeds.new_empty(rows, length, 1), None, None)
            for length in packing["lengths"]
        ]


class Moon2Model(Moon2PreTrainedModel):
    """The product encoder.

    `forward` embeds items as they are given; [`~Moon2Model.encode_views`] embeds the text view, the image view and the
    multimodal view of every item at once. Inputs come from [`Moon2Processor`].

    Example:

    ```python
    >>> from transformers import AutoModel, AutoProcessor

    >>> processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    >>> model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    >>> inputs = processor(text=["red mug", None], images=[None, photo], return_tensors="pt")
    >>> model(**inputs).embeddings.shape  # (2, D)
    ```
    """

    base_model_prefix = "model"
    accepts_loss_kwargs = False

    def __init__(self, config: Moon2Config):
        super().__init__(config)
        self.visual = Moon2VisionModel._from_config(config.vision_config)
        self.language_model = Moon2TextModel._from_config(config.text_config)
        self.temperature = Moon2Temperature()
        self.post_init()

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor, image_grid_thw: torch.LongTensor, **kwargs
    ) -> BaseModelOutputWithDeepstackFeatures:
        """Encode images: `pooler_output`, the visual tokens of all images (tokens, D), and `deepstack_features`, the
        same per DeepStack layer. Arguments as in `forward`.
        """
        return self.visual(pixel_values.to(self.visual.dtype), grid_thw=image_grid_thw, return_dict=True, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        mm_token_type_ids: torch.IntTensor | None = None,
        field_ids: torch.Tensor | None = None,
        image_layout: dict | None = None,
        expert_choices: torch.Tensor | None = None,
        return_views: bool = False,
        **kwargs,
    ) -> Moon2Output | Moon2ViewsOutput:
        """Embed items.

        Args:
            input_ids (B, L): tokens, one `<|image_pad|>` for every visual token.
            attention_mask (B, L): 1 for real tokens; padding may stand on either side.
            pixel_values (patches, channels * time * patch²), image_grid_thw (num_images, 3): all images of the batch,
                in reading order.
            position_ids (3, B, L): computed when absent.
            inputs_embeds (B, L, D): instead of input_ids, with the embedding of `<|image_pad|>` for visual tokens.
            mm_token_type_ids (B, L): accepted for compatibility; the placeholders in input_ids already say it.
            field_ids (B, L): tokens of the fields in GUIDED_FIELDS, counted from 1, and 0 for all others. Without
                them, as for queries, every token is routed by the gate.
            image_layout: `model.visual.layout(image_grid_thw)`, if it was made ahead of time.
            expert_choices (mixture layers, B, L, Z): the k experts that each token shall visit, chosen before; with
                `return_views` as they came out.
            return_views: return [`~Moon2Model.encode_views`]'s output; the way in for wrappers such as DDP.
        """
        if return_views:
            return self.encode_views(
                input_ids,
                attention_mask,
                pixel_values,
                image_grid_thw,
                field_ids=field_ids,
                image_layout=image_layout,
                expert_choices=expert_choices,
                **kwargs,
            )
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        inputs_embeds, attention_mask, position_ids, deepstack_visual_embeds = self._inputs(
            input_ids, attention_mask, pixel_values, image_grid_thw, position_ids, inputs_embeds, image_layout
        )
        output = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            deepstack_visual_embeds=deepstack_visual_embeds,
            field_ids=field_ids,
            expert_choices=expert_choices,
            return_dict=True,
            **kwargs,
        )
        output.embeddings = mean_pool(output.last_hidden_state, attention_mask)
        return output

    def _inputs(
        self,
        input_ids: torch.LongTensor | None,
        attention_mask: torch.Tensor | None,
        pixel_values: torch.FloatTensor | None,
        image_grid_thw: torch.LongTensor | None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        image_layout: dict | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor] | None]:
        """What the language model reads: embeddings (B, L, D) with the images in them, mask (B, L), positions
        (3, B, L), and the features for its early layers.
        """
        embed = self.get_input_embeddings()
        if inputs_embeds is None:
            inputs_embeds = embed(input_ids)
            image_tokens = input_ids == self.config.image_token_id  # (B, L)
        else:
            placeholder = torch.full((), self.config.image_token_id, device=inputs_embeds.device)
            image_tokens = (inputs_embeds == embed(placeholder)).all(-1)
        if attention_mask is None:
            attention_mask = inputs_embeds.new_ones(inputs_embeds.shape[:2], dtype=torch.long)

        deepstack_visual_embeds = None
        if pixel_values is not None:
            images = self.get_image_features(pixel_values, image_grid_thw, layout=image_layout, return_dict=True)
            features = images.pooler_output  # (tokens, D)
            torch._assert_async(
                image_tokens.sum() == features.shape[0],
                "the batch holds another number of <|image_pad|> tokens than of visual tokens; use Moon2Processor",
            )
            scatter_mask = image_tokens.unsqueeze(-1)  # (B, L, 1)
            inputs_embeds = inputs_embeds.masked_scatter(scatter_mask, features.to(inputs_embeds.dtype))
            deepstack_visual_embeds = [
                torch.zeros_like(inputs_embeds).masked_scatter(scatter_mask, feature.to(inputs_embeds.dtype))
                for feature in images.deepstack_features
            ]
        elif self.training:
            inputs_embeds = inputs_embeds + self._no_image()
        if position_ids is None:
            position_ids = multimodal_position_ids(
                attention_mask, image_tokens, image_grid_thw, self.config.vision_config.spatial_merge_size
            )
        return inputs_embeds, attention_mask, position_ids, deepstack_visual_embeds

    def _no_image(self) -> torch.Tensor:
        """0, from an empty image: so a batch of texts visits the vision tower too. Processes that train together must
        do so in step.
        """
        vision = self.config.vision_config
        size = vision.spatial_merge_size
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        pixels = torch.zeros(size * size, width, device=self.visual.device)
        grid = torch.tensor([[1, size, size]])
        layout = {
            name: value.to(pixels.device) if isinstance(value, torch.Tensor) else value
            for name, value in self.visual.layout(grid).items()
        }
        images = self.get_image_features(pixels, grid, layout=layout, return_dict=True)
        return 0 * sum(features.sum() for features in (images.pooler_output, *images.deepstack_features))

    def encode_views(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        mm_token_type_ids: torch.IntTensor | None = None,
        field_ids: torch.Tensor | None = None,
        image_layout: dict | None = None,
        packing: dict | None = None,
        expert_choices: torch.Tensor | None = None,
        return_expert_choices: bool = False,
        **kwargs,
    ) -> Moon2ViewsOutput:
        """Embed the text view, the image view and the multimodal view of every item.

        Attention is causal and images stand first, so the image-only sequence is a prefix of the multimodal one: the
        sequence [images][text] gives r^i and r^mm, the sequence [text] gives r^t, and the vision tower sees every
        image once. Both sequences of all items go through the layers together, packed, so that nothing is spent on
        padding. Values and gradients are those of three separate forwards. A token of the shared prefix belongs to
        two views and is counted in both routing statistics.

        Args:
            input_ids, attention_mask, pixel_values, image_grid_thw, field_ids, image_layout: as in `forward`; images
                before text in each row.
            packing: [`sequence_packing`] of input_ids. Given by the collator it saves the GPU several host syncs.
            expert_choices: those of an earlier output, to send every token to the same experts again.
            return_expert_choices: put them into the output.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if packing is None:
            packing = sequence_packing(input_ids, attention_mask, self.config.vision_end_token_id)
        rows, tokens = len(input_ids), packing["tokens"]
        counts = [len(slots) for slots in packing["slots"]]

        inputs_embeds, _, position_ids, deepstack_visual_embeds = self._inputs(
            input_ids, attention_mask, pixel_values, image_grid_thw, image_layout=image_layout
        )

        def packed(states: torch.Tensor) -> torch.Tensor:
            return states.flatten(0, 1)[tokens].unsqueeze(0)  # (1, T, …)

        sequence_positions = position_ids.flatten(1)[:, tokens[: counts[0]]]  # (3, T of the sequences)
        text_positions = packing["columns"][counts[0] :].expand(3, -1)
        output = self.language_model(
            inputs_embeds=packed(inputs_embeds),
            position_ids=torch.cat([sequence_positions, text_positions], dim=1).unsqueeze(1),
            deepstack_visual_embeds=deepstack_visual_embeds and [packed(e) for e in deepstack_visual_embeds],
            field_ids=None if field_ids is None else packed(field_ids),
            expert_choices=expert_choices,
            packing=packing,
            return_dict=True,
            **kwargs,
        )

        def padded(states: torch.Tensor) -> list[torch.Tensor]:
            """States (T, …) of the sequences (B, length, …) and of the texts (B, length, …)."""
            parts = zip(states.split(counts), packing["slots"], packing["lengths"], strict=True)
            both = [pad_packed(part, slots, length, rows) for part, slots, length in parts]
            return [both[0], both[-1]]  # without any image the sequences are the texts

        real = attention_mask.bool()
        in_images = image_parts(input_ids, real, self.config.vision_end_token_id)
        has_text, has_image = (real & ~in_images).any(-1), in_images.any(-1)
        image_part, _ = padded(in_images.flatten()[tokens])
        sequence_part, text_part = padded(torch.ones_like(tokens, dtype=torch.bool))
        sequences, texts = padded(output.last_hidden_state.squeeze(0))
        routing = alignment_logits = choices = None
        if output.router_logits is not None:
            logits, gates = (
                [states.permute(2, 0, 1, 3) for states in padded(torch.cat(of_layers).movedim(0, 1))]
                for of_layers in (output.router_logits, output.expert_weights)
            )  # each (layers, B, length, Z), of sequences and of texts
            both = (has_text & has_image).unsqueeze(-1)
            views = (
                routing_sums(logits[1], gates[1], text_part),
                routing_sums(logits[0], gates[0], image_part),
                routing_sums(logits[0], gates[0], sequence_part & both),
            )
            routing = Moon2Routing(*(torch.stack(sums) for sums in zip(*views, strict=True)))
            alignment_logits = torch.stack(output.alignment_logits)
            if return_expert_choices:
                choices = torch.stack(output.expert_weights) != 0
        return Moon2ViewsOutput(
            text_embeddings=mean_pool(texts, text_part & has_text.unsqueeze(-1)),
            image_embeddings=mean_pool(sequences, image_part),
            multimodal_embeddings=mean_pool(sequences, sequence_part),
            has_text=has_text,
            has_image=has_image,
            routing=routing,
            alignment_logits=alignment_logits,
            temperatures=self.temperature().to(input_ids.device),
            expert_choices=choices,
        )


__all__ = [
    "Moon2Model",
    "Moon2Output",
    "Moon2PreTrainedModel",
    "Moon2Routing",
    "Moon2TextModel",
    "Moon2ViewsOutput",
    "Moon2VisionModel",
    "routing_sums",
]
