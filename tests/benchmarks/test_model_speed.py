"""What the speed of the model is measured with; the figures themselves come from runs by hand."""

from __future__ import annotations

import json

import model_speed
import pytest
import speed_bench
import torch

TOY = {"shape": "mini", "device": "cpu", "dtype": "float32", "items": 2, "batch": 1, "image_side": 2, "repeats": 1}


@pytest.fixture(scope="module")
def bench():
    return speed_bench.Bench(speed_bench.Options(**TOY))


def test_three_passes_embed_what_encode_views_embeds(bench):
    model, inputs = bench.model("split"), bench.inputs(2)
    with torch.no_grad():
        for fused, separate in zip(
            model_speed.three_views(model, inputs), model_speed.three_passes(model, inputs), strict=True
        ):
            torch.testing.assert_close(fused, separate, atol=1e-5, rtol=1e-4)


def test_what_is_kept_for_the_backward_counts_once_and_without_weights(bench):
    model = bench.model("dense")
    weight = next(p for p in model.parameters() if p.dim() == 2)
    states = torch.randn(1000, weight.shape[1], requires_grad=True)

    def run():
        product = states @ weight.T  # keeps the states
        (product.square() + product.exp()).sum().backward()  # keeps the product and its exponential

    kept = bench.activation_memory(model, run)
    assert kept == pytest.approx(4000 * (weight.shape[1] + 2 * weight.shape[0]) / 1e9)


def test_flops_are_those_of_the_shape(bench):
    flops = {name: bench.count(name, "encode", model_speed.encode) for name in model_speed.EXPERTS}
    text = bench.dense.text_config
    tokens = bench.inputs(1)["input_ids"].numel()
    gate = 2 * tokens * text.hidden_size * 4 * text.num_hidden_layers
    mlp = 2 * tokens * 3 * text.hidden_size * text.intermediate_size * text.num_hidden_layers
    assert flops["split"] == flops["dense"] + gate
    assert flops["copy"] == flops["split"] + mlp
    heads = text.num_attention_heads * text.head_dim
    attention = (2 * 4 * heads * text.hidden_size * tokens + 2 * 2 * heads * tokens**2) * text.num_hidden_layers
    patches = bench.inputs(1)["pixel_values"].shape[0]
    tower = bench.models["dense"].visual
    per_block = 2 * patches * sum(p.numel() for n, p in tower.blocks[0].named_parameters() if n.endswith("weight"))
    assert flops["dense"] > mlp + attention + len(tower.blocks) * per_block  # and the mergers
    assert flops["dense"] < 1.2 * (mlp + attention + len(tower.blocks) * per_block)


def test_the_large_shape_is_qwen3_vl_2b():
    config = speed_bench.variant_config(speed_bench.shape_config("qwen3-vl-2b"), "split")
    with torch.device("meta"):
        model = speed_bench.Moon2Model(config)
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    assert experts == 28 * 2 * 3 * 2048 * 6144  # four of half the width
    assert sum(p.numel() for p in model.visual.parameters()) == pytest.approx(0.41e9, rel=0.02)
    assert model.language_model.embed_tokens.weight.shape == (151936, 2048)


def test_a_failure_is_a_line_and_the_other_figures_stand(tmp_path, monkeypatch, capsys):
    def broken(model, inputs):
        raise RuntimeError("out of memory\nand much more")

    monkeypatch.setattr(model_speed, "three_passes", broken)
    monkeypatch.setattr(model_speed, "EXPERTS", {"split": 4})
    output = tmp_path / "speed.json"
    options = speed_bench.Options(**TOY, output=output)
    speed_bench.Bench(options).run(model_speed.MEASURES)
    result = json.loads(output.read_text())
    assert result["failures"]["split three passes"] == "RuntimeError: out of memory"
    assert "--device cuda" in result["failures"]["waits"]
    assert [row["way"] for row in result["tables"]["views, split"]] == ["encode_views"]
    encoded = result["tables"]["encode"]
    assert {(row["experts"], row["items"]) for row in encoded} == {
        (name, items) for name in model_speed.IMPLEMENTATIONS["cpu"] for items in (1, 2)
    }
    for row in encoded + result["tables"]["training step"]:
        assert row["% of peak"] == pytest.approx(100 * row["TFLOP/s"] / result["matmul_tflops"])
    assert result["tables"]["views, split"][0]["activations GB"] > 0
    assert "| split | grouped_mm | 2 |" in capsys.readouterr().out
