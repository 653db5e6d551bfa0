"""On a disk that is full or can only be read, a verb says so in one line, keeps what was there, and goes on later."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_runs import TOO_LARGE, Fault, Run, run
from trials import clear, compared, uninterrupted
from verbs import Verb, all_files

SEED = 0
NAMES = ("convert", "train", "train, again", "augment", "build-dataset", "encode", "encode, again",
         "encode, Lance, again", "index", "index, again")  # fmt: skip
CHEAP = ("convert", "encode, again")
ROOM = (0.1, 0.5, 0.9)  # of what a run needs
PAGE = 4096


@pytest.fixture
def small_disk(place) -> Iterator[Callable[..., None]]:
    """Gives `place` a disk of its own: makes one of so many bytes, changes its size, or lets it only be read."""
    mounted = False

    def mount(size: int | None = None, writable: bool = True) -> None:
        nonlocal mounted
        options = ["remount"] * mounted + [f"size={size}"] * (size is not None) + ["rw" if writable else "ro"]
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode and not mounted:
            pytest.skip(f"may not mount a disk of its own: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        mounted = True

    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("only root may mount a disk of its own")
    yield mount
    if mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def told(done: Run, place: Path) -> str:
    """The message of a run that failed, which names what could not be written and says the way out."""
    assert done.code == 1, (done.code, done.printed)
    assert "Traceback" not in done.printed, done.printed
    lines = [line for line in done.printed.splitlines() if line.startswith("moon2 ")]  # a bar may end behind it
    assert lines, done.printed
    line = lines[-1]
    assert str(place) in line and "; " in line, line
    return line.replace(str(place), "OUT")


def problems_of(verb: Verb, place: Path, before: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """What is wrong with what a run that failed has left."""
    found = all_files(place)
    problems = []
    if not any(all(found.get(name) == there.get(name) for name in verb.stays) for there in (before, expected)):
        problems.append(f"some of {', '.join(verb.stays)} are gone or others")
    try:
        verb.halfway(place, expected)
    except AssertionError as error:
        problems.append(str(error))
    return problems


def finished(verb: Verb, place: Path, expected: dict[str, Any]) -> tuple[list[str], list[str]]:
    done = run(verb.argv, place, patches=verb.patches)
    assert done.code == 0, done.printed
    return compared(verb.outcome(place), expected)


@pytest.mark.parametrize(
    ("name", "number"),
    [(name, 1) for name in CHEAP] + [pytest.param(name, 8, marks=pytest.mark.faults) for name in NAMES],
)
def test_where_files_may_not_grow_it_says_so_and_goes_on_later(name, number, make, place, table):
    verb = make(name)
    whole, expected = uninterrupted(verb, place)
    chance, problems = random.Random(SEED), []
    for part in range(number):
        at = int(len(whole.changes) * (part + chance.random()) / number) + 1
        clear(place)
        verb.before(place)
        before = all_files(place)
        done = run(verb.argv, place, Fault(TOO_LARGE, at, size=chance.choice((0, 100))), verb.patches)
        if done.code == 0:  # no write came after it
            continue
        message = told(done, place)
        wrong = problems_of(verb, place, before, expected)
        lost, other = finished(verb, place, expected)
        table.add("file may not grow", name, 1, bool(lost), bool(wrong or other), message)
        problems += [f"at {at}: lost {lost}, wrong {wrong + other}"] * bool(lost or wrong or other)
    assert not problems, "\n".join(problems)


def size_of(place: Path) -> int:
    return sum(-(-path.stat().st_size // PAGE) * PAGE + PAGE for path in place.rglob("*"))


@pytest.mark.faults
@pytest.mark.parametrize("name", NAMES)
def test_on_a_full_disk_it_says_so_and_goes_on_when_there_is_room(name, make, place, table, small_disk):
    verb = make(name)
    _, expected = uninterrupted(verb, place)
    needed = size_of(place)
    clear(place)
    verb.before(place)
    there = size_of(place)
    clear(place)
    problems = []
    small_disk(1 << 30)
    for room in ROOM:
        small_disk(1 << 30)
        clear(place)
        verb.before(place)
        before = all_files(place)
        small_disk(there + max(PAGE, int(room * (needed - there))))
        done = run(verb.argv, place, patches=verb.patches)
        small_disk(1 << 30)
        if done.code == 0:
            continue
        message = told(done, place)
        wrong = problems_of(verb, place, before, expected)
        lost, other = finished(verb, place, expected)
        table.add("disk full", name, 1, bool(lost), bool(wrong or other), message)
        problems += [f"room {room}: lost {lost}, wrong {wrong + other}"] * bool(lost or wrong or other)
    assert not problems, "\n".join(problems)


@pytest.mark.faults
@pytest.mark.parametrize("name", NAMES)
def test_on_a_disk_that_can_only_be_read_it_says_so(name, make, place, table, small_disk):
    verb = make(name)
    small_disk(1 << 30)
    _, expected = uninterrupted(verb, place)
    clear(place)
    verb.before(place)
    before = all_files(place)
    small_disk(writable=False)
    done = run(verb.argv, place, patches=verb.patches)
    message = told(done, place)
    assert all_files(place) == before
    small_disk(writable=True)
    lost, wrong = finished(verb, place, expected)
    table.add("disk can only be read", name, 1, bool(lost), bool(wrong), message)
    assert not lost and not wrong
