"""Any items give inputs in which nobody's text is a control token, or a refusal that names the item."""

from __future__ import annotations

import torch
from hostile_inputs import arrays, images, picture_bytes, texts, values
from hypothesis import strategies as st
from watched import fuzzed, watched

names = st.sampled_from(("title", "category", "attributes", "colour"))
fields = st.dictionaries(names, texts | values | st.lists(texts, max_size=3), max_size=3)
attributes = st.lists(st.fixed_dictionaries({"name": texts, "value": texts | values}), max_size=3)
any_text = st.none() | texts | fields | st.fixed_dictionaries({"title": texts, "attributes": attributes})
one_image = images | arrays() | picture_bytes | texts | st.fixed_dictionaries({"bytes": picture_bytes})
any_images = st.none() | one_image | st.lists(one_image, max_size=3)
items = st.lists(st.tuples(any_text, any_images), min_size=1, max_size=3)


def check(processor, inputs):
    ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    assert ids.shape == mask.shape and bool(mask.any(1).all())
    special = torch.tensor(sorted(processor.tokenizer.get_added_vocab().values()))
    of_image = inputs["mm_token_type_ids"].bool()
    marks = torch.tensor([processor.vision_start_token_id, processor.vision_end_token_id])
    text = mask & ~of_image & ~torch.isin(ids, marks)
    assert not torch.isin(ids[text], special).any()
    grids = inputs.get("image_grid_thw", torch.zeros(0, 3, dtype=torch.long))
    tokens = grids.prod(-1).sum().item() // processor.image_processor.merge_size**2
    assert of_image.sum().item() == tokens == (ids == processor.image_token_id).sum().item()
    assert (ids == processor.vision_start_token_id).sum().item() == len(grids)
    if len(grids):
        assert inputs["pixel_values"].isfinite().all()


@fuzzed(
    0.12, items=items, max_length=st.sampled_from((None, 1, 20, 64, 4_000)), side=st.sampled_from(("left", "right"))
)
def test_items(items, max_length, side, tiny_processor):
    with watched("processor", ValueError):
        check(tiny_processor, tiny_processor(
            text=[text for text, _ in items], images=[of_item for _, of_item in items], max_length=max_length,
            padding_side=side,
        ))  # fmt: skip


@fuzzed(0.02, text=texts | values | st.lists(any_text, max_size=3), images=one_image | values)
def test_arguments_of_any_kind(text, images, tiny_processor):
    with watched("processor, any arguments", ValueError):
        check(tiny_processor, tiny_processor(text=text, images=images))
