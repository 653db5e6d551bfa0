"""Where patches stand, against transformers' own, which goes image by image."""

from __future__ import annotations

import pytest
import torch
from transformers.vision_utils import get_vision_position_ids

from modeling_moon2.layout_moon2 import vision_position_ids


@pytest.mark.parametrize("merge_size", [1, 2, 3])
def test_rows_and_columns_of_patches(merge_size):
    sides = torch.tensor([[1, 2, 4], [1, 1, 1], [3, 2, 5], [1, 7, 2], [1, 2, 4]])
    grids = sides * torch.tensor([1, merge_size, merge_size])
    expected = get_vision_position_ids(grids, merge_size)
    found = vision_position_ids(grids, merge_size)
    assert found.dtype == expected.dtype and torch.equal(found, expected)
