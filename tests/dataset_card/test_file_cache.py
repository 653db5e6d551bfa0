from __future__ import annotations

import os
import subprocess
import sys

import pytest

from moon2_dataset.disk_errors import DiskError
from moon2_dataset.file_cache import cache_path, make_once


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    file = tmp_path / "products.parquet"
    file.write_bytes(b"rows")
    return file


def test_a_place_is_that_of_a_state_of_the_file_and_of_what_is_made(source, tmp_path):
    first = cache_path(source, "words 1", ".txt")
    assert first.name.startswith("products-") and first.suffix == ".txt"
    assert first == cache_path(source, "words 1", ".txt") != cache_path(source, "words 2", ".txt")
    (tmp_path / "linked").mkdir()
    link = tmp_path / "linked" / source.name
    link.symlink_to(source)
    assert cache_path(link, "words 1", ".txt") == first
    os.utime(source, ns=(1, 1))
    changed = cache_path(source, "words 1", ".txt")
    source.write_bytes(b"more rows")
    os.utime(source, ns=(1, 1))
    assert len({first, changed, cache_path(source, "words 1", ".txt")}) == 3


def test_it_is_made_once_and_only_whole(source):
    path = cache_path(source, "words", ".txt")

    def fails(part):
        part.write_text("hal")
        raise KeyError("words")

    with pytest.raises(KeyError):
        make_once(path, fails)
    assert not path.exists()
    assert make_once(path, lambda part: part.write_text("whole")).read_text() == "whole"
    assert make_once(path, fails) == path
    assert {file.name for file in path.parent.iterdir()} <= {path.name, f"{path.name}.lock"}


def test_a_full_disk_is_named(source):
    path = cache_path(source, "words", ".txt")

    def full(part):
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskError, match=f"{path.name}: the disk is full"):
        make_once(path, full)


MAKER = """
import sys, time
from pathlib import Path
from moon2_dataset.file_cache import make_once

path, made, rank = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
(made / f"ready-{rank}").touch()
for _ in range(6000):  # a minute
    if len(list(made.glob("ready-*"))) == 2:
        break
    time.sleep(0.01)

def make(part):
    (made / f"made-{rank}").touch()
    time.sleep(0.5)  # so that the other surely comes meanwhile
    part.write_text("whole")

assert make_once(path, make).read_text() == "whole"
"""


def test_of_several_processes_one_makes_it(source, tmp_path):
    path = cache_path(source, "words", ".txt")
    processes = [subprocess.Popen([sys.executable, "-c", MAKER, path, tmp_path, str(rank)]) for rank in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert len(list(tmp_path.glob("made-*"))) == 1
