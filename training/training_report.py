"""A picture of a training run: losses, objective weights, experts, temperatures and scores over the steps."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from transformers import TrainerCallback

from .losses import OBJECTIVES, VIEWS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GRID = "#1d1d1f", "#6e6e73", "#e5e5ea"
# Wong, "Points of view: Color blindness", Nature Methods 2011; one colour per objective in every panel
OBJECTIVE_COLOURS = dict(zip(OBJECTIVES, ("#0072b2", "#d55e00", "#009e73", "#aa4f8b", "#b8860b"), strict=True))
VIEW_COLOURS = {view: OBJECTIVE_COLOURS[f"inter_{view}"] for view in VIEWS}
DIRECTION_COLOURS = {  # a direction has the colour of the objective that trains it
    "t2mm": OBJECTIVE_COLOURS["inter_text"],
    "i2mm": OBJECTIVE_COLOURS["inter_image"],
    "mm2mm": OBJECTIVE_COLOURS["inter_multimodal"],
    "t2i": OBJECTIVE_COLOURS["intra_positive"],
    "i2t": OBJECTIVE_COLOURS["intra_negative"],
    "mean": INK,
}
FILTER_COLOURS = {"kept_share": INK, "mean_phi": "#56b4e9", "margin": "#b8860b"}

MOST_POINTS = 200  # of a curve; further log lines are averaged into so many
MOST_EPOCHS = 20  # drawn as vertical lines
NAMED_EXPERTS = 8  # more are drawn without their numbers
WIDTH, ROW_HEIGHT, HEADER, FOOTER = 12.0, 2.5, 0.75, 0.5  # inches at 100 dots each
LABEL_WIDTH, TICK_WIDTH, GAP = 1.55, 0.55, 0.62  # inches: right and left of a panel, between two rows

Curve = tuple[np.ndarray, np.ndarray]  # steps, values


class TrainingReportCallback(TrainerCallback):
    """Draws the run into `output_dir`/training_report.png whenever the model is saved, and at the end.

    A picture that cannot be drawn, for want of matplotlib or of a log, is a warning with the reason; training goes on.
    """

    def on_save(self, args, state, control, **kwargs):
        self._write(args, state)

    def on_train_end(self, args, state, control, **kwargs):
        self._write(args, state)

    def _write(self, args, state) -> None:
        if not state.is_world_process_zero:
            return
        try:
            write_training_report(state.log_history, os.path.join(args.output_dir, "training_report.png"))
        except Exception as error:  # whatever is wrong with a picture, hours of training must not be lost to it
            warnings.warn(f"no training report: {type(error).__name__}: {error}", stacklevel=2)


def write_training_report(log_history: Sequence[Mapping[str, float]], path: str | os.PathLike) -> None:
    """Draw a training log as a PNG, 1200 pixels wide.

    Args:
        log_history: of a `Moon2Trainer`'s state, or of a trainer_state.json.
        path: file to write; its folder is made.

    Raises:
        ValueError: the log has no line of training.
        ImportError: matplotlib is not installed.
    """
    figure = draw_training_report(log_history)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    figure.savefig(path, format="png", dpi=100, pil_kwargs={"optimize": True})


def draw_training_report(log_history: Sequence[Mapping[str, float]]) -> Figure:
    """Draw the panels for which a training log has numbers; arguments and errors as for `write_training_report`.

    Every panel is an `Axes` whose label, as `get_label` gives it, is one of loss, weight, expert_load/VIEW,
    routing_entropy, temperature, learning_rate, filter, evaluation.
    """
    lines = [line for line in log_history if "loss" in line]
    if not lines:
        raise ValueError("the log has no line with a loss; train for longer, or lower logging_steps")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the training report needs matplotlib; pip install 'moon2[space]'") from error

    curves = _read_curves(log_history)
    rows = [row for row in _choose_panels(curves) if row]
    figure = Figure(figsize=(WIDTH, HEADER + len(rows) * (ROW_HEIGHT + GAP) + FOOTER - GAP), facecolor="white")
    height = figure.get_figheight()
    last = lines[-1]
    figure.text(TICK_WIDTH / WIDTH, 1 - 0.3 / height, "Training report", size=14, weight="bold", color=INK)
    figure.text(
        TICK_WIDTH / WIDTH + 0.14, 1 - 0.3 / height, _headline(log_history, curves, last), size=9.5, color=FAINT
    )
    epochs = _epoch_ends(last)
    for number, row in enumerate(rows):
        top = height - HEADER - number * (ROW_HEIGHT + GAP)
        cell = WIDTH / len(row)
        for column, panel in enumerate(row):
            place = (column * cell + TICK_WIDTH, top - ROW_HEIGHT, cell - TICK_WIDTH - LABEL_WIDTH, ROW_HEIGHT)
            axes = figure.add_axes(
                (place[0] / WIDTH, place[1] / height, place[2] / WIDTH, place[3] / height), label=panel
            )
            _dress(axes, epochs, log_history[-1]["step"], bottom=number == len(rows) - 1)
            _draw_panel(axes, panel, curves)
    return figure


def _read_curves(log_history: Sequence[Mapping[str, float]]) -> dict[str, Curve]:
    """Steps and values of every logged number that is ever finite."""
    points: dict[str, list[tuple[int, float]]] = {}
    for line in log_history:
        for key, value in line.items():
            if isinstance(value, int | float) and math.isfinite(value):
                points.setdefault(key, []).append((line["step"], value))
    return {key: _thin(*np.array(of_key, dtype=float).T) for key, of_key in points.items()}


def _thin(steps: np.ndarray, values: np.ndarray) -> Curve:
    """At most MOST_POINTS points, each the mean over neighbouring log lines."""
    if len(steps) <= MOST_POINTS:
        return steps, values
    edges = np.linspace(0, len(steps), MOST_POINTS + 1).astype(int)
    counts = np.diff(edges)
    return tuple(np.add.reduceat(numbers, edges[:-1]) / counts for numbers in (steps, values))


def _choose_panels(curves: Mapping[str, Curve]) -> list[list[str]]:
    """Labels of the panels of every row, as far as the log has their numbers."""
    kinds = {key.split("/")[0] for key in curves}
    scored = any(_is_recall(key) for key in curves)
    return [
        ["loss"] + ["weight"] * ("weight" in kinds),
        [f"expert_load/{view}" for view in VIEWS if f"expert_load/{view}/0" in curves],
        [panel for panel in ("routing_entropy", "temperature", "learning_rate") if panel in kinds],
        ["filter"] * ("filter" in kinds) + ["evaluation"] * scored,
    ]


def _draw_panel(axes: Axes, panel: str, curves: Mapping[str, Curve]) -> None:
    kind, _, view = panel.partition("/")
    match kind:
        case "loss":
            lines = {"total": (curves["loss"], INK)} | _of_objectives("loss", curves)
            positive = all((values > 0).all() for (_, values), _ in lines.values())
            scale = "log" if positive else "linear"  # an objective without negatives has loss 0
            axes.set_yscale(scale)
            _draw_lines(axes, f"Loss: total and of every objective ({scale} scale)", lines)
        case "weight":
            axes.axhline(1, color=FAINT, linewidth=0.8, linestyle=":")
            _draw_lines(axes, "Objective weights M·ω (dotted: uniform)", _of_objectives("weight", curves))
        case "expert_load":
            _draw_load(axes, view, curves)
        case "routing_entropy":
            num_experts = sum(key.startswith("expert_load/text/") for key in curves)
            axes.axhline(math.log(num_experts), color=FAINT, linewidth=0.8, linestyle=":")
            lines = {view: (curves[f"{kind}/{view}"], VIEW_COLOURS[view]) for view in VIEWS}
            _draw_lines(axes, f"Routing entropy in nats (dotted: even, ln {num_experts})", lines)
        case "temperature":
            colours = {"inter": INK, "intra": OBJECTIVE_COLOURS["intra_positive"]}
            lines = {name: (curves[f"{kind}/{name}"], colour) for name, colour in colours.items()}
            _draw_lines(axes, "Temperatures ε (inter) and ε̃ (intra)", lines, "{:.4f}")
        case "learning_rate":
            axes.set_ylim(0, 1.05 * curves[kind][1].max())
            _draw_lines(axes, "Learning rate", {"": (curves[kind], INK)}, "{:.1e}")
        case "filter":
            given = {name: key for name in FILTER_COLOURS if (key := f"filter/{name}") in curves}
            lines = {name.replace("_", " "): (curves[key], FILTER_COLOURS[name]) for name, key in given.items()}
            _draw_lines(axes, "Sample filter", lines)
        case "evaluation":
            given = {name: key for name in DIRECTION_COLOURS if (key := f"eval_{name}_recall@10") in curves}
            lines = {
                name.replace("2", "→"): (_in_percent(curves[key]), DIRECTION_COLOURS[name])
                for name, key in given.items()
            }
            _draw_lines(axes, "Recall@10 in percent", lines, "{:.1f}")


def _of_objectives(kind: str, curves: Mapping[str, Curve]) -> dict[str, tuple[Curve, str]]:
    return {
        name: (curves[f"{kind}/{name}"], colour)
        for name, colour in OBJECTIVE_COLOURS.items()
        if f"{kind}/{name}" in curves
    }


def _draw_lines(axes: Axes, title: str, lines: Mapping[str, tuple[Curve, str]], last_value: str = "{:.2f}") -> None:
    """Curves, each labelled at its right end with its name and last value."""
    axes.set_title(title, loc="left", size=10.5, color=INK)
    ends = []
    for name, ((steps, values), colour) in lines.items():
        marker = "o" if len(steps) <= 12 else None
        axes.plot(steps, values, color=colour, linewidth=1.8, marker=marker, markersize=3.5, label=name)
        ends.append((values[-1], f"{name} {last_value.format(values[-1])}".strip(), colour))
    _label_ends(axes, ends)


def _draw_load(axes: Axes, view: str, curves: Mapping[str, Curve]) -> None:
    """Stacked shares of the experts, expert 0 at the bottom."""
    from matplotlib import colormaps

    keys = [key for z in range(len(curves)) if (key := f"expert_load/{view}/{z}") in curves]
    steps = curves[keys[0]][0]
    shares = [curves[key][1] for key in keys]
    colours = [colormaps["cividis"](z) for z in np.linspace(0.15, 0.95, len(keys))]
    axes.stackplot(steps, shares, colors=colours, edgecolor="white", linewidth=0.8, labels=keys)
    axes.set_ylim(0, 1)
    axes.set_title(f"Expert load: {view} view", loc="left", size=10.5, color=INK)
    if len(keys) <= NAMED_EXPERTS:
        tops = np.cumsum([share[-1] for share in shares])
        _label_ends(
            axes,
            [
                (top - share[-1] / 2, f"expert {z}  {share[-1]:.0%}", INK)
                for z, (top, share) in enumerate(zip(tops, shares, strict=True))
            ],
        )
    else:
        _label_ends(axes, [(0.5, f"{len(keys)} experts", INK)])


def _label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write beside the right end of every line, moved apart where lines end close together."""
    axes.get_ylim()  # settles the limits, which matplotlib leaves open until they are asked for
    to_share = axes.transData + axes.transAxes.inverted()
    wanted = sorted((to_share.transform((0, value))[1], text, colour) for value, text, colour in ends)
    step = 0.165 / ROW_HEIGHT  # of the panel's height, one line of text
    places: list[float] = []
    for share, _, _ in wanted:
        places.append(max(share, places[-1] + step) if places else share)
    # what was pushed up moves down again as a whole, so that the labels stay beside the panel
    ceiling = 1.0
    for index in reversed(range(len(places))):
        places[index] = min(places[index], ceiling)
        ceiling = places[index] - step
    for place, (_, text, colour) in zip(places, wanted, strict=True):
        axes.text(1.02, place, text, transform=axes.transAxes, va="center", size=9, color=colour)


def _dress(axes: Axes, epochs: np.ndarray, last_step: int, bottom: bool) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=FAINT, labelsize=8.5)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for epoch in epochs:
        axes.axvline(epoch, color=GRID, linewidth=0.8)
    axes.set_xlim(0, last_step)
    if bottom:
        axes.set_xlabel("step", size=9, color=FAINT)


def _epoch_ends(last: Mapping[str, float]) -> np.ndarray:
    """Steps at which an epoch ended, none where they would be a hatching."""
    epochs = last.get("epoch", 0.0)
    return np.arange(1, epochs) * last["step"] / epochs if 1 < epochs <= MOST_EPOCHS else np.empty(0)


def _headline(
    log_history: Sequence[Mapping[str, float]], curves: Mapping[str, Curve], last: Mapping[str, float]
) -> str:
    parts = [f"{log_history[-1]['step']:,} steps"]
    if "epoch" in last:
        parts.append(f"{log_history[-1].get('epoch', last['epoch']):.1f} epochs (grey lines)")
    if "train_runtime" in curves:
        parts.append(f"{curves['train_runtime'][1][-1] / 60:,.0f} min")
    lines = sum("loss" in line for line in log_history)
    parts.append(f"{lines:,} log lines" + f", averaged to {MOST_POINTS} points" * (lines > MOST_POINTS))
    return "  ·  ".join(parts)


def _is_recall(key: str) -> bool:
    return key.startswith("eval_") and key.endswith("_recall@10")


def _in_percent(curve: Curve) -> Curve:
    return curve[0], 100 * curve[1]
