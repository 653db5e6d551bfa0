"""What was made of a file, kept in the cache of `datasets` for whoever reads the file in the same state."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import datasets
from filelock import FileLock

from .disk_errors import naming


def cache_path(source: Path, what: str, suffix: str) -> Path:
    """Where the cache (HF_DATASETS_CACHE) has, or would have, what is made of a file.

    Args:
        source: the file; another once its size or the time of its last change is another.
        what: is made of it, and in which version.
        suffix: of the name.
    """
    state = source.stat()
    identity = f"{what} {source.resolve()} {state.st_mtime_ns} {state.st_size}"
    name = f"{source.stem}-{hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()}{suffix}"
    return Path(datasets.config.HF_DATASETS_CACHE) / "moon2" / name


def make_once(path: Path, make: Callable[[Path], None]) -> Path:
    """Make a file of the cache unless it is there; of several processes that want it one does, and the others wait.

    Args:
        path: of the file, as `cache_path` gives it.
        make: writes the file to the path that it is given.

    Returns:
        `path`, which is there only when it is whole.

    Raises:
        DiskError: the cache cannot be written.
    """
    if path.exists():
        return path
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():  # nor has another process made it meanwhile
                with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
                    part = Path(scratch) / path.name
                    make(part)
                    part.replace(path)
    return path
