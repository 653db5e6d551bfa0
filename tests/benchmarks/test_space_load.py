"""The load on the Space is what its users saw: every answer and every error counts."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import space_load
import torch

from moon2_dataset.demo_catalogue import render_demo_catalogue
from moon2_training.mini import build_mini


def test_figures_of_a_run():
    seconds = np.linspace(0.1, 0.2, 101).tolist()
    memory = [(at, 100 if at < 10 else 200 + at) for at in range(40)]
    load = space_load.Load(seconds, Counter({0: 50, 1: 51}), Counter({"late": 2}), memory)
    told = load.summary(warm_up=10)
    assert (told["answers"], told["errors"], told["answers_of_a_user"]) == (101, {"late": 2}, [50, 51])
    assert [told["p50_ms"], told["p95_ms"], told["worst_ms"]] == pytest.approx([150, 195, 200])
    assert told["memory_growth"] == pytest.approx(234.5 / 214.5 - 1)  # medians of the first and the last third


def test_figures_of_a_run_without_an_answer():
    told = space_load.Load(errors=Counter({"refused": 3})).summary(warm_up=0)
    assert told["answers"] == 0 and np.isnan(told["p95_ms"]) and told["answers_of_a_user"] == [0, 0]


@pytest.mark.slow
def test_a_space_under_load_whose_model_changes(tmp_path, saved_model, tiny_config, monkeypatch):
    torch.manual_seed(1)
    other, processor = build_mini(tiny_config, ["navy blue mug", "red shoes and a handbag"] * 20)
    other.save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    products, _ = render_demo_catalogue(30, seed=3, progress=False)
    products.to_parquet(tmp_path / "products.parquet")
    output = tmp_path / "load.json"
    arguments = {"--model": saved_model, "--products": tmp_path / "products.parquet", "--size": 40, "--users": 3,
                 "--seconds": 4, "--warm_up": 1, "--swap_to": tmp_path / "other", "--output": output}  # fmt: skip
    monkeypatch.setattr("sys.argv", ["space_load.py", *(str(part) for pair in arguments.items() for part in pair)])
    space_load.main()
    (run,) = json.loads(output.read_text())
    assert run["errors"] == {} and run["answers"] > 0 and run["answers_of_a_user"][0] > 0
    assert run["swap"]["state"] == "done" and "40 products encoded" in run["swap"]["message"]
    assert run["memory_mb"][0] > 0
