from __future__ import annotations

import pytest

from moon2_dataset.augment.arguments import AugmentArguments


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"enricher": "gpt"}, "enricher='gpt'; give one of template, vlm, none"),
        ({"enricher": "vlm"}, "give the model with --vlm ID"),
        ({"kinds": ["light", "fog"]}, "give one or more of background, framing, viewpoint, light, detail"),
        ({"editor": "photoshop"}, "give none or diffusers:ID"),
        ({"batch_rows": 0}, "batch_rows=0; give 1 or more"),
    ],
)
def test_wrong_arguments_fail_at_once(change, message):
    with pytest.raises(ValueError, match=message):
        AugmentArguments(**{"input": "a.parquet", "output": "b.parquet"} | change)


def test_one_input_may_be_a_text_as_in_a_recipe():
    assert AugmentArguments(input="a", output="b") == AugmentArguments(input=["a"], output="b")
