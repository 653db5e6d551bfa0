"""How messages name the rows of a table, and the refusal of wrong ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Names = str | Sequence[tuple[str, int]]


class SchemaError(ValueError):
    """A products or queries table breaks the schema; the message names file, row (counted from 0) and way out."""


class Rows:
    """The rows of a table as messages name them, also where the table was read from several files."""

    def __init__(self, names: Names, num_rows: int) -> None:
        self.parts = [(names, num_rows)] if isinstance(names, str) else list(names)
        self.label = ", ".join(name for name, _ in self.parts)
        self.ends = np.cumsum([rows for _, rows in self.parts])

    def place(self, row: int) -> str:
        part = int(np.searchsorted(self.ends, row, side="right"))
        name, rows = self.parts[part]
        return f"{name} row {row - int(self.ends[part]) + rows}"

    def refuse(self, bad: np.ndarray, what: str | Callable[[int], str], way_out: str) -> None:
        """Raise if any row is bad: name the first and count the others."""
        wrong = np.flatnonzero(bad)
        if len(wrong):
            row = int(wrong[0])
            others = f", and {len(wrong) - 1} more row{'s' * (len(wrong) > 2)}" if len(wrong) > 1 else ""
            raise SchemaError(f"{self.place(row)}: {what if isinstance(what, str) else what(row)}{others}; {way_out}")

    def refuse_repeats(self, codes: np.ndarray, what: Callable[[int], str], way_out: str) -> None:
        """Raise if a code (one integer per row) comes twice."""
        _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
        origin = first[inverse]
        self.refuse(
            origin != np.arange(len(codes)),
            lambda row: f"{what(row)} is already in {self.place(int(origin[row]))}",
            way_out,
        )

    def refuse_entries(
        self, column: str, lists: pa.ChunkedArray, bad: np.ndarray, what: str | Callable[[int], str], way_out: str
    ) -> None:
        """Raise if an entry is bad, with `bad` over the entries of all lists in a row and `what` told the entry."""
        wrong = np.flatnonzero(bad)
        if len(wrong):
            parents = pc.list_parent_indices(lists).to_numpy()
            entry = int(wrong[0])
            position = entry - int(np.searchsorted(parents, parents[entry]))
            rows = np.isin(np.arange(len(lists)), parents[wrong])
            self.refuse(rows, f"{column}[{position}] {what if isinstance(what, str) else what(entry)}", way_out)
