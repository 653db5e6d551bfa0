from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from moon2_training.mini import build_mini
from moon2_training.quantization import SeparateExperts, quantize_int8


@pytest.fixture
def batch(tiny_processor, mixed_items):
    texts, images = mixed_items
    return tiny_processor(text=texts, images=images, return_tensors="pt")


def test_separate_experts_compute_what_stacked_ones_do(tiny_model):
    experts = tiny_model.language_model.layers[0].mlp.experts
    hidden = torch.randn(9, 48)
    index = torch.tensor([[0, 1]] * 5 + [[3, 0]] * 4)  # nobody goes to 2
    weights = torch.rand(9, 2)
    with torch.no_grad():
        separate = SeparateExperts(experts)(hidden, index, weights)
        torch.testing.assert_close(separate, experts(hidden, index, weights), atol=1e-5, rtol=1e-4)


def test_linear_layers_and_experts_become_eight_bits_and_vectors_stay_near(tiny_model, batch):
    model = copy.deepcopy(tiny_model)
    with torch.no_grad():
        before = tiny_model(**batch, return_views=True)
        share = quantize_int8(model)
        after = model(**batch, return_views=True)
    assert 0.9 < share < 1
    assert not [module for module in model.modules() if type(module) is nn.Linear]
    for name in ("text_embeddings", "image_embeddings", "multimodal_embeddings"):
        cosines = (before[name] * after[name]).sum(-1)[before[name].any(-1)]
        assert (cosines > 0.98).all() and not torch.equal(before[name], after[name])


def test_a_dense_model_is_quantised_too(tiny_config):
    model = build_mini(replace(tiny_config, num_experts=0), ["red mug"] * 9)[0].eval()
    assert quantize_int8(model) > 0.9


def test_other_types_are_refused(tiny_model):
    with pytest.raises(ValueError, match="torch.bfloat16 on cpu; int8 starts from float32"):
        quantize_int8(copy.deepcopy(tiny_model).to(torch.bfloat16))
