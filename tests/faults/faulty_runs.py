"""Runs verbs of `moon2` in children on which a fault falls: they die at a drawn point, or the disk does not write."""

from __future__ import annotations

import fcntl
import importlib
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

CONTEXT = multiprocessing.get_context("forkserver")  # imports once what all children need; has no threads
PRELOADED = [
    "faulty_runs", "moon2_training.encode_catalogue", "moon2_training.convert", "moon2_training.train",
    "moon2_training.push", "moon2_dataset.build.builder", "moon2_dataset.augment.pipeline",
]  # fmt: skip
BEFORE, WITHIN, AFTER = "before a change", "within a write", "at a time"
TOO_LARGE = "file too large"
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
# Audit event -> where in its arguments the descriptor of a folder stands to which the path is relative.
CHANGES = {
    "open": None,
    "os.rename": 2,
    "os.remove": 1,
    "os.rmdir": 1,
    "os.mkdir": 2,
    "os.link": 2,
    "os.truncate": None,
}
PIPE_BYTES = 1 << 20
LONGEST = 300.0  # seconds of a run


class Fault(NamedTuple):
    """What falls on a run.

    Args:
        kind: BEFORE: killed just before a change of a file or folder; WITHIN: killed in the first write after that
            change that would make a file larger than `size`, so that half a file is left; AFTER: killed at a time;
            TOO_LARGE: as WITHIN, but writing fails, as on a disk that is full.
        at: number of the change, from 1; with AFTER seconds.
        size: bytes.
    """

    kind: str
    at: float
    size: int = 0


class Run(NamedTuple):
    """What became of a run.

    Args:
        code: exit status; of one that was killed the signal, negative.
        changes: of files and folders below the folder that was watched, as names of audit events; none of a run that
            was killed.
        seconds: it took.
        printed: on stdout and stderr.
    """

    code: int
    changes: tuple[str, ...]
    seconds: float
    printed: str

    @property
    def was_killed(self) -> bool:
        return self.code in (-signal.SIGKILL, -signal.SIGXFSZ)


def run(
    argv: Sequence[str],
    folder: Path,
    fault: Fault | None = None,
    patches: Mapping[str, Any] | None = None,
    started: Callable[[BaseProcess], None] | None = None,
) -> Run:
    """Run a verb in a child.

    Args:
        argv: verb and arguments.
        folder: below it changes are counted.
        fault: that falls on it.
        patches: "module:attribute" -> value, set before the verb is imported.
        started: is given the process.
    """
    with_preload()
    (printed, printing), (told, telling) = CONTEXT.Pipe(duplex=False), CONTEXT.Pipe(duplex=False)
    fcntl.fcntl(printing.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)  # nobody reads until it is over
    process = CONTEXT.Process(target=_child, args=(list(argv), folder, fault, patches or {}, printing, telling))
    begin = time.perf_counter()
    process.start()
    printing.close()
    telling.close()
    if started is not None:
        started(process)
    process.join(fault.at if fault is not None and fault.kind == AFTER else LONGEST)
    if process.exitcode is None:
        process.kill()
        process.join()
        if fault is None or fault.kind != AFTER:
            raise TimeoutError(f"moon2 {' '.join(argv)}: not done in {LONGEST} s; {_all_of(printed)}")
    seconds = time.perf_counter() - begin
    try:
        changes = told.recv()
    except EOFError:
        changes = ()
    return Run(process.exitcode, changes, seconds, _all_of(printed))


def draw(whole: Run, number: int, seed: int) -> list[Fault]:
    """Draw kills of a run: one in every equal part of its changes, and as many right behind a rename as there are.

    Half of them stand before a change, a third within a write, the rest at a time.

    Args:
        whole: the run, uninterrupted.
        number: of kills.
        seed: of the drawing.
    """
    chance = random.Random(seed)
    count = len(whole.changes)
    renamed = [place + 2 for place, event in enumerate(whole.changes) if event == "os.rename" and place + 2 <= count]
    chance.shuffle(renamed)
    faults = []
    for part in range(number):
        at = min(count, int(count * (part + chance.random()) / number) + 1)
        kind = (BEFORE, WITHIN, BEFORE, WITHIN, BEFORE, AFTER)[part % 6]
        if kind == BEFORE and part % 4 == 0 and renamed:
            at = renamed.pop()
        if kind == AFTER:
            faults.append(Fault(AFTER, whole.seconds * (part + chance.random()) / number))
        else:
            faults.append(Fault(kind, at, chance.choice((0, 1, 40, 300, 2000)) if kind == WITHIN else 0))
    return faults


def with_preload() -> None:
    """Let the server import what children need; only before the first child it has an effect."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    CONTEXT.set_forkserver_preload(PRELOADED)


def _child(
    argv: list[str],
    folder: Path,
    fault: Fault | None,
    patches: Mapping[str, Any],
    printing: Connection,
    telling: Connection,
) -> None:
    for stream in (1, 2):
        os.dup2(printing.fileno(), stream)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import torch

    torch.set_num_threads(1)  # so that sums are the same in every run
    for place, value in patches.items():
        module, _, name = place.partition(":")
        setattr(importlib.import_module(module), name, value)
    if fault is not None and fault.kind == WITHIN:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it, and the write fails
    counter = ChangeCounter(folder, fault)
    sys.addaudithook(counter)
    from moon2_training.cli import main

    code = main(argv)
    counter.fault = None
    sys.stdout.flush()
    telling.send(tuple(counter.seen))
    sys.exit(code)


class ChangeCounter:
    """An audit hook that counts the changes of files and folders below a folder, and lets a fault fall.

    Python tells of a change before it is made. Of what is written natively, as Parquet and safetensors are, it tells
    nothing; `Fault.size` holds for those too.

    Args:
        folder: below which changes count.
        fault: BEFORE, WITHIN or TOO_LARGE; others are not its business.
    """

    def __init__(self, folder: Path, fault: Fault | None) -> None:
        self.folder, self.fault, self.seen = str(folder), fault, []

    def __call__(self, event: str, arguments: tuple) -> None:
        if event not in CHANGES or isinstance(arguments[0], int):
            return
        if event == "open" and not (arguments[2] or 0) & WRITING:
            return
        if not self._is_below(arguments, CHANGES[event]):
            return
        self.seen.append(event)
        if self.fault is None or len(self.seen) != self.fault.at:
            return
        if self.fault.kind == BEFORE:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault.kind in (WITHIN, TOO_LARGE):
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.fault.size, resource.RLIM_INFINITY))

    def _is_below(self, arguments: tuple, place: int | None) -> bool:
        path = os.fsdecode(arguments[0])
        descriptor = -1 if place is None else arguments[place]
        if descriptor not in (-1, None) and not os.path.isabs(path):
            path = os.path.join(os.readlink(f"/proc/self/fd/{descriptor}"), path)
        return os.path.abspath(path).startswith(self.folder)


def _all_of(printed: Connection) -> str:
    """What is left in a pipe; others may still have it open."""
    os.set_blocking(printed.fileno(), False)
    parts = []
    try:
        while part := os.read(printed.fileno(), PIPE_BYTES):
            parts.append(part)
    except BlockingIOError:
        pass
    return b"".join(parts).decode(errors="replace")
