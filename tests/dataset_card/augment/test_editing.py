from __future__ import annotations

import inspect
import json

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from moon2_dataset.augment.editing import PROMPTS, DiffusersEditor

BLOCKS = {"block_out_channels": (8, 16), "norm_num_groups": 4}


def parts(folder, in_channels: int) -> dict:
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


@pytest.fixture(scope="module")
def editor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("editor")
    StableDiffusionInstructPix2PixPipeline(
        **parts(folder, in_channels=8), requires_safety_checker=False
    ).save_pretrained(folder / "pipeline")
    return DiffusersEditor(str(folder / "pipeline"), device="cpu", steps=2)


def test_an_edit_depends_on_its_own_picture_words_and_seed_alone(editor, make_image):
    pictures = [make_image(1, 40, 56), make_image(2, 64, 48), make_image(2, 64, 48)]
    titles, prompts = ["red mug", "navy shoes", "navy shoes"], [PROMPTS["background"]] * 3
    together = editor.edit(pictures, titles, prompts, [5, 6, 7])
    assert [edited.size for edited in together] == [(40, 56), (64, 48), (64, 48)]
    alone = editor.edit(pictures[1:2], titles[1:2], prompts[1:2], [6])
    np.testing.assert_array_equal(np.asarray(alone[0]), np.asarray(together[1]))
    assert (np.asarray(together[1]) != np.asarray(together[2])).any()  # another seed
    other_words = editor.edit(pictures[1:2], ["gold watch"], prompts[1:2], [6])
    assert (np.asarray(other_words[0]) != np.asarray(together[1])).any()


def test_braces_in_a_title_are_text(editor, make_image):
    assert len(editor.edit([make_image(1, 32, 32)], ["mug {300 ml} {title}"], [PROMPTS["detail"]], [0])) == 1


def test_a_pipeline_that_takes_no_image_is_refused(tmp_path):
    pipeline = StableDiffusionPipeline(**parts(tmp_path, in_channels=4), requires_safety_checker=False)
    pipeline.save_pretrained(tmp_path / "pipeline")
    with pytest.raises(ValueError, match="a StableDiffusionPipeline takes no image; give one that edits"):
        DiffusersEditor(str(tmp_path / "pipeline"), device="cpu")


def test_a_folder_without_pipeline_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be loaded"):
        DiffusersEditor(str(tmp_path), device="cpu")


@pytest.mark.parametrize("name", ["FluxKontextPipeline", "QwenImageEditPipeline", "QwenImageEditPlusPipeline"])
def test_the_large_editors_take_what_is_given(name):
    takes = inspect.signature(getattr(diffusers, name).__call__).parameters
    assert {"image", "prompt", "generator", "num_inference_steps"} <= set(takes)


@pytest.mark.parametrize("kind", PROMPTS)
def test_prompts_ask_for_the_same_product(kind):
    assert "{title}" in PROMPTS[kind] and "Keep the product exactly as it is" in PROMPTS[kind]
