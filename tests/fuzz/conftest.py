"""The table of a long run."""

from __future__ import annotations

from watched import TALLIES, is_long_run, table


def pytest_terminal_summary(terminalreporter):
    if TALLIES and is_long_run():
        terminalreporter.section("what became of the inputs")
        terminalreporter.write_line(table())
