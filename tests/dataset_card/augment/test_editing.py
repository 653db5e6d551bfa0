from __future__ import annotations

import inspect

import diffusers
import numpy as np
import pytest
from diffusers import (
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
)

from moon2_dataset.augment.editing import PROMPTS, DiffusersEditor


@pytest.fixture(scope="module")
def editor(pipeline_parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("editor")
    StableDiffusionInstructPix2PixPipeline(
        **pipeline_parts(folder, in_channels=8), requires_safety_checker=False
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


def test_an_edit_that_fails_is_none_and_loses_no_other(editor, make_image):
    pictures = [make_image(1, 40, 56), make_image(2, 1, 1)]  # less than one pixel of the latent picture
    edited = editor.edit(pictures, ["red mug"] * 2, [PROMPTS["background"]] * 2, [5, 6])
    assert edited[0].size == (40, 56) and edited[1] is None and list(editor.failures.reasons) == [1]


def test_an_editor_that_only_fails_is_an_error_that_names_it(pipeline_parts, tmp_path, make_image):
    pipeline = StableDiffusionInstructPix2PixPipeline(
        **pipeline_parts(tmp_path, in_channels=4), requires_safety_checker=False
    )
    pipeline.save_pretrained(tmp_path / "text-to-image")  # its weights take no picture beside the noise
    broken = DiffusersEditor(str(tmp_path / "text-to-image"), device="cpu", steps=1)
    with pytest.raises(
        ValueError, match="editor .*text-to-image: failed at 8 items .* the first failed with ValueError"
    ):
        broken.edit([make_image(1, 32, 32)] * 20, ["mug"] * 20, [PROMPTS["detail"]] * 20, range(20))


def test_braces_in_a_title_are_text(editor, make_image):
    assert len(editor.edit([make_image(1, 32, 32)], ["mug {300 ml} {title}"], [PROMPTS["detail"]], [0])) == 1


def test_a_pipeline_that_takes_no_image_is_refused(pipeline_parts, tmp_path):
    pipeline = StableDiffusionPipeline(**pipeline_parts(tmp_path, in_channels=4), requires_safety_checker=False)
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
