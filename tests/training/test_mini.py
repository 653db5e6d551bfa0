from __future__ import annotations

import dataclasses

from moon2_training.mini import MiniConfig, build_mini, train_tokenizer


def test_the_default_shape_is_what_the_recipe_says():
    model, processor = build_mini(MiniConfig(), [f"word{i} brand{i % 90} shirt" for i in range(3000)])
    experts = model.language_model.layers[0].mlp.experts
    assert experts.gate_up_proj.shape == (4, 512, 256)
    assert processor.image_processor.size["longest_edge"] == 64 * 64
    assert 5e6 < model.num_parameters() < 12e6


def test_a_dense_model_has_the_active_parameters_of_the_mixture():
    def feed_forward(num_experts):
        model, _ = build_mini(dataclasses.replace(MiniConfig(), num_experts=num_experts), ["red mug"] * 9)
        mlp = model.language_model.layers[0].mlp
        return sum(p.numel() for name, p in mlp.named_parameters() if "gate.weight" != name and "dual" not in name)

    assert feed_forward(4) * 2 / 4 == feed_forward(0)


def test_the_tokenizer_ignores_case_and_knows_any_text():
    tokenizer = train_tokenizer(["Nike Men Blue Shoes", "nike women shoes"] * 20, 400)

    def encode(text):
        return tokenizer(text)["input_ids"]

    assert encode("NIKE Shoes") == encode("nike shoes") and len(encode("nike shoes")) == 2
    assert tokenizer.decode(encode("红色 MUG 🔥")).strip() == "红色 mug 🔥"
    assert tokenizer.pad_token_id == 0
