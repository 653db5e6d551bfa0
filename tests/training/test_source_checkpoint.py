from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from moon2_training.source_checkpoint import SINGLE, SourceWeights, load_source_processor, resolve_source


@pytest.mark.parametrize("kind", [Qwen3VLForConditionalGeneration, Qwen3VLModel])
def test_tensors_have_the_names_of_the_bare_model(save_dense, kind):
    folder, dense = save_dense(kind)
    weights, expected = SourceWeights(folder), dense.state_dict()
    assert weights.names.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(weights[name], tensor)
        assert weights.shapes[weights.names[name]] == tuple(tensor.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_precision_is_told_without_reading(tmp_path, dtype):
    save_file({"norm.weight": torch.full((3,), torch.nan, dtype=dtype)}, tmp_path / SINGLE)
    weights = SourceWeights(tmp_path)
    assert weights.dtype == dtype
    with pytest.raises(ValueError, match="norm.weight holds NaN or infinity"):
        weights["norm.weight"]


@pytest.mark.parametrize(
    ("source", "max_pixels", "expected"),
    [
        ((65_536, 16_777_216), 262_144, (65_536, 262_144)),
        ((65_536, 16_777_216), 1_024, (1_024, 1_024)),
        ((1_024, 4_096), 262_144, (1_024, 4_096)),
    ],
    ids=["lowered", "under the smallest picture", "small already"],
)
def test_the_pixel_budget_is_lowered_and_never_raised(save_dense, source, max_pixels, expected):
    folder, _ = save_dense()
    image_processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
    image_processor.size = dict(zip(("shortest_edge", "longest_edge"), source, strict=True))
    image_processor.save_pretrained(folder)
    size = load_source_processor(folder, max_pixels).image_processor.size
    assert (size["shortest_edge"], size["longest_edge"]) == expected


def test_missing_files_of_the_processor_are_told(save_dense):
    folder, _ = save_dense()
    for file in folder.glob("*processor_config.json"):
        file.unlink()
    with pytest.raises(ValueError, match="image processor or tokenizer files are missing"):
        load_source_processor(folder, 262_144)


def test_no_such_source():
    with pytest.raises(FileNotFoundError, match="nobody/nothing: neither a folder nor a model on the Hub"):
        resolve_source("nobody/nothing")
