from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from moon2_dataset.disk_errors import DiskError, naming, told_of_disk
from moon2_dataset.shards import write_text

FULL = "the disk is full; free some space, then run the same command again"


def test_a_full_disk_is_told_with_the_file_and_the_way_out():
    with pytest.raises(DiskError, match=f"^out/part.parquet: {FULL}$"), naming("out/part.parquet"):
        raise OSError(errno.ENOSPC, "Error writing bytes to file")
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/other")
    assert told_of_disk(error, "out") == f"out/other: {FULL}"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("Failed to write: No space left on device (os error 28)"), f"out: {FULL}"),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
            "out: cannot be written; ",
        ),
        (OSError(errno.ENOSPC, "full", "source.py", None, "out/copy.py"), f"out/copy.py: {FULL}"),
        (
            RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed"),
            "out: cannot be written; ",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "out/x"), "out/x: no permission; give another place"),
        (OSError(errno.EROFS, "Read-only file system", "out/x"), "out/x: the disk can only be read; give an output"),
    ],
)
def test_every_library_tells_of_the_disk_in_its_own_way(error, told):
    assert told_of_disk(error, "out").startswith(told)


def test_other_errors_stay_as_they_are():
    assert told_of_disk(KeyError("bug")) is None
    assert told_of_disk(RuntimeError("Parquet magic bytes not found (os error 2)")) is None
    with pytest.raises(KeyError), naming("out"):
        raise KeyError("bug")


def test_the_innermost_name_stays():
    with pytest.raises(DiskError, match="^inner: "), naming("outer"), naming("inner"):
        raise OSError(errno.ENOSPC, "full")


def test_a_file_that_may_not_grow_keeps_what_it_was(tmp_path):
    path = tmp_path / "manifest.json"
    write_text(path, "before")
    program = (
        "import resource, sys; from pathlib import Path; from moon2_dataset.shards import write_text\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3, 3)); write_text(Path(sys.argv[1]), 'x' * 100)"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
    assert f"DiskError: {path}: files may not be that large; raise the limit (ulimit -f)" in done.stderr
    assert path.read_text() == "before"
