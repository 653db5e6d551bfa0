from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

from moon2_dataset.augment.core_region import GroundingDetector, crop, parse_box, subject_box
from moon2_dataset.augment.subject import Subject
from moon2_dataset.augment.vision_language import VisionLanguageModel


def test_the_box_encloses_the_mask_and_its_crop_is_the_product():
    mask = np.zeros((50, 100), dtype=np.float32)
    mask[10:30, 20:60] = 1
    box = subject_box(Subject(mask, "background", 0.9))
    assert box == [0.2, 0.2, 0.6, 0.6]
    picture = Image.fromarray((mask * 255).astype(np.uint8))
    assert crop(picture, box).size == (40, 20) and np.asarray(crop(picture, box)).all()
    assert crop(picture, []) is picture


def test_a_box_of_the_whole_picture_or_of_a_speck_is_none():
    assert subject_box(Subject(np.ones((9, 9), dtype=np.float32), "segmenter", 0.5)) == []
    assert subject_box(Subject(np.ones((9, 9), dtype=np.float32), "none", 0.0)) == []
    speck = np.zeros((100, 100), dtype=np.float32)
    speck[50, 50:53] = 1
    assert subject_box(Subject(speck, "alpha", 1.0)) == []


@pytest.mark.parametrize(
    ("answer", "box"),
    [
        ('[{"bbox_2d": [100, 200, 500, 800], "label": "mug"}]', [0.1, 0.2, 0.5, 0.8]),
        ('```json\n[{"bbox_2d": [100, 200, 500, 800]}]\n```', [0.1, 0.2, 0.5, 0.8]),
        ('{"bbox_2d": [500, 800, 100, 200]}', [0.1, 0.2, 0.5, 0.8]),  # corners the other way round
        ("[100, 200, 500, 800]", [0.1, 0.2, 0.5, 0.8]),
        ('[{"bbox_2d": [0, 0, 150, 150]}, {"bbox_2d": [100, 200, 500, 800]}]', [0.1, 0.2, 0.5, 0.8]),  # the largest
        ("The mug is at [100, 200, 500.0, 800] in the picture.", [0.1, 0.2, 0.5, 0.8]),
        ('[{"bbox_2d": [100, 200, 500, 800], "label": "mu', [0.1, 0.2, 0.5, 0.8]),  # cut short
        ("<think>[0, 0, 900, 900]?</think>\n[100, 200, 500, 800]", [0.1, 0.2, 0.5, 0.8]),
        ('[{"bbox_2d": [-50, 200, 1500, 800]}]', [0.0, 0.2, 1.0, 0.8]),
        ('[{"bbox_2d": [0, 0, 1000, 1000]}]', []),
        ('[{"bbox_2d": [100, 200, 101, 201]}]', []),
        ('[{"bbox_2d": [100, 200, 500]}]', []),
        ('[{"bbox_2d": [NaN, 200, 500, 800]}]', []),
        ("I see no product.", []),
        ("", []),
        ("[" * 5000, []),
    ],
)
def test_answers_are_read_as_boxes(answer, box):
    assert parse_box(answer, 1000, 1000) == pytest.approx(box)


@given(st.text(max_size=60) | st.lists(st.floats(width=32), min_size=4, max_size=4).map(str))
@settings(max_examples=150, deadline=None)
def test_no_answer_makes_a_box_out_of_the_picture(answer):
    box = parse_box(answer, 640, 480)
    assert box == [] or (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1)


def test_a_real_model_is_asked(qwen, make_image):
    vlm = VisionLanguageModel(str(qwen), device="cpu", batch_size=2, max_new_tokens=6)
    boxes = GroundingDetector(vlm).boxes([make_image(seed) for seed in range(3)], ["mug", "shoes {1}", "handbag"])
    assert len(boxes) == 3 and not vlm.failures.reasons  # random weights do not answer in JSON
    assert all(box == [] or len(box) == 4 for box in boxes)


def answering(monkeypatch, vlm, *answers):
    """A model that is known to answer in a given way: what is tested is what is made of the answers."""
    asked = []
    monkeypatch.setattr(vlm, "generate", lambda prompts, images: asked.append((prompts, images)) or list(answers))
    return asked


def test_the_detector_asks_for_the_titled_product_and_scales_its_answers(qwen, monkeypatch):
    vlm = VisionLanguageModel(str(qwen), device="cpu")
    asked = answering(monkeypatch, vlm, '[{"bbox_2d": [100, 100, 500, 500]}]', "[0, 250, 500, 750]", "no idea")
    pictures = [Image.new("RGB", (200, 100)), Image.new("RGB", (100, 400)), Image.new("RGB", (50, 50))]
    boxes = GroundingDetector(vlm).boxes(pictures, ["Red\nmug", "Shoes", "Bag"])
    assert boxes == [[0.1, 0.1, 0.5, 0.5], [0, 0.25, 0.5, 0.75], []]
    ((prompts, images),) = asked
    assert '"Red mug"' in prompts[0] and images == [[picture] for picture in pictures]


@pytest.fixture(scope="module")
def qwen_in_pixels(save_tokenizer, tmp_path_factory):
    """Folder of a random Qwen2.5-VL as the Hub has it."""
    folder = tmp_path_factory.mktemp("qwen2_5")
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
             "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}  # fmt: skip
    tokenizer = save_tokenizer(folder, list(names.values()))
    sizes = {"hidden_size": 32, "intermediate_size": 32}
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config=sizes | {
                "vocab_size": len(tokenizer), "num_hidden_layers": 1, "num_attention_heads": 2,
                "num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]},
            },
            vision_config=sizes | {"depth": 1, "num_heads": 2, "out_hidden_size": 32, "fullatt_block_indexes": [0]},
            **{name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()},
        )
    ).save_pretrained(folder)  # fmt: skip
    pixels = {"shortest_edge": 56 * 56, "longest_edge": 168 * 168}
    Qwen2VLImageProcessorPil(size=pixels, patch_size=14, merge_size=2).save_pretrained(folder)
    settings = {"video_processor_type": "Qwen2VLVideoProcessor"}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def test_pixels_are_of_the_picture_that_the_model_sees(qwen_in_pixels, monkeypatch, make_image):
    vlm = VisionLanguageModel(str(qwen_in_pixels), device="cpu", max_new_tokens=3)
    detector = GroundingDetector(vlm)
    pictures = [make_image(1, 300, 150), make_image(2, 60, 60), Image.new("RGB", (4000, 2))]
    assert all(box == [] for box in detector.boxes(pictures, ["Mug", "Shoes", "Bag"]))  # random weights
    assert list(vlm.failures.reasons) == [2]
    assert [vlm.resized(picture) for picture in pictures[:2]] == [(224, 112), (56, 56)]
    answering(monkeypatch, vlm, '[{"bbox_2d": [56, 28, 168, 112]}]', "[14, 0, 42, 56]", "")
    assert detector.boxes(pictures, ["Mug", "Shoes", "Bag"]) == [[0.25, 0.25, 0.75, 1.0], [0.25, 0.0, 0.75, 1.0], []]
