"""The SLURM script, with stand-ins for SLURM's two commands: two nodes are two launchers on this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import yaml

import moon2_training

RECIPES = Path(moon2_training.__file__).parent / "recipes"
SCRIPT = RECIPES / "slurm" / "train.sbatch"
SRUN = """#!/bin/bash
# starts the command once a node, as srun does, and fails if one of them does
[[ "$1 $2" == "--cpus-per-task=6 --kill-on-bad-exit=1" ]] || exit 2  # it does not take the job's CPUs of itself
shift 2
for node in $(seq 0 $((SLURM_NNODES - 1))); do SLURM_NODEID=$node "$@" & started+=($!); done
for process in "${started[@]}"; do wait "$process" || exit 1; done
"""
SCONTROL = """#!/bin/bash
[[ "$*" == "show hostnames localhost,node2" ]] && echo localhost && sleep 0.5 && echo node2
"""


def test_two_nodes_train_together_and_the_same_command_goes_on(shop, tmp_path):
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    tables = {"products": shop.products, "queries": shop.queries}
    for name, table in tables.items():
        table.to_parquet(tmp_path / f"{name}.parquet")
    recipe = {name: str(tmp_path / f"{name}.parquet") for name in tables} | {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "moe_intermediate_size": 16,
        "vision_hidden_size": 32, "vision_depth": 1, "image_size": 32, "vocab_size": 300, "use_cpu": True,
        "per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1,
        "report_to": "none", "disable_tqdm": True, "output_dir": str(tmp_path / "out"),
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true",
        "ACCELERATE_CONFIG": str(RECIPES / "accelerate" / "ddp.yaml"), "PROCESSES_PER_NODE": "1",
        "SLURM_JOB_NODELIST": "localhost,node2", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "6", "MAIN_PORT": str(port),
    }  # fmt: skip
    for steps in (1, 2):
        command = ["bash", SCRIPT, "--config", tmp_path / "recipe.yaml", "--max_steps", str(steps)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr[-3000:]
        state = json.loads((tmp_path / "out" / f"checkpoint-{steps}" / "trainer_state.json").read_text())
        assert state["global_step"] == steps
