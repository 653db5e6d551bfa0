"""The accelerate configurations load; the Trainer runs on two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

import moon2_training

FOLDER = Path(moon2_training.__file__).parent / "recipes" / "accelerate"
PARALLEL = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "deepspeed_zero2": "DEEPSPEED", "deepspeed_zero3": "DEEPSPEED"}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_every_configuration(path):
    config = load_config_from_file(str(path))
    assert config.distributed_type.value == PARALLEL.get(path.stem, "NO")


def test_the_trainer_runs_on_two_processes(shop, tmp_path):
    broken, unread = {"bytes": b"no image", "path": None}, {"q1", "q4"}
    queries = shop.queries.map(lambda row: {"text": None, "image": broken} if row["query_id"] in unread else {})
    tables = {"products": shop.products, "queries": queries}
    for name, table in tables.items():
        table.to_parquet(tmp_path / f"{name}.parquet")
    shop.queries.to_parquet(tmp_path / "whole.parquet")
    recipe = {name: str(tmp_path / f"{name}.parquet") for name in tables} | {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "moe_intermediate_size": 16,
        "vision_hidden_size": 32, "vision_depth": 2, "image_size": 32, "vocab_size": 300, "max_steps": 3,
        "per_device_train_batch_size": 4, "logging_steps": 1, "save_strategy": "no", "report_to": "none",
        "memory_size": 16, "cached_chunk_size": 2, "disable_tqdm": True, "output_dir": str(tmp_path / "out"),
        "on_bad_image": "skip", "negatives": "explicit", "mine_every_steps": 1,
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               "-m", "moon2_training.cli", "train", "--config", tmp_path / "recipe.yaml",
               "--eval_products", recipe["products"], "--eval_queries", tmp_path / "whole.parquet"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    for told, times in (("'loss/inter_text'", 3), ("saved to", 1), ("others were taken instead", 1)):
        assert result.stdout.count(told) == times  # of one process
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["training"]["steps"] == 3 and results["training"]["triplets"] == 24
    assert results["training"]["emptied"] == sorted(f"query {name}" for name in unread)  # each sees one
    assert results["retrieval"]["t2mm"]["queries"] > 0
