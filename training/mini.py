"""A small MOON2.0 from scratch: a Qwen3-VL-shaped configuration for CPUs, a BPE tokenizer for product text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from modeling_moon2 import Moon2Config, Moon2Model, Moon2Processor
from modeling_moon2.processing_moon2 import IMAGE_TOKEN, VISION_END_TOKEN, VISION_START_TOKEN

PAD_TOKEN = "<|endoftext|>"
ROTARY_SECTIONS = (3, 2.5, 2.5)  # of each 8 rotary frequencies: time, height, width; Qwen3-VL's 24 : 20 : 20


@dataclass
class MiniConfig:
    """Shape of a model trained from scratch.

    Args:
        hidden_size: D, width of the language model and of the embedding.
        num_hidden_layers: layers of the language model.
        num_attention_heads: its attention heads, hidden_size / heads wide each.
        moe_intermediate_size: width of one expert.
        num_experts: Z; 0 builds a dense model.
        num_experts_per_tok: k.
        guided_fields: fields of an item whose tokens go to experts of their own: "category", "attributes". In training
            `item_text_fields` must give them.
        dense_intermediate_size: width of the dense MLP when num_experts is 0; k experts' width keeps the active
            parameters equal.
        vision_hidden_size: width of the vision tower.
        vision_depth: its layers.
        patch_size: pixels along one side of a patch; a visual token covers 2x2 patches.
        image_size: pixel budget of an image, as the side of a square.
        vocab_size: size of the tokenizer.
        max_text_length: longest text in tokens.
    """

    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    moe_intermediate_size: int = 256
    num_experts: int = 4
    num_experts_per_tok: int = 2
    guided_fields: list[str] = field(default_factory=list)
    dense_intermediate_size: int = 512
    vision_hidden_size: int = 160
    vision_depth: int = 4
    patch_size: int = 8
    image_size: int = 64
    vocab_size: int = 8192
    max_text_length: int = 64


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a lower-casing byte-level BPE tokenizer with Qwen3-VL's image tokens on product texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[PAD_TOKEN, VISION_START_TOKEN, VISION_END_TOKEN, IMAGE_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD_TOKEN)


def build_mini(config: MiniConfig, texts: Iterable[str]) -> tuple[Moon2Model, Moon2Processor]:
    """A randomly initialised model and its processor, the tokenizer trained on `texts`."""
    tokenizer = train_tokenizer(texts, config.vocab_size)
    pixels = config.image_size**2
    visual_tokens = pixels // (2 * config.patch_size) ** 2
    tokenizer.model_max_length = 4 * (visual_tokens + 2) + config.max_text_length
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=config.patch_size,
        temporal_patch_size=1,
        merge_size=2,
        size={"shortest_edge": pixels // 2, "longest_edge": pixels},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    processor = Moon2Processor(image_processor=image_processor, tokenizer=tokenizer)
    head_dim = config.hidden_size // config.num_attention_heads
    height = width = int(head_dim / 2 * ROTARY_SECTIONS[1] / sum(ROTARY_SECTIONS))
    model = Moon2Model(
        Moon2Config(
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": config.hidden_size,
                "intermediate_size": config.dense_intermediate_size,
                "moe_intermediate_size": config.moe_intermediate_size,
                "num_experts": config.num_experts,
                "num_experts_per_tok": config.num_experts_per_tok,
                "guided_fields": config.guided_fields,
                "num_hidden_layers": config.num_hidden_layers,
                "num_attention_heads": config.num_attention_heads,
                "num_key_value_heads": config.num_attention_heads,
                "head_dim": head_dim,
                "max_position_embeddings": 4096,
                "pad_token_id": tokenizer.pad_token_id,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "mrope_section": [head_dim // 2 - height - width, height, width],
                    "mrope_interleaved": True,
                },
            },
            vision_config={
                "depth": config.vision_depth,
                "hidden_size": config.vision_hidden_size,
                "intermediate_size": 3 * config.vision_hidden_size,
                "num_heads": 4,
                "patch_size": config.patch_size,
                "temporal_patch_size": 1,
                "out_hidden_size": config.hidden_size,
                "num_position_embeddings": (config.image_size // config.patch_size) ** 2,
                "deepstack_visual_indexes": [config.vision_depth // 2 - 1],
            },
            image_token_id=processor.image_token_id,
            vision_start_token_id=processor.vision_start_token_id,
            vision_end_token_id=processor.vision_end_token_id,
        )
    )
    return model, processor
