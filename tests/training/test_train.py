from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoProcessor

import moon2_training
from moon2_training.push import check_folder
from moon2_training.train import last_checkpoint, main, product_texts

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


RECIPES = sorted((Path(moon2_training.__file__).parent / "recipes").glob("*mini*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_of_ours_reads_the_tables_that_are_given_and_no_others(recipe, tiny, tmp_path, path):
    small = yaml.safe_load(recipe.read_text())
    tables = [flag for name in ("products", "queries") for flag in (f"--{name}", small[name])]
    small = SHAPE | {"per_device_train_batch_size": 4, "max_steps": 1, "save_strategy": "no", "use_cpu": True,
                     "dataloader_num_workers": 0, "output_dir": str(tmp_path / "out")}  # fmt: skip
    if "model" in yaml.safe_load(path.read_text()):
        for part in tiny:
            part.save_pretrained(tmp_path / "model")
        small = {name: value for name, value in small.items() if name not in SHAPE} | {"model": tmp_path / "model"}
    main(["--config", str(path), *tables, *(word for name in small for word in (f"--{name}", str(small[name])))])
    assert json.loads((tmp_path / "out" / "results.json").read_text()).keys() == {"training"}


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


def test_a_killed_run_goes_on_from_its_last_whole_checkpoint(recipe, tmp_path):
    options = ["--max_steps", "12", "--save_strategy", "steps", "--save_steps", "1", "--memory_size", "8"]
    main(["--config", str(recipe), *options, "--output_dir", str(tmp_path / "whole")])

    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "moon2_training.cli", "train", "--config", recipe, *options,
               "--output_dir", killed, "--resume_from_checkpoint", "last"]  # fmt: skip
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)  # as many threads as here, or sums would differ
        while process.poll() is None and not (killed / "checkpoint-4" / "config.json").is_file():
            time.sleep(0.01)
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL, (tmp_path / "log").read_text()[-3000:]
    (killed / "checkpoint-99").mkdir()  # one that was just begun
    assert last_checkpoint(killed) in {str(killed / f"checkpoint-{step}") for step in range(3, 12)}
    main(["--config", str(recipe), *options, "--output_dir", str(killed), "--resume_from_checkpoint", "last"])

    histories = [
        json.loads((tmp_path / run / "trainer_state.json").read_text())["log_history"] for run in ("whole", "killed")
    ]
    for one, other in zip(*([line for line in h if "loss" in line] for h in histories), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-6) and other["step"] == one["step"]
    one, other = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "killed"))
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


def test_every_checkpoint_tells_what_it_was_made_with(recipe, tmp_path):
    main(["--config", str(recipe), "--save_strategy", "steps", "--save_steps", "1", "--hub_token", "hf_secret"])
    folders = [tmp_path / "out" / name for name in (".", "checkpoint-1", "checkpoint-2")]
    told = [(folder / "provenance.json").read_text() for folder in folders]
    assert told[0] == told[1] == told[2] and "hf_secret" not in told[0] and str(tmp_path) not in told[0]
    run = json.loads(told[0])["run"]
    assert run["seed"] == 42 and "torch" in run["versions"]
    assert run["options"]["products"] == ["products"]
    assert {name: run["options"][name] for name in SHAPE} == SHAPE
    assert [(file["table"], file["name"], file["rows"]) for file in run["data"]] == [
        (table, f"{table.removeprefix('eval_')}.parquet", 24)
        for table in ("products", "queries", "eval_products", "eval_queries")
    ]
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| products | products.parquet | 24 | {run['data'][0]['bytes']:,} | {run['data'][0]['blake2b']} |" in card
    assert "Seed 42, 1 process on cpu; moon2 " in card and "| hidden_size | 32 |" in card


def test_a_run_that_is_resumed_on_other_data_says_which_file(recipe, shop, tmp_path):
    options = ["--save_strategy", "steps", "--save_steps", "1", "--resume_from_checkpoint", "last"]
    with warnings.catch_warnings(record=True) as caught:
        main(["--config", str(recipe), *options])
        main(["--config", str(recipe), *options, "--max_steps", "3"])
    assert not [warning for warning in caught if "other data" in str(warning.message)]
    shop.queries.select(range(20)).to_parquet(tmp_path / "queries.parquet")
    with pytest.warns(UserWarning, match=r"resumed on other data: queries.parquet \(queries\) has other content"):
        main(["--config", str(recipe), *options, "--max_steps", "4"])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["training"]["steps"] == 4 and results["training"]["skipped_steps"] == 0


def test_speed_is_that_of_the_steps_taken_here(recipe, tmp_path, capsys):
    options = ["--save_strategy", "steps", "--save_steps", "1", "--resume_from_checkpoint", "last"]

    def told(steps: int) -> dict:
        main(["--config", str(recipe), *options, "--max_steps", str(steps)])
        return json.loads((tmp_path / "out" / "results.json").read_text())["training"]

    for steps, here in ((2, 2), (3, 1)):
        training = told(steps)
        assert training["steps"] == steps and training["triplets"] == 4 * steps
        assert training["triplets_per_second"] == pytest.approx(4 * here / training["seconds"])
    assert "3 steps, 12 triplets, " in capsys.readouterr().out
    assert "triplets_per_second" not in told(3)
    assert "3 steps, 12 triplets; " in capsys.readouterr().out


def test_a_run_killed_behind_its_last_checkpoint_takes_no_step_more(recipe, tmp_path):
    options = ["--max_steps", "3", "--save_strategy", "steps", "--save_steps", "3", "--lr_scheduler_type", "constant",
               "--resume_from_checkpoint", "last"]  # fmt: skip
    main(["--config", str(recipe), *options])
    out = tmp_path / "out"
    before = load_file(out / "model.safetensors")
    for name in ("model.safetensors", "SHA256SUMS", "results.json", "trainer_state.json"):
        (out / name).unlink()  # as if killed before they were written
    main(["--config", str(recipe), *options])
    after = load_file(out / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((out / "results.json").read_text())["training"]["steps"] == 3


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
