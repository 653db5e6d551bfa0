"""The same command with the same seed leaves the same bytes, from one process to the next."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TIMED = {
    "results.json": "seconds of the run",
    "README.md": "the same seconds",
    "trainer_state.json": "seconds in its last line, in the folder of the run alone",
    "training_report.png": "minutes of the run",
}
RECIPE = """
products: products.parquet
queries: queries.parquet
output_dir: out
hidden_size: 32
num_hidden_layers: 1
num_attention_heads: 2
moe_intermediate_size: 16
vision_hidden_size: 32
vision_depth: 2
image_size: 32
vocab_size: 300
per_device_train_batch_size: 4
gradient_accumulation_steps: 2
max_steps: 6
negatives: explicit
mine_every_steps: 1
mined_per_product: 4
memory_size: 16
filter_warmup: 0.0
word_dropout: 0.2
leaf_share: 0.5
muon: true
dataloader_num_workers: 2
dataloader_pin_memory: false
logging_steps: 1
save_strategy: steps
save_steps: 3
report_to: none
disable_tqdm: true
use_cpu: true
seed: 3
"""


def start(folder: Path, shop) -> subprocess.Popen:
    """Begin a training in a folder of its own, with Python's hashes as random as they usually are."""
    folder.mkdir()
    shop.products.to_parquet(folder / "products.parquet")
    shop.queries.to_parquet(folder / "queries.parquet")
    (folder / "recipe.yaml").write_text(RECIPE)
    command = [sys.executable, "-m", "moon2_training.cli", "train", "--config", "recipe.yaml"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "random"}
    with open(folder / "log", "w") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)


@pytest.fixture(scope="module")
def runs(shop, tmp_path_factory):
    """Folders of two runs of one command."""
    folders = [tmp_path_factory.mktemp("runs") / name for name in ("one", "other")]
    for process in [start(folder, shop) for folder in folders]:
        assert process.wait(timeout=300) == 0, (folders[0] / "log").read_text()[-3000:]
    return [folder / "out" for folder in folders]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_file_of_a_checkpoint_has_the_same_bytes(runs):
    one, other = (contents(run / "checkpoint-6") for run in runs)
    assert one.keys() == other.keys()
    assert one.keys() >= {"model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json",
                          "training_args.bin", "memory.safetensors", "mined.safetensors",
                          "provenance.json"}  # fmt: skip
    assert [name for name in one if one[name] != other[name]] == []
    earlier = contents(runs[0] / "checkpoint-3")
    assert all(earlier[name] != one[name] for name in ("model.safetensors", "optimizer.pt", "mined.safetensors"))


def test_the_result_too_but_for_what_tells_seconds(runs):
    one, other = ({n: c for n, c in contents(run).items() if "checkpoint" not in n} for run in runs)
    assert one.keys() == other.keys()
    assert {name for name in one if one[name] != other[name]} <= TIMED.keys()
    assert one["model.safetensors"] == contents(runs[0])["checkpoint-6/model.safetensors"]
