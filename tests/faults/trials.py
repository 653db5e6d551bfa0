"""A verb without a fault, and killed and started again until it is done; what came of both is compared."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from faulty_runs import Fault, Run, run
from verbs import Verb


def clear(place: Path) -> None:
    """Delete all that is in a folder."""
    for path in place.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def uninterrupted(verb: Verb, place: Path) -> tuple[Run, dict[str, Any]]:
    """The run, and what comes of it."""
    clear(place)
    verb.before(place)
    done = run(verb.argv, place, patches=verb.patches)
    assert done.code == 0, done.printed
    return done, verb.outcome(place)


def killed_and_done(verb: Verb, place: Path, faults: Sequence[Fault], expected) -> tuple[int, dict[str, Any]]:
    """Run, be killed, and run again until it is done; returns how often it was killed, and what came of it."""
    clear(place)
    verb.before(place)
    killed = 0
    for fault in faults:
        done = run(verb.argv, place, fault, verb.patches)
        assert done.was_killed or done.code == 0, f"{fault}: {done.printed}"
        if not done.was_killed:
            return killed, verb.outcome(place)
        killed += 1
        verb.halfway(place, expected)
    done = run(verb.argv, place, patches=verb.patches)
    assert done.code == 0, f"{faults}: {done.printed}"
    return killed, verb.outcome(place)


def compared(found: dict[str, Any], expected: dict[str, Any]) -> tuple[list[str], list[str]]:
    """(what is missing or was not to be there, what differs)."""
    lost = sorted(found.keys() ^ expected.keys())
    return lost, sorted(name for name in found.keys() & expected.keys() if found[name] != expected[name])
