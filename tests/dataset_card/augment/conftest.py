"""Fixtures: a tiny random vision-language model as the Hub has it, and a tiny random pipeline that edits pictures."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

BLOCKS = {"block_out_channels": (8, 16), "norm_num_groups": 4}
CHAT = """\
{% for message in messages %}<|im_start|>{{ message.role }}
{% for part in message.content %}{% if part.type == "image" %}<|vision_start|><|image_pad|><|vision_end|>\
{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.fixture(scope="session")
def save_tokenizer(tiny):
    def save(folder, tokens):
        tokenizer = copy.deepcopy(tiny[1].tokenizer)
        tokenizer.add_tokens(tokens, special_tokens=True)
        tokenizer.save_pretrained(folder)
        return tokenizer

    return save


@pytest.fixture(scope="session")
def qwen(tiny, save_tokenizer, tmp_path_factory):
    """Folder of a random Qwen3-VL as the Hub has it: fast image processor, video processor, chat template."""
    folder = tmp_path_factory.mktemp("qwen")
    moon2, processor = tiny
    tokenizer = save_tokenizer(folder, ["<|im_start|>", "<|im_end|>", "<|video_pad|>"])
    text, vision = (
        {n: v for n, v in part.to_dict().items() if n != "model_type"}
        for part in (moon2.config.text_config, moon2.config.vision_config)
    )
    ids = {n: getattr(processor, n) for n in ("image_token_id", "vision_start_token_id", "vision_end_token_id")}
    text |= {"vocab_size": len(tokenizer), "tie_word_embeddings": True}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    torch.manual_seed(3)
    model = Qwen3VLForConditionalGeneration(config)
    with torch.no_grad():  # so that pictures and words weigh in, where fresh weights all but repeat the last token
        for weight in model.parameters():
            weight.mul_(6 if weight.dim() > 1 else 1)
    model.save_pretrained(folder)
    sizes = json.loads(processor.image_processor.to_json_string()) | {"processor_class": "Qwen3VLProcessor"}
    for name, key, kind in (
        ("preprocessor_config", "image_processor_type", "Qwen2VLImageProcessorFast"),
        ("video_preprocessor_config", "video_processor_type", "Qwen3VLVideoProcessor"),
    ):
        (folder / f"{name}.json").write_text(json.dumps(sizes | {key: kind}))
    (folder / "chat_template.jinja").write_text(CHAT)
    return folder


@pytest.fixture(scope="session")
def pipeline_parts():
    """Makes tiny random parts of a latent-diffusion pipeline; gives the function."""
    return latent_diffusion_parts


def latent_diffusion_parts(folder, in_channels: int) -> dict:
    """Tiny random parts of a latent-diffusion pipeline."""
    torch.manual_seed(0)
    letters = [*"abcdefghijklmnopqrstuvwxyz.,:-"]
    vocab = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({token: place for place, token in enumerate(vocab)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    text = CLIPTextConfig(vocab_size=len(vocab), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                          num_attention_heads=2, bos_token_id=0, eos_token_id=1, pad_token_id=1)  # fmt: skip
    return {
        "vae": AutoencoderKL(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                             latent_channels=4, layers_per_block=1, **BLOCKS),
        "text_encoder": CLIPTextModel(text),
        "tokenizer": CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77),
        "unet": UNet2DConditionModel(sample_size=16, in_channels=in_channels, out_channels=4, layers_per_block=1,
                                     down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                                     up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=16,
                                     attention_head_dim=4, **BLOCKS),
        "scheduler": EulerDiscreteScheduler(),
        "safety_checker": None,
        "feature_extractor": None,
    }  # fmt: skip
