"""The patches of pictures are those of transformers' image processor, bit for bit."""

from __future__ import annotations

import pytest
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from modeling_moon2.patches_moon2 import makes_patches, picture_patches

SIZES = [(60, 80), (300, 31), (32, 32), (7, 500), (641, 479), (60, 80)]


@pytest.mark.parametrize(
    "options",
    [
        {"patch_size": 16, "size": {"shortest_edge": 32**2, "longest_edge": 64**2}},
        {"patch_size": 16, "size": {"shortest_edge": 256**2, "longest_edge": 512**2}},
        {"patch_size": 14, "image_mean": [0.1, 0.5, 0.3], "image_std": [0.2, 0.5, 0.7]},
        {"patch_size": 8, "merge_size": 1, "temporal_patch_size": 3, "resample": 2, "rescale_factor": 1 / 127},
    ],
)
def test_the_same_numbers_as_of_the_image_processor(options, make_image):
    processor = Qwen2VLImageProcessorPil(**options)
    pictures = [make_image(seed, width, height) for seed, (width, height) in enumerate(SIZES)]
    pixel_values, grids = picture_patches(pictures, processor)
    expected = processor(images=pictures, return_tensors="pt")
    assert torch.equal(grids, expected["image_grid_thw"]) and grids.dtype == expected["image_grid_thw"].dtype
    assert torch.equal(pixel_values, expected["pixel_values"])
    assert pixel_values.dtype == torch.float32 and pixel_values.std() > 0.1


def test_other_image_processors_do_it_themselves():
    class Other(Qwen2VLImageProcessorPil):
        pass

    assert makes_patches(Qwen2VLImageProcessorPil())
    assert not makes_patches(Other()) and not makes_patches(Qwen2VLImageProcessorPil(do_normalize=False))


def test_the_processor_passes_options_on(tiny_processor, make_image):
    picture = make_image(1, 200, 200)
    small = tiny_processor(images=picture, size={"shortest_edge": 32**2, "longest_edge": 32**2})
    assert small["image_grid_thw"].prod() < tiny_processor(images=picture)["image_grid_thw"].prod()
