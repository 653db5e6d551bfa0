"""What training is timed with: all ways see the same items, and none leaves work out."""

from __future__ import annotations

import json

import model_speed
import pytest
import speed_bench
import torch
import train_step

TOY = {"shape": "mini", "device": "cpu", "dtype": "float32", "batch": 4, "image_side": 2, "repeats": 1}


@pytest.fixture(scope="module")
def bench():
    return speed_bench.Bench(speed_bench.Options(**TOY))


@pytest.fixture(scope="module")
def ways(bench):
    return train_step.steps(bench, batch=4, chunk=2)


def gradient(bench, ways, name):
    kind, step = ways[name]
    bench.release()
    step()
    return torch.cat([w.grad.flatten() for w in bench.model(kind).parameters() if w.grad is not None])


def test_sentence_transformers_embeds_what_the_model_embeds(bench, ways):
    inputs = bench.inputs(12)
    wrapped = train_step.sentence_transformer(bench.model("dense"))
    of = train_step.columns(inputs, 4)
    with torch.no_grad():
        views = model_speed.three_views(bench.model("dense"), inputs)
        found = {name: wrapped(dict(features))["sentence_embedding"] for name, features in of.items()}
    for (name, embeddings), view, role in zip(found.items(), (0, 1, 2, 2, 2), (0, 0, 0, 1, 2), strict=True):
        expected = views[view][4 * role : 4 * role + 4]
        torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_items_once_and_the_cached_loss_have_the_gradient_of_three_pairs(bench, ways):
    expected = gradient(bench, ways, train_step.STOCK)
    assert expected.norm() > 0
    for name in (train_step.ONCE, train_step.CACHED):
        torch.testing.assert_close(gradient(bench, ways, name), expected, atol=1e-5, rtol=1e-3)


def test_a_run_prints_every_way_and_the_profile(tmp_path, monkeypatch, capsys):
    output = tmp_path / "step.json"
    arguments = ["--batch", "4", "--chunk", "2", "--image_side", "2", "--repeats", "1", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["train_step.py", *arguments, "--profile", "--output", str(output)])
    assert train_step.main() == 0
    result = json.loads(output.read_text())
    rows = result["tables"]["training, whole steps"]
    assert result["failures"] == {} and len(rows) == 7
    by_way = {row["way"]: row for row in rows}
    assert by_way[train_step.STOCK]["× three pairs"] == by_way[train_step.CACHED]["× three pairs"] == 1
    for row in rows:
        assert row["triplets/s"] == pytest.approx(4e3 / row["ms"])
    profile = result["tables"]["profile of a step, split experts"]
    assert len(profile) == train_step.TOP_LINES and profile[0]["ms"] >= profile[-1]["ms"]
    assert "| MOON2.0, split experts | 5 |" in capsys.readouterr().out
