from __future__ import annotations

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoProcessor

from moon2_training.push import check_folder
from moon2_training.train import main, product_texts

SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "moe_intermediate_size": 16,
         "vision_hidden_size": 32, "vision_depth": 2, "image_size": 32, "vocab_size": 300}  # fmt: skip


@pytest.fixture
def recipe(shop, tmp_path):
    """A recipe over the shop's tables, as files."""
    shop.products.to_parquet(tmp_path / "products.parquet")
    shop.queries.to_parquet(tmp_path / "queries.parquet")
    tables = {name: str(tmp_path / f"{name}.parquet") for name in ("products", "queries")}
    settings = SHAPE | tables | {f"eval_{name}": path for name, path in tables.items()}
    settings |= {"output_dir": str(tmp_path / "out"), "per_device_train_batch_size": 4, "max_steps": 2,
                 "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True}  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_a_recipe_trains_scores_and_saves(recipe, tmp_path, capsys):
    main(["--config", str(recipe), "--max_steps", "3"])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["training"]["steps"] == 3 and results["training"]["triplets"] == 12
    assert results["retrieval"]["t2mm"]["queries"] > 0
    printed = capsys.readouterr().out
    assert "3 steps, 12 triplets" in printed and "mm→mm" in printed
    assert AutoProcessor.from_pretrained(tmp_path / "out").tokenizer.pad_token_id == 0

    settings = {name: value for name, value in yaml.safe_load(recipe.read_text()).items() if name not in SHAPE}
    recipe.write_text(yaml.safe_dump(settings | {"model": str(tmp_path / "out")}))
    main(["--config", str(recipe), "--output_dir", str(tmp_path / "further")])
    assert (tmp_path / "further" / "model.safetensors").exists()


def test_adapters_are_trained_and_merged(recipe, tmp_path):
    main(["--config", str(recipe)])
    settings = {name: value for name, value in yaml.safe_load(recipe.read_text()).items() if name not in SHAPE}
    recipe.write_text(yaml.safe_dump(settings | {"model": str(tmp_path / "out")}))
    further = tmp_path / "further"
    main(["--config", str(recipe), "--output_dir", str(further), "--use_peft", "true", "--lora_r", "2",
          "--learning_rate", "0.01"])  # fmt: skip
    check_folder(further)
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("out", "further"))
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    parts = ("q_proj", "experts.down_proj", "gate.weight", "dual_alignment", "temperature")
    assert all(any(part in name for name in moved) for part in parts)
    assert not any("visual" in name or "embed_tokens" in name for name in moved)
    provenance = json.loads((further / "provenance.json").read_text())
    assert provenance["datasets"] == ["products.parquet", "queries.parquet"]
    with pytest.raises(ValueError, match="adapters on experts have none; give 0"):
        main(["--config", str(recipe), "--use_peft", "true", "--lora_dropout", "0.1"])


def test_shape_flags_do_not_go_with_a_given_model(recipe):
    with pytest.raises(ValueError, match="--hidden_size shapes a model from scratch, but --model=somewhere"):
        main(["--config", str(recipe), "--model", "somewhere"])


def test_half_an_evaluation_set_is_refused(recipe):
    settings = yaml.safe_load(recipe.read_text())
    del settings["eval_queries"]
    recipe.write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match="eval_products and eval_queries belong together"):
        main(["--config", str(recipe)])


def test_the_tokenizer_learns_from_everything_that_names_products(shop):
    texts = list(product_texts(shop))
    assert {"Lumo navy blue mug 0", "mug 0", "handbag", "navy blue"} <= set(texts)
    assert all(texts)
