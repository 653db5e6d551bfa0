"""One input of a target: what it may raise, how long it may take, what memory it may take, and the table of a run."""

from __future__ import annotations

import faulthandler
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings

PROFILES = {"whole": 70_000, "tenth": 7_000}  # examples, of which each test gets its share; some are two inputs
FEW_INPUTS = 1_000  # without a profile
LONGEST = 5.0  # seconds of one input, of this process's own so that other work beside it does not count
STUCK = 300.0  # seconds of anybody's, after which a process that only waits is ended with its traceback
MOST_MEMORY = 2 << 30  # bytes that the process may grow by

for name, inputs in PROFILES.items():
    settings.register_profile(name, max_examples=inputs, deadline=None, print_blob=True)


class TookTooLong(Exception):
    """An input over its time."""


@dataclass
class Tally:
    """What became of a target's inputs.

    Attributes:
        before: bytes that the process had when the first came.
        peak: most bytes that it has had since.
    """

    before: int
    inputs: int = 0
    refused: int = 0
    crashes: int = 0
    slowest: float = 0.0
    peak: int = 0


TALLIES: dict[str, Tally] = {}


def is_long_run() -> bool:
    """Whether one of the profiles is chosen."""
    return settings.get_current_profile_name() in PROFILES


def fuzzed(share: float, **strategies: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test on its share of all inputs; always the same few, unless a profile is chosen."""
    is_long = is_long_run()
    chosen = settings(
        max_examples=max(1, round(share * (settings.default.max_examples if is_long else FEW_INPUTS))),
        deadline=None,  # `watched` has its own
        derandomize=not is_long,
        phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    return lambda test: chosen(given(**strategies)(test))


@contextmanager
def watched(target: str, *refusals: type[BaseException]) -> Iterator[None]:
    """Run a target on one input.

    Args:
        target: name of its line in the table.
        refusals: what it may raise, as its docstring says.

    Raises:
        AssertionError: a refusal without one, or the process grew over the limit.
        TookTooLong: over `LONGEST`.
    """
    if target not in TALLIES:
        _forget_peak()
        TALLIES[target] = Tally(_status("VmRSS"))
    tally = TALLIES[target]
    on_main_thread = threading.current_thread() is threading.main_thread()
    if on_main_thread:
        before = signal.signal(signal.SIGPROF, _over)
        signal.setitimer(signal.ITIMER_PROF, LONGEST)
        faulthandler.dump_traceback_later(STUCK, exit=True, file=sys.__stderr__)
    begin = time.process_time()
    try:
        yield
    except refusals as error:
        if isinstance(error, UnicodeError) or not str(error).strip():
            tally.crashes += 1
            raise AssertionError(f"{type(error).__name__} that says nothing to who gave the input: {error}") from error
        tally.refused += 1
    except BaseException:
        tally.crashes += 1
        raise
    finally:
        if on_main_thread:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)
            faulthandler.cancel_dump_traceback_later()
        tally.inputs += 1
        tally.slowest = max(tally.slowest, time.process_time() - begin)
        tally.peak = max(tally.peak, _status("VmHWM"))
    grown = tally.peak - tally.before
    assert grown < MOST_MEMORY, f"{target}: the process grew by {grown >> 20} MB"


def table() -> str:
    """What became of all inputs, as Markdown."""
    lines = [
        "| target | inputs | refused with a message | crashes | slowest, ms of CPU | most memory of the process, MB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {name} | {tally.inputs:,} | {tally.refused:,} | {tally.crashes:,} | {1000 * tally.slowest:,.0f} "
        f"| {tally.peak >> 20:,} |"
        for name, tally in TALLIES.items()
    ]
    total = [sum(getattr(tally, name) for tally in TALLIES.values()) for name in ("inputs", "refused", "crashes")]
    slowest = max((tally.slowest for tally in TALLIES.values()), default=0.0)
    peak = max((tally.peak for tally in TALLIES.values()), default=0)
    counts = " | ".join(f"{count:,}" for count in total)
    return "\n".join([*lines, f"| all | {counts} | {1000 * slowest:,.0f} | {peak >> 20:,} |"])


def _over(*_: Any) -> None:
    raise TookTooLong(f"over {LONGEST:g} s")


def _status(name: str) -> int:
    """Bytes of a line of /proc/self/status, or the peak of all times where there is none."""
    try:
        found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    return 1024 * (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # the peak of earlier targets then counts too
        pass
