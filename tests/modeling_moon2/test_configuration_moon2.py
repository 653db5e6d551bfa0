from __future__ import annotations

import pytest

from modeling_moon2 import ALIGNMENT_OBJECTIVES, Moon2Config, Moon2TextConfig


def test_round_trip_through_json_keeps_both_sub_configs(tmp_path):
    config = Moon2Config(
        text_config={"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 40, "hidden_size": 64},
        vision_config={"depth": 3},
    )
    config.save_pretrained(tmp_path)
    loaded = Moon2Config.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert (loaded.text_config.num_experts, loaded.text_config.moe_intermediate_size) == (6, 40)
    assert (loaded.model_type, loaded.text_config.model_type, loaded.vision_config.depth) == ("moon2", "moon2_text", 3)


def test_expert_width_defaults_to_the_dense_width():
    assert Moon2TextConfig(intermediate_size=123).moe_intermediate_size == 123


@pytest.mark.parametrize("k", [0, 5])
def test_k_outside_the_number_of_experts_is_refused(k):
    with pytest.raises(ValueError, match=f"num_experts_per_tok={k}.*num_experts=4"):
        Moon2TextConfig(num_experts=4, num_experts_per_tok=k)


def test_objectives_have_the_order_that_the_losses_use():
    from moon2_training.losses import OBJECTIVES

    assert tuple(Moon2TextConfig().alignment_objectives) == ALIGNMENT_OBJECTIVES == OBJECTIVES
