"""Triplets to one batch: a single processor call over all rows, and the keys that mask false negatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from modeling_moon2 import Moon2Processor, Moon2VisionConfig
from modeling_moon2.layout_moon2 import sequence_packing, vision_layout

from .triplets import Item, Triplet


class Moon2Collator:
    """Collates B triplets into the rows [q_1..q_B, p_1..p_B] or [q.., p.., n_1..n_B].

    Args:
        processor: the model's processor.
        vision_config: of the model; with it `image_layout` is made here, on the host, and the model need not wait.

    Returns (of a call):
        What the processor returns for all rows; `image_layout` and `packing`, made on the host; and the keys of
        [`DualLevelAlignmentLoss`]: `product_keys` and `title_keys` (B or 2B,) of [p, (n)], and `positive_keys` (B, P),
        every product known to be right for each query, padded with 0, and `made_photos` (B,) bool, where the query's
        photo was made from p. `unreadable` and `emptied`, if there are any, name what was left out, as a triplet does.
    """

    def __init__(self, processor: Moon2Processor, vision_config: Moon2VisionConfig | None = None) -> None:
        self.processor = processor
        self.vision_config = vision_config

    def __call__(self, triplets: Sequence[Triplet]) -> dict[str, Any]:
        roles: list[list[Item]] = [[t.query for t in triplets], [t.positive for t in triplets]]
        if triplets[0].negative is not None:
            roles.append([t.negative for t in triplets])
        rows = [item for role in roles for item in role]
        items = [item for role in roles[1:] for item in role]
        width = max(len(t.positive_keys) for t in triplets)
        batch = self.processor(text=[row.text for row in rows], images=[row.images for row in rows])
        if "image_grid_thw" in batch and self.vision_config is not None:
            batch["image_layout"] = vision_layout(self.vision_config, batch["image_grid_thw"])
        left_out = {
            "unreadable": [name for triplet in triplets for name in triplet.unreadable],
            "emptied": [name for triplet in triplets for name in triplet.emptied],
        }
        return {
            **batch,
            **{kind: names for kind, names in left_out.items() if names},
            "packing": sequence_packing(
                batch["input_ids"], batch["attention_mask"], self.processor.vision_end_token_id
            ),
            "product_keys": torch.tensor([item.product_key for item in items]),
            "title_keys": torch.tensor([item.title_key for item in items]),
            "positive_keys": torch.tensor(
                [[*t.positive_keys, *[0] * (width - len(t.positive_keys))] for t in triplets]
            ),
            "made_photos": torch.tensor([t.made_photo for t in triplets]),
        }
