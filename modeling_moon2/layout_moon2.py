"""Where tokens and patches stand: positions, packed sequences, the layout of images.

All of it follows from ids and grids alone, so it can be made on the host, ahead of the forward.
"""

import math

import torch
import torch.nn.functional as F
from transformers.utils.generic import is_flash_attention_requested
from transformers.vision_utils import get_vision_attention_seqlens, get_vision_interpolation_indices_and_weights

from .configuration_moon2 import Moon2VisionConfig


def multimodal_position_ids(
    attention_mask: torch.Tensor, image_tokens: torch.Tensor, image_grid_thw: torch.Tensor | None, merge_size: int
) -> torch.Tensor:
    """Qwen3-VL's three-dimensional positions for a batch, without a loop over rows and without a host sync.

    Text counts up by one; the tokens of an image share one temporal position and count rows and columns from there;
    what follows an image goes on after the longer of its two sides. Images are separated by at least one other token.

    Args:
        attention_mask (B, L): 1 for real tokens, on any side.
        image_tokens (B, L): true on the placeholders of image features.
        image_grid_thw (num_images, 3): patch grids, in reading order over the batch.
        merge_size: patches along one side of a visual token.

    Returns:
        (3, B, L) int64 positions; padding has position 0.
    """
    mask = attention_mask.long()
    if image_grid_thw is None:
        return ((mask.cumsum(-1) - 1) * mask).expand(3, -1, -1)
    first = image_tokens & ~F.pad(image_tokens, (1, 0))[:, :-1]  # (B, L) first token of each image
    image = (first.flatten().cumsum(0) - 1).clamp(min=0).view_as(first)  # (B, L) index of the last image begun
    height, width = (image_grid_thw[:, 1:] // merge_size)[image].unbind(-1)  # (B, L) each
    side = torch.maximum(height, width)
    advance = torch.where(image_tokens, first * side, mask)
    start = advance.cumsum(-1) - advance - torch.where(image_tokens & ~first, side, 0)  # (B, L)
    column = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    within = column - torch.where(first, column, 0).cummax(-1).values  # (B, L) index inside the image
    rows, columns = within // width, within % width
    offsets = torch.stack([torch.zeros_like(rows), rows, columns])  # (3, B, L)
    return (start + torch.where(image_tokens, offsets, 0)) * mask


def sequence_packing(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, vision_end_token_id: int
) -> dict[str, torch.Tensor | int | list[torch.Tensor] | list[int]]:
    """Where the tokens of [`~Moon2Model.encode_views`] stand without padding: every sequence, then its text again.

    Its shapes depend on data; made ahead of time on the host it spares a GPU the wait.

    Args:
        input_ids, attention_mask (B, L): images before text in each row, padding on any side.
        vision_end_token_id: closes an image.

    Returns:
        For T tokens, those of the B sequences and then, if there is any image, those of the B texts: `tokens` (T,),
        their places in the flattened (B, L) input; `columns` (T,), their places in their sequence or text; `slots`,
        for sequences and for texts their places in a flattened (B, length) without padding on the left; `lengths`,
        of the longest of either; `cu_seqlens` (sequences and texts + 1,), where each begins; `max_seqlen`.
    """
    real = attention_mask.bool()
    image_part = image_parts(input_ids, real, vision_end_token_id)
    parts = [real, real & ~image_part] if image_part.any() else [real]
    tokens, columns, slots, lengths, counts = [], [], [], [], []
    for part in parts:
        index = part.flatten().nonzero().squeeze(-1)
        column = (part.cumsum(-1) - 1).flatten()[index]
        counts.append(part.sum(-1))
        lengths.append(max(1, int(counts[-1].max())))
        tokens.append(index)
        columns.append(column)
        slots.append(index // part.shape[1] * lengths[-1] + column)
    return {
        "tokens": torch.cat(tokens),
        "columns": torch.cat(columns),
        "slots": slots,
        "lengths": lengths,
        "cu_seqlens": F.pad(torch.cat(counts).cumsum(0), (1, 0)).int(),
        "max_seqlen": max(lengths),
    }


def image_parts(input_ids: torch.Tensor, real: torch.Tensor, vision_end_token_id: int) -> torch.Tensor:
    """(B, L) bool: the real tokens of each row up to the end of its last image."""
    ends = (input_ids == vision_end_token_id) & real
    return ends.flip(-1).cumsum(-1).flip(-1).bool() & real


def pad_packed(states: torch.Tensor, slots: torch.Tensor, length: int, rows: int) -> torch.Tensor:
    """Packed states (T, …) of `rows` sequences at their `slots` (T,) in (rows, length, …), zero elsewhere."""
    padded = states.new_zeros(rows * length, *states.shape[1:])
    return padded.index_copy(0, slots, states).unflatten(0, (rows, length))


def vision_position_ids(grid_thw: torch.Tensor, merge_size: int) -> torch.Tensor:
    """(patches, 2): row and column of every patch, those that are merged side by side, without a loop over images.

    Args:
        grid_thw (num_images, 3): time, rows and columns of patches.
        merge_size: patches along a side of what becomes one token.
    """
    counts = grid_thw.prod(-1)
    image = torch.repeat_interleave(counts)  # of every patch
    place = torch.arange(len(image), device=image.device) - (counts.cumsum(-1) - counts)[image]
    rows, columns = grid_thw[image, 1], grid_thw[image, 2]
    block, within = (place % (rows * columns)).div(merge_size**2, rounding_mode="floor"), place % merge_size**2
    row = block.div(columns // merge_size, rounding_mode="floor") * merge_size + within // merge_size
    column = block % (columns // merge_size) * merge_size + within % merge_size
    return torch.stack([row, column], dim=-1)


def vision_layout(
    config: Moon2VisionConfig, grid_thw: torch.Tensor
) -> dict[str, torch.Tensor | int | list[torch.Tensor] | None]:
    """What the vision tower derives from the images' grids (num_images, 3) alone.

    Its shapes depend on data. Made ahead of time on the host it spares a GPU several waits, and leaves a forward that
    `torch.compile(fullgraph=True)` and `torch.export` can trace.
    """
    indices, weights = get_vision_interpolation_indices_and_weights(
        grid_thw,
        math.isqrt(config.num_position_embeddings),
        mode="bilinear",
        align_corners=True,
        spatial_merge_size=config.spatial_merge_size,
    )
    cu_seqlens, max_seqlen = get_vision_attention_seqlens(grid_thw, config)
    layout = {
        "interp_indices": indices,  # (patches, 4)
        "interp_weights": weights,  # (patches, 4)
        "position_ids": vision_position_ids(grid_thw, config.spatial_merge_size),  # (patches, 2)
        "cu_seqlens": cu_seqlens,  # (num_images + 1,)
        "max_seqlen": max_seqlen,
    }
    if is_flash_attention_requested(config):
        return layout
    counts = grid_thw.prod(-1)
    sizes = sorted(set(counts.tolist()))
    starts = counts.cumsum(-1) - counts
    offsets = torch.arange(max(sizes), device=starts.device)
    buckets = [starts[counts == size, None] + offsets[:size] for size in sizes]  # per size (images, size)
    return layout | {"buckets": sizes[0] if len(sizes) == 1 else buckets}
