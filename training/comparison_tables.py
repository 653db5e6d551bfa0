"""The results of several encoders side by side, as plain text and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import NamedTuple

from moon2_dataset.hub_card import markdown_table, plain_text

from .retrieval import DIRECTIONS

WIDTH = 100  # columns of a terminal
NAME_WIDTH = 26
NOTHING = "–"
COLOUR = re.compile("colou?r", re.IGNORECASE)


class Table(NamedTuple):
    """A table of text.

    Args:
        title: what stands above it.
        head: names of the columns.
        rows: one cell for each of them.
        left: so many columns are names, the others numbers.
    """

    title: str
    head: list[str]
    rows: list[list[str]]
    left: int = 1


def comparison_tables(
    names: Sequence[str], results: Sequence[dict], differences: Mapping[str, Mapping[str, dict]]
) -> list[Table]:
    """Tell what the encoders score, how the others differ from the first, and what they score by slice.

    Args:
        names: what to call each encoder.
        results: of each, from `evaluate_encoder` on one benchmark.
        differences: to the first, from `compare`, by the name of the other.
    """
    tables = [_scores(names, results)]
    if differences:
        tables.append(_differences(names[0], differences))
    return tables + _slices(names, results)


def _scores(names: Sequence[str], results: Sequence[dict]) -> Table:
    tasks = [result["attributes"]["tasks"] for result in results]
    colour = next((name for name in tasks[0] if COLOUR.search(name)), None)
    head = ["", *(direction.name for direction in DIRECTIONS), "mean", "leaf", "attributes", *[colour] * bool(colour)]
    rows = []
    for name, result, attributes in zip(names, results, tasks, strict=True):
        recalls = [_of_direction(result, key, "recall@10") for key, *_ in DIRECTIONS]
        levels = list(result["classification"]["tasks"].values())
        accuracies = [accuracy for task in attributes.values() if (accuracy := _accuracy(task)) is not None]
        row = [*recalls, result["mean_recall@10"], _accuracy(levels[-1]) if levels else None]
        row.append(sum(accuracies) / len(accuracies) if accuracies else None)
        row += [_accuracy(attributes[colour])] if colour else []
        rows.append([name, *map(_percent, row)])
    for name in ("chance", "ceiling"):
        limits = []
        for key, *_ in DIRECTIONS:
            found = (_of_direction(result, key, f"{name}_recall@10") for result in results)
            limits.append(_percent(next((limit for limit in found if limit is not None), None)))
        rows.append([name, *limits, *[""] * (len(head) - len(DIRECTIONS) - 1)])
    return Table(
        f"Recall@10 of {results[0]['num_queries']:,} queries in {results[0]['num_products']:,} products; accuracy of "
        "the finest category (leaf) and of attributes (their mean), from image and title, or from the title alone "
        "where a model takes no image; in percent",
        head,
        rows,
    )


def _differences(first: str, differences: Mapping[str, Mapping[str, dict]]) -> Table:
    rows = []
    for key, name in (*((key, name) for key, name, *_ in DIRECTIONS), ("mean", "mean")):
        cells = [_signed(of_model[key]) if key in of_model else NOTHING for of_model in differences.values()]
        rows.append([name, *cells])
    title = (
        f"Recall@10 less that of {first}, in points, with paired 95 % interval; * where it excludes 0, else neither "
        "is shown to be better"
    )
    return Table(title, ["", *differences], rows)


def _slices(names: Sequence[str], results: Sequence[dict]) -> list[Table]:
    """One table for each column that queries were sliced by."""
    tables = []
    of_models = [[result["retrieval"][key].get("slices", {}) for key, *_ in DIRECTIONS] for result in results]
    every = [slices for of_model in of_models for slices in of_model]
    for column in sorted({column for slices in every for column in slices}):
        rows = []
        for label in sorted({label for slices in every for label in slices.get(column, ())}):
            cells = [[slices.get(column, {}).get(label) for slices in of_model] for of_model in of_models]
            counts = [max(cell["queries"] if cell else 0 for cell in of_key) for of_key in zip(*cells, strict=True)]
            rows.append([label, "queries", *(f"{count:,}" for count in counts)])
            for name, of_model in zip(names, cells, strict=True):
                rows.append(["", name, *(_percent(cell and cell["recall@10"]["value"]) for cell in of_model)])
        head = [column, "", *(direction.name for direction in DIRECTIONS)]
        tables.append(Table(f"Recall@10 by {column}", head, rows, left=2))
    return tables


def _of_direction(result: dict, key: str, metric: str) -> float | None:
    found = result["retrieval"][key].get(metric)
    return found["value"] if isinstance(found, dict) else found


def _accuracy(task: dict) -> float | None:
    metrics = task["image_title"] or task["title"]
    return metrics and metrics["accuracy"]


def _percent(share: float | None) -> str:
    return NOTHING if share is None else f"{100 * share:.1f}"


def _signed(difference: dict) -> str:
    value, low, high = (f"{100 * difference[end]:+.1f}".replace("-", "−") for end in ("value", "low", "high"))
    mark = "*" if difference["low"] > 0 or difference["high"] < 0 else " "
    return f"{value} [{low}, {high}] {mark}"


def as_text(tables: Sequence[Table]) -> str:
    """Write tables for a terminal of 100 columns; one that is wider goes on below, its names repeated."""
    return "\n\n".join(_text(table) for table in tables)


def _text(table: Table) -> str:
    head, *rows = ([_cut(cell) for cell in row] for row in (table.head, *table.rows))
    widths = [2 + max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    names = widths[: table.left]
    lines = [fill(table.title, WIDTH)]
    first = table.left
    while first < len(head):
        last = first + 1
        while last < len(head) and sum(names) + sum(widths[first : last + 1]) <= WIDTH:
            last += 1
        for row in (head, *rows):
            cells = [f"{cell:<{width}}" for cell, width in zip(row[: table.left], names, strict=True)]
            cells += [f"{cell:>{width}}" for cell, width in zip(row[first:last], widths[first:last], strict=True)]
            lines.append("".join(cells).rstrip())
        first = last
    return "\n".join(lines)


def _cut(cell: str) -> str:
    return cell if len(cell) <= NAME_WIDTH else f"…{cell[1 - NAME_WIDTH :]}"


def as_markdown(tables: Sequence[Table], heading: str, picture: str | None) -> str:
    """Write tables as a Markdown document.

    Args:
        tables: from `comparison_tables`.
        heading: of the document.
        picture: file name of the chart beside it; None if there is none.
    """
    parts = [f"# {plain_text(heading)}"]
    if picture:
        parts.append(f"![Recall@10 by direction, with 95 % intervals]({picture})")
    for table in tables:
        rows = [[plain_text(cell) for cell in row] for row in table.rows]
        parts += [f"{plain_text(table.title)}:", markdown_table([plain_text(cell) for cell in table.head], rows)]
    return "\n\n".join(parts) + "\n"
