"""What a run was made with, for provenance.json in its checkpoints and for its card: options, versions, code, data."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tqdm.auto import tqdm
from transformers import TrainingArguments

from moon2_dataset.file_cache import cache_path, make_once
from moon2_dataset.hub_card import without_path

LIBRARIES = ("moon2", "torch", "transformers", "trl", "accelerate", "datasets", "tokenizers", "safetensors", "numpy",
             "pillow")  # fmt: skip
DIGEST_BYTES = 16  # what `b2sum --length 128 FILE` prints
READ_BYTES = 1 << 23
HASH_THREADS = 8  # each file is hashed by one
# A file of a data set in the cache of huggingface_hub
HUB_FILE = re.compile(r"/datasets--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<revision>[^/]+)/")


def run_record(arguments: TrainingArguments) -> dict[str, Any]:
    """What a run was made with, beside its options and data: `seed`, `processes` and their `device`, `versions` of the
    libraries, `platform`, and `git`, see `git_state`.
    """
    return {
        "seed": arguments.seed,
        "processes": arguments.world_size,
        "device": arguments.device.type,
        "versions": {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
        "platform": platform.platform(),
        "git": git_state(),
    }


def git_state(folder: Path | str = ".") -> dict[str, str | bool] | None:
    """`revision` of the Git repository in which a folder lies, and whether tracked files are `dirty`; None outside of
    one.
    """

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        revision, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"revision": revision, "dirty": bool(changes)}


def given_options(*groups: Any) -> dict[str, Any]:
    """The options in which dataclasses differ from their defaults; of a place on the machine the name alone, and no
    secrets.
    """
    options = {}
    for group in groups:
        for option in fields(group):
            default = option.default if option.default_factory is MISSING else option.default_factory()
            value = getattr(group, option.name)
            if value == default or option.name.endswith("_token"):
                continue
            if isinstance(value, list):
                options[option.name] = [_without_path(part) for part in value]
            elif isinstance(value, bool | int | float | str):
                options[option.name] = _without_path(value)
    return options


def _without_path(value: Any) -> Any:
    return without_path(value) if isinstance(value, str) else value


def data_record(tables: Mapping[str, Iterable[Path]], progress: bool = True) -> list[dict[str, Any]]:
    """What tells a run's files from all others: `table`, `name`, `bytes`, `rows`, and `blake2b` of the bytes; of a
    file from the Hub also its `repository` and `revision`.

    A file is hashed once for each state of it, and the hash kept beside the rows that are read: see `cache_path`.

    Args:
        tables: Parquet files by what they are used as, such as "products".
        progress: show a bar over the bytes that are hashed.
    """
    files = [(table, Path(file)) for table, of_table in tables.items() for file in of_table]
    sizes = {file: file.stat().st_size for _, file in files}
    kept = {file: cache_path(file, f"blake2b {8 * DIGEST_BYTES}", ".blake2b") for file in sizes}
    new = [file for file in sizes if not kept[file].exists()]
    with (
        tqdm(total=sum(sizes[file] for file in new), unit="B", unit_scale=True, desc="hash data, once for each file",
             disable=not (progress and new)) as bar,
        ThreadPoolExecutor(min(HASH_THREADS, os.cpu_count() or 1)) as threads,
    ):  # fmt: skip

        def advance(count: int) -> None:
            with bar.get_lock():  # the threads share it
                bar.update(count)

        def keep(file: Path) -> None:
            make_once(kept[file], lambda part: part.write_text(_digest(file, advance), encoding="ascii"))

        for _ in threads.map(keep, new):  # for the errors
            pass
    return [
        {
            "table": table,
            "name": file.name,
            "bytes": sizes[file],
            "rows": pq.ParquetFile(file).metadata.num_rows,
            "blake2b": kept[file].read_text(encoding="ascii"),
        }
        | _hub_origin(file)
        for table, file in files
    ]


def _digest(file: Path, advance: Callable[[int], Any]) -> str:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    with file.open("rb", buffering=0) as stream:
        while part := stream.read(READ_BYTES):
            digest.update(part)
            advance(len(part))
    return digest.hexdigest()


def _hub_origin(file: Path) -> dict[str, str]:
    found = HUB_FILE.search(file.absolute().as_posix())
    if found is None:
        return {}
    return {"repository": f"{found['owner']}/{found['name']}", "revision": found["revision"]}


def changed_data(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[str]:
    """A message for each file that differs between two records of `data_record`; whatever folder it lies in."""

    def counted(record: Sequence[Mapping[str, Any]]) -> Counter[tuple[str, str, str]]:
        return Counter((file["table"], file["name"], file["blake2b"]) for file in record)

    gone, new = counted(before) - counted(now), counted(now) - counted(before)
    messages = []
    for table, name, digest in gone:
        others = [other for other in new if other[:2] == (table, name)]
        if others:
            messages.append(f"{name} ({table}) has other content: blake2b {others[0][2]}, it was {digest}")
            del new[others[0]]
        else:
            messages.append(f"{name} ({table}) is not among the files any more")
    return messages + [f"{name} ({table}) was not among the files" for table, name, _ in new]
