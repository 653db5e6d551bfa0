"""A run of `moon2 encode` that dies at any touch of the disk goes on to the same bytes."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from catalogue_runs import change, contents, encode, rows

from moon2_training import vector_files
from moon2_training.batch_inputs import BatchInputs

# Runs in a process of its own, which dies when it is about to touch the disk for the nth time.
DYING = """
import os, shutil, signal
from pathlib import Path

left = {at}


def dying(original):
    def wrapped(*arguments, **options):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    return wrapped


for name in ("rename", "replace", "mkdir", "unlink"):
    setattr(Path, name, dying(getattr(Path, name)))
shutil.rmtree = dying(shutil.rmtree)
from moon2_training.encode_catalogue import EncodeArguments, encode_catalogue
encode_catalogue(EncodeArguments(**{arguments}), progress=False)
"""


@pytest.fixture(scope="module")
def model(saved_model) -> str:
    return str(saved_model)


def killed_at(at: int, arguments: dict) -> int | None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["moon2_training.encode_catalogue"])
    process = context.Process(target=exec, args=(DYING.format(at=at, arguments=arguments), {"__name__": "dying"}))
    process.start()
    process.join(120)
    return process.exitcode


def is_killed_and_goes_on(model, catalogue, out: Path, steps, before: Path | None, expected: Path) -> int:
    """Kill a run at each step, repeat it, and compare; returns at how many steps it was killed."""
    arguments = {"model": model, "products": [str(catalogue)], "output": str(out), "shard_rows": 10, "batch_size": 4}
    killed = 0
    for at in steps:
        if before is not None:
            shutil.copytree(before, out)
            shutil.copy(f"{before}.json", f"{out}.json")
        code = killed_at(at, arguments)
        assert code in (0, -signal.SIGKILL)
        if code == 0:
            break
        killed += 1
        if before is not None and out.exists():  # readers never see a half of it
            assert contents(out) in (contents(before), contents(expected))
        encode(model, catalogue, out)
        assert contents(out) == contents(expected), f"killed at {at}"
        assert not Path(f"{out}.partial").exists()
        shutil.rmtree(out)
        Path(f"{out}.json").unlink()
    return killed


@pytest.mark.parametrize(
    "steps", [(4, 8, 12), pytest.param(range(1, 100), marks=pytest.mark.slow)], ids=["some", "every"]
)
def test_a_first_run_that_is_killed_goes_on_to_the_same_bytes(model, catalogue, tmp_path, steps):
    encode(model, catalogue, tmp_path / "expected")
    killed = is_killed_and_goes_on(model, catalogue, tmp_path / "out", steps, None, tmp_path / "expected")
    assert killed >= min(len(steps), 12)


@pytest.mark.parametrize(
    "steps", [(6, 11, 14), pytest.param(range(1, 100), marks=pytest.mark.slow)], ids=["some", "every"]
)
def test_an_update_that_is_killed_goes_on_to_the_same_bytes(model, catalogue, tmp_path, steps):
    for name in ("before", "expected"):
        encode(model, catalogue, tmp_path / name)
    change(catalogue, lambda products: products[3].update(title="mug") or products[1:])
    told = encode(model, catalogue, tmp_path / "expected")
    assert (told["encoded"], told["unchanged"]) == (1, 22)
    killed = is_killed_and_goes_on(
        model, catalogue, tmp_path / "out", steps, tmp_path / "before", tmp_path / "expected"
    )
    assert killed >= min(len(steps), 14)


def test_a_run_that_goes_on_does_not_encode_finished_shards_again(model, catalogue, tmp_path, monkeypatch):
    arguments = {"model": model, "products": [str(catalogue)], "output": str(tmp_path / "out")}
    arguments |= {"shard_rows": 10, "batch_size": 4}
    at = 1
    while len(list((tmp_path / "out.partial" / "records").glob("*.json"))) < 2:
        assert killed_at(at, arguments) == -signal.SIGKILL
        at += 1
    encoded = []
    original = BatchInputs.make

    def watched(self, items, rows, *rest, **options):
        encoded.extend(rows)
        return original(self, items, rows, *rest, **options)

    monkeypatch.setattr(BatchInputs, "make", watched)
    encode(model, catalogue, tmp_path / "out")
    assert len(encoded) == 4


@pytest.mark.parametrize("name", ["out", "out.lance"])
def test_a_run_that_is_killed_while_it_tidies_up_is_done(model, catalogue, tmp_path, monkeypatch, name):
    rmtree = shutil.rmtree

    def half(folder, *arguments, **options):
        shards = sorted(Path(folder).glob("vectors-*.parquet")) or sorted(Path(folder).glob("0*.json"))
        if not shards:
            return rmtree(folder, *arguments, **options)
        shards[0].unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(vector_files.shutil, "rmtree", half)
    with pytest.raises(KeyboardInterrupt):
        encode(model, catalogue, tmp_path / name)
    monkeypatch.undo()
    told = encode(model, catalogue, tmp_path / name)
    assert "nothing has changed: 24 products" in told["message"] and told["encoded"] == 24
    assert not (tmp_path / f"{name}.partial").exists()


@pytest.mark.slow
def test_a_lance_run_that_is_killed_goes_on_to_the_same_rows(model, catalogue, tmp_path):
    out, before = tmp_path / "out.lance", tmp_path / "before.lance"
    arguments = {"model": model, "products": [str(catalogue)], "output": str(out), "shard_rows": 10, "batch_size": 4}
    encode(model, catalogue, before)
    expected = {False: rows(before)}
    change(catalogue, lambda products: products[3].update(title="mug") or products[1:])
    encode(model, catalogue, tmp_path / "after.lance")
    expected[True] = rows(tmp_path / "after.lance")
    for at in range(1, 100, 2):
        shutil.copytree(before, out)
        shutil.copy(f"{before}.json", f"{out}.json")
        code = killed_at(at, arguments)
        encode(model, catalogue, out)
        found = rows(out)
        assert found.keys() == expected[True].keys()
        for name, vector in found.items():
            np.testing.assert_allclose(vector, expected[True][name], atol=1e-5)
        shutil.rmtree(out)
        Path(f"{out}.json").unlink()
        if code == 0:
            break
    assert at > 10
