"""Adapters on attention and experts: train, save, load on a fresh base, merge; the embeddings stay the same."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModel
from trl import ModelConfig

from moon2_training.evaluate import evaluate
from moon2_training.hub_folder import save_hub_folder
from moon2_training.lora import IN_FULL, add_adapters, lora_config, merge_adapters
from moon2_training.trainer import Moon2Trainer
from moon2_training.trainer_config import Moon2TrainingArguments


@pytest.fixture
def base(tiny, tmp_path):
    """A folder with the tiny model."""
    save_hub_folder(tmp_path / "base", *tiny)
    return tmp_path / "base"


def load(base):
    return AutoModel.from_pretrained(base).eval()


def test_trained_saved_loaded_and_merged_adapters_embed_alike(base, tiny_processor, shop, mixed_items, tmp_path):
    inputs = tiny_processor(text=mixed_items[0], images=mixed_items[1])
    model = get_peft_model(load(base), lora_config(r=4))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    arguments = Moon2TrainingArguments(
        tmp_path / "out",
        per_device_train_batch_size=8,
        max_steps=3,
        learning_rate=0.05,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    trainer = Moon2Trainer(model, arguments, train_dataset=shop, processing_class=tiny_processor)
    trainer.train()
    trainer.save_model()

    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert moved == trained and all(any(f".{part}." in name for name in moved) for part in IN_FULL)
    assert all("lora_" in name or any(f".{part}.modules_to_save" in name for part in IN_FULL) for name in moved)
    assert {part for part in ("experts", "self_attn") if any(part in name for name in moved)} == {
        "experts",
        "self_attn",
    }

    with torch.no_grad():
        expected = model.eval()(**inputs).embeddings
        loaded = PeftModel.from_pretrained(load(base), tmp_path / "out").eval()
        torch.testing.assert_close(loaded(**inputs).embeddings, expected)
        merged = loaded.merge_and_unload()
        save_hub_folder(tmp_path / "merged", merged, tiny_processor)
        again = load(tmp_path / "merged")
        torch.testing.assert_close(again(**inputs).embeddings, expected, atol=1e-5, rtol=1e-5)
        weights = model(**inputs, return_views=True).alignment_logits
        assert torch.equal(again.encode_views(**inputs).alignment_logits, weights)
        assert (load(base)(**inputs).embeddings - expected).abs().max() > 1e-2


def test_an_adapted_model_is_evaluated_like_any_other(base, tiny_processor, shop):
    model = get_peft_model(load(base), lora_config(r=2))
    adapted = evaluate(model, tiny_processor, shop.products, shop.queries, progress=False)
    plain = evaluate(load(base), tiny_processor, shop.products, shop.queries, progress=False)
    assert adapted["retrieval"]["t2mm"]["mrr"] == plain["retrieval"]["t2mm"]["mrr"]


def test_given_temperatures_are_those_that_are_trained(base, tiny_processor, shop, tmp_path):
    model = get_peft_model(load(base), lora_config(r=2))
    arguments = Moon2TrainingArguments(tmp_path, per_device_train_batch_size=8, use_cpu=True, report_to="none",
                                       inter_temperature=0.05, intra_temperature=0.2)  # fmt: skip
    Moon2Trainer(model, arguments, train_dataset=shop, processing_class=tiny_processor)
    inputs = tiny_processor(text=["red mug"])
    assert model(**inputs, return_views=True).temperatures.tolist() == pytest.approx([0.05, 0.2])
    assert model.merge_and_unload().temperature().tolist() == pytest.approx([0.05, 0.2])


def test_without_experts_only_attention_is_adapted(tiny_model):
    model = get_peft_model(copy.deepcopy(tiny_model), lora_config(r=2, experts=False))
    adapted = [name for name, weight in model.named_parameters() if weight.requires_grad and "lora_" in name]
    assert adapted and all("self_attn" in name for name in adapted)
    assert not any("visual" in name for name in adapted)


def adapted_parts(model):
    return {name.split(".lora_")[0].rpartition(".")[2] for name, _ in model.named_parameters() if ".lora_" in name}


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        (["q_proj"], {"q_proj"}),  # TRL makes a text of a list of one
        (["self_attn.q_proj"], {"q_proj"}),
        (["q_proj", "v_proj"], {"q_proj", "v_proj"}),
        ([r".*layers\.1\.self_attn\.[kv]_proj"], {"k_proj", "v_proj"}),
    ],
    ids=str,
)
def test_the_modules_that_are_named_are_adapted(tiny_model, modules, expected):
    options = ModelConfig(lora_r=2, lora_dropout=0.0, lora_target_modules=modules)
    assert adapted_parts(add_adapters(copy.deepcopy(tiny_model), options)) == expected


def test_all_linear_layers_are_adapted(tiny_model):
    options = ModelConfig(lora_r=2, lora_dropout=0.0, lora_target_modules=["all-linear"])
    assert adapted_parts(add_adapters(copy.deepcopy(tiny_model), options)) >= {"q_proj", "o_proj", "qkv", "linear_fc1"}


@pytest.mark.parametrize("given", [{"use_dora": True}, {"lora_dropout": 0.1}], ids=str)
def test_what_experts_cannot_have_is_refused_with_two_ways_out(tiny_model, tiny_processor, given):
    (name,) = given
    defaults = {"lora_r": 2, "lora_dropout": 0.0}
    with pytest.raises(ValueError, match=rf"^{name}=.*: adapters on experts .*; .*--lora_target_modules") as refusal:
        add_adapters(copy.deepcopy(tiny_model), ModelConfig(**defaults | given))
    modules = str(refusal.value).partition("--lora_target_modules ")[2].split(",")[0].split()
    assert modules == ["q_proj", "k_proj", "v_proj", "o_proj"]
    options = ModelConfig(**defaults | given, lora_target_modules=modules)
    model = add_adapters(copy.deepcopy(tiny_model), options).train()
    assert adapted_parts(model) >= set(modules)
    model(**tiny_processor(text=["red mug"])).embeddings[:, 0].sum().backward()
    assert all(weight.grad is not None for name, weight in model.named_parameters() if "q_proj.lora_" in name)
    assert type(merge_adapters(model)) is type(tiny_model)
