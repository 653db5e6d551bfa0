"""Pictures as the patches that the vision tower reads: the numbers of transformers' processor, in less time."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from transformers import BaseImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

LEVELS = 256  # of an 8-bit pixel


def makes_patches(image_processor: BaseImageProcessor) -> bool:
    """Whether `picture_patches` stands for an image processor: the PIL one, which resizes, rescales and normalises."""
    if type(image_processor) is not Qwen2VLImageProcessorPil:
        return False
    return bool(image_processor.do_resize and image_processor.do_rescale and image_processor.do_normalize)


def picture_patches(
    pictures: Sequence[Image.Image], image_processor: Qwen2VLImageProcessorPil
) -> tuple[torch.Tensor, torch.Tensor]:
    """Resize pictures to their pixel budget and cut them into patches.

    A pixel has 256 levels, so what rescaling and normalising make of it is looked up; the image processor handles
    every picture as floats, several times over.

    Args:
        pictures: N of mode RGB.
        image_processor: one that `makes_patches` accepts.

    Returns:
        pixel_values (patches, channels * time * patch²) float32, and image_grid_thw (N, 3), as the image processor
        makes them, bit for bit.
    """
    patch, merge, frames = image_processor.patch_size, image_processor.merge_size, image_processor.temporal_patch_size
    size, resample = image_processor.size, image_processor.resample
    budget = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    pixels, grids = [], []
    for picture in pictures:
        height, width = smart_resize(picture.height, picture.width, patch * merge, **budget)
        resized = np.asarray(picture.resize((width, height), resample))  # (height, width, 3)
        rows, columns = height // patch, width // patch
        cells = resized.reshape(rows // merge, merge, patch, columns // merge, merge, patch, 3)
        cells = cells.transpose(0, 3, 1, 4, 6, 2, 5)  # rows, columns, those merged, channel, pixels
        pixels.append(cells.reshape(rows * columns, 3, patch * patch))
        grids.append((1, rows, columns))
    levels = np.concatenate(pixels)  # (patches, 3, patch²)
    values = np.empty((len(levels), 3, frames, patch * patch), dtype=np.float32)
    for channel, table in enumerate(_table(image_processor)):
        values[:, channel] = table[levels[:, channel]][:, None]
    return torch.from_numpy(values.reshape(len(values), -1)), torch.tensor(grids)


def _table(image_processor: Qwen2VLImageProcessorPil) -> np.ndarray:
    """(3, 256) float32: for every channel, what the image processor makes of each level."""
    levels = np.broadcast_to(np.arange(LEVELS, dtype=np.uint8), (3, 1, LEVELS))
    scaled = image_processor.rescale(levels, image_processor.rescale_factor)
    return image_processor.normalize(scaled, image_processor.image_mean, image_processor.image_std)[:, 0]
