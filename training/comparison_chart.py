"""A bar chart of Recall@10: grouped by direction, one colour a model, with intervals, chance and ceiling."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .retrieval import DIRECTIONS
from .training_report import FAINT, GRID, INK

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

# Wong, "Points of view: Color blindness", Nature Methods 2011
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#8c8c91")
BAR, GAP, MARGIN = 0.34, 0.45, 1.2  # inches
MOST_WIDTH = 16.0  # inches; with more models the bars grow narrow
LIMITS = {"chance": ((0, (2, 2)), INK), "ceiling": ("solid", FAINT)}  # line and colour
NUMBERED = 4  # so many models have room for their numbers over the bars


def write_comparison_chart(names: Sequence[str], results: Sequence[dict], path: str | os.PathLike) -> None:
    """Draw the chart and save it as PNG, whole or not at all.

    Args and Raises: as `draw_comparison_chart`.
    """
    part = f"{os.fspath(path)}.part"
    draw_comparison_chart(names, results).savefig(part, format="png")
    os.replace(part, path)


def draw_comparison_chart(names: Sequence[str], results: Sequence[dict]) -> Figure:
    """Draw Recall@10 of every direction that a model was scored in.

    Args:
        names: what to call each model.
        results: of each, from `evaluate_encoder` on one benchmark.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch
    except ImportError as error:
        raise ImportError("the chart needs matplotlib; pip install 'moon2[space]'") from error
    many = len(names) > len(COLOURS)
    colours = colormaps["turbo"](np.linspace(0.05, 0.95, len(names))) if many else COLOURS
    group = len(names) * BAR + GAP  # inches
    width = min(MARGIN + len(DIRECTIONS) * group, MOST_WIDTH)
    rows = -(-(len(names) + 2) // 4)  # of the legend
    figure = Figure(figsize=(max(width, 6.4), 3.6 + 0.25 * rows), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    bar = BAR / group
    marks: list[Artist] = []  # of the legend
    for place, (name, result) in enumerate(zip(names, results, strict=True)):
        scored = [i for i, direction in enumerate(DIRECTIONS) if "recall@10" in result["retrieval"][direction.key]]
        scores = [result["retrieval"][DIRECTIONS[i].key]["recall@10"] for i in scored]
        x = np.array(scored) + (place - (len(names) - 1) / 2) * bar
        value, low, high = (100 * np.array([score[end] for score in scores]) for end in ("value", "low", "high"))
        axes.bar(x, value, 0.9 * bar, color=colours[place])
        marks.append(Patch(color=colours[place], label=name))
        axes.errorbar(x, value, [value - low, high - value], fmt="none", ecolor=INK, elinewidth=1, capsize=2.5)
        for at, share, top in zip(x, value, high, strict=True) if len(names) <= NUMBERED else ():
            axes.text(at, top + 1.5, f"{share:.1f}", ha="center", va="bottom", size=7.5, color=INK)
    for kind, (style, colour) in LIMITS.items():
        shares = _limits(results, kind)
        places = np.array([i for i, share in enumerate(shares) if share is not None])
        half = len(names) * bar / 2 + 0.05
        axes.hlines(100 * np.array([shares[i] for i in places]), places - half, places + half, color=colour,
                    linestyle=style, linewidth=1.2)  # fmt: skip
    axes.set_xticks(range(len(DIRECTIONS)), [direction.name for direction in DIRECTIONS], size=10, color=INK)
    axes.set_xlim(-0.5, len(DIRECTIONS) - 0.5)
    axes.set_ylim(0, 108)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("Recall@10, %", size=9.5, color=INK)
    axes.tick_params(axis="both", length=0, labelcolor=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    first = results[0]
    title = f"{first['num_queries']:,} queries, {first['num_products']:,} products; whiskers: 95 % intervals"
    axes.set_title(title, loc="left", size=9.5, color=FAINT)
    marks += [Line2D([], [], color=colour, linestyle=style, label=kind) for kind, (style, colour) in LIMITS.items()]
    figure.legend(handles=marks, loc="outside upper left", ncols=min(4, len(marks)), frameon=False, fontsize=9,
                  labelcolor=INK)  # fmt: skip
    return figure


def _limits(results: Sequence[dict], kind: str) -> list[float | None]:
    """Chance or ceiling of each direction, from the first model that was scored in it."""
    return [
        next((r[f"{kind}_recall@10"] for result in results if "recall@10" in (r := result["retrieval"][key])), None)
        for key, *_ in DIRECTIONS
    ]
