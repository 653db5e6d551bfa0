from __future__ import annotations

import io
import json
import shutil

import pytest
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen3VLProcessor,
)

from moon2_dataset.augment.vision_language import VisionLanguageModel, load_processor

PROMPTS = [
    "red mug",
    "Lumo navy blue leather handbag",
    "mug",
    "Nordvik running shoes navy",
    "navy",
    "red",
    "shoes mug",
]


@pytest.fixture(scope="module")
def vlm(qwen):
    return VisionLanguageModel(str(qwen), device="cpu", batch_size=3, max_new_tokens=8)


@pytest.fixture(scope="module")
def pictures(make_image):
    return [
        [make_image(1)],
        [],
        [make_image(2, 90, 50), make_image(3)],
        [],
        [make_image(4, 40, 100)],
        [make_image(5)],
        [],
    ]


@pytest.fixture(scope="module")
def alone(vlm, pictures):
    return [vlm.generate([prompt], [images])[0] for prompt, images in zip(PROMPTS, pictures, strict=True)]


def test_a_stock_processor_loads_without_torchvision_and_still_is_of_its_class(qwen):
    processor = load_processor(str(qwen))
    assert isinstance(processor, Qwen3VLProcessor)
    assert processor.chat_template == (qwen / "chat_template.jinja").read_text()


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_batch_answers_as_items_alone_and_in_their_order(qwen, vlm, pictures, alone, batch_size):
    vlm.batch_size = batch_size
    assert vlm.generate(PROMPTS, pictures) == alone
    vlm.batch_size = 3
    assert vlm.failures.reasons == {}
    assert len(set(alone)) >= 5 and all(alone)  # or the order could not be seen


def test_the_pictures_are_looked_at(vlm, make_image):
    answers = vlm.generate(["red mug"] * 6, [[make_image(seed)] for seed in range(5)] + [[]])
    assert len(set(answers)) > 1


def new_tokens(vlm, prompt, images) -> torch.Tensor:
    """The first eight tokens of an answer."""
    chat = vlm._chat(prompt, len(images))
    inputs = vlm.processor(text=[chat], images=[images] if images else None, return_tensors="pt")
    return vlm.model.generate(**inputs, do_sample=False, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]


def test_the_answer_is_new_text_without_prompt_and_control_tokens(vlm, pictures, alone):
    new = new_tokens(vlm, "red mug", pictures[0])
    assert len(new) == 8
    assert alone[0] == vlm.tokenizer.decode(new, skip_special_tokens=True).strip()


def test_an_answer_that_is_not_at_its_end_is_told_in_any_batch(qwen, vlm, pictures, alone):
    lengths = [8, 3, 8, 2, 5, 8, 1]
    ends = VisionLanguageModel(str(qwen), device="cpu", batch_size=3)
    ends.greedy.eos_token_id = [
        new_tokens(vlm, PROMPTS[0], pictures[0])[3].item(),  # early
        new_tokens(vlm, PROMPTS[3], [])[lengths[3] - 1].item(),  # on the last token of its length
    ]
    expected, cut = [], set()
    for row, (prompt, images, length) in enumerate(zip(PROMPTS, pictures, lengths, strict=True)):
        expected += ends.generate([prompt], [images], [length])
        cut |= {row} if ends.cut else set()
    assert 0 < len(cut) < 7 and not {0, 3} & cut
    assert ends.generate(PROMPTS, pictures, lengths) == expected and ends.cut == cut
    ends.thinking_tokens = 6
    longer = ends.generate(PROMPTS, pictures, [2] * 7)
    ends.thinking_tokens = 0
    assert longer == ends.generate(PROMPTS, pictures, [8] * 7)
    assert vlm.generate(PROMPTS, pictures) == alone and vlm.cut == set(range(7))
    assert ends.generate([], []) == [] and ends.cut == set()


def test_an_item_that_fails_alone_is_recorded_and_loses_no_other(vlm, pictures, alone, make_image):
    buffer = io.BytesIO()
    make_image(9).save(buffer, "PNG")
    broken = Image.open(io.BytesIO(buffer.getvalue()[:200]))  # opens, but has no pixels
    answers = vlm.generate([*PROMPTS, "mug"], [*pictures, [broken]])
    assert answers == [*alone, ""]
    assert list(vlm.failures.reasons) == [7] and "OSError" in vlm.failures.reasons[7]
    vlm.generate(PROMPTS[:1], pictures[:1])
    assert vlm.failures.reasons == {}


def test_a_model_that_only_fails_is_an_error_that_names_it(qwen, tmp_path, make_image):
    broken = shutil.copytree(qwen, tmp_path / "broken")
    sizes = json.loads((broken / "preprocessor_config.json").read_text())
    sizes["patch_size"] //= 2  # not what the model's weights are made for
    (broken / "preprocessor_config.json").write_text(json.dumps(sizes))
    model = VisionLanguageModel(str(broken), device="cpu", batch_size=4, max_new_tokens=2)
    with pytest.raises(ValueError, match=f"vlm {broken}: failed at 8 items and succeeded at none; the first"):
        model.generate(["mug"] * 40, [[make_image(seed)] for seed in range(40)])
    with pytest.raises(ValueError, match="failed at 1 items"):
        model.generate(["mug"], [[make_image(1)]])


def test_control_tokens_of_a_text_open_no_picture_and_no_turn(vlm, pictures):
    prompts = ["red <|image_pad|> mug <|im_end|>", "mug <|vision_start|>"]
    answers = vlm.generate(prompts, [pictures[0], []])
    assert all(answers) and vlm.failures.reasons == {}


def test_pictures_of_every_mode_are_read(vlm, make_image):
    modes = ["RGBA", "L", "P", "1", "CMYK"]
    vlm.generate(["mug"] * len(modes), [[make_image(1).convert(mode)] for mode in modes])
    assert vlm.failures.reasons == {}


def test_no_prompts_no_answers(vlm):
    assert vlm.generate([], []) == []


def test_a_missing_list_of_pictures_is_refused(vlm):
    with pytest.raises(ValueError, match="2 prompts but pictures for 1"):
        vlm.generate(["a", "b"], [[]])


def test_precision_follows_the_device_unless_given(qwen, vlm):
    assert vlm.model.dtype == torch.float32 and vlm.model.device.type == "cpu"
    half = VisionLanguageModel(str(qwen), device="cpu", dtype="bfloat16", max_new_tokens=2)
    assert half.model.dtype == torch.bfloat16
    assert half.generate(["mug"], [[Image.new("RGB", (40, 40), "red")]]) and half.failures.reasons == {}
    with pytest.raises(ValueError, match='give "auto", "float32"'):
        VisionLanguageModel(str(qwen), dtype="float12")


def test_what_is_no_such_model_is_refused_by_name(tmp_path, qwen):
    with pytest.raises(ValueError, match=f"{tmp_path}.*AutoModelForImageTextToText"):
        VisionLanguageModel(str(tmp_path))
    with pytest.raises(ValueError, match="batch_size=0"):
        VisionLanguageModel(str(qwen), batch_size=0)


def test_another_family_without_chat_template_answers_too(save_tokenizer, tmp_path, make_image):
    tokenizer = save_tokenizer(tmp_path, ["<image>"])
    image_processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    LlavaProcessor(image_processor, tokenizer, patch_size=8, vision_feature_select_strategy="default",
                   num_additional_image_tokens=1).save_pretrained(tmp_path)  # fmt: skip
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    LlavaForConditionalGeneration(
        LlavaConfig(
            text_config=LlamaConfig(vocab_size=len(tokenizer), **sizes),
            vision_config=CLIPVisionConfig(image_size=16, patch_size=8, projection_dim=16, **sizes),
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        )
    ).save_pretrained(tmp_path)
    vlm = VisionLanguageModel(str(tmp_path), device="cpu", batch_size=2, max_new_tokens=4)
    assert vlm.processor.chat_template is None
    prompts, images = ["red mug", "navy shoes running", "mug"], [[make_image(1)], [make_image(2)], []]
    together = vlm.generate(prompts, images)
    assert vlm.failures.reasons == {} and all(together)
    assert together == [vlm.generate([p], [i])[0] for p, i in zip(prompts, images, strict=True)]
