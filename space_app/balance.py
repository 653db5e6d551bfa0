"""Where routing goes, and how far apart the views of a catalogue lie: numbers and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moon2_training.encode import VIEWS, Encoder, Views
from moon2_training.training_report import VIEW_COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMED_EXPERTS = 16  # more are drawn without numbers in their cells
VIEW_COLOURS_ON_DARK = dict(zip(VIEWS, ("#56b4e9", "#ff8a4c", "#2ec4a0"), strict=True))
VIEW_MARKS = dict(zip(VIEWS, ("o", "s", "^"), strict=True))  # beside the colour
MAP_PRODUCTS = 500  # points of each view at most, more would hide each other


@dataclass(frozen=True)
class ExpertLoad:
    """How a model's experts share the tokens of a sample of products.

    Attributes:
        load: (3, layers, Z) each expert's share of a view's assignments, for text, image and multimodal inputs; a row
            adds up to 1, or is 0 where no product has the view.
        tokens: (3,) routed tokens of each view.
        layers: numbers of the mixture layers.
        experts_per_token: k.
    """

    load: np.ndarray
    tokens: np.ndarray
    layers: list[int]
    experts_per_token: int


@dataclass(frozen=True)
class ModalityGap:
    """A catalogue's views in the plane, and how far apart their centres lie.

    Attributes:
        points: (n, 2) float32 for each view: the products that have text and image; first along the line from the
            centroid of the texts to that of the images, then along the principal axis of the rest.
        explained: (2,) share of the variance that each axis holds.
        distances: Euclidean distance between the centroids of two views, by (view, view), in the full space, where
            vectors have length 1.
        own: for the same pairs the mean cosine similarity of the two views of one product.
        other: for the same pairs the mean cosine similarity of a view of one product and the other view of another.
    """

    points: dict[str, np.ndarray]
    explained: np.ndarray
    distances: dict[tuple[str, str], float]
    own: dict[tuple[str, str], float]
    other: dict[tuple[str, str], float]


def expert_load(encoder: Encoder, items: Sequence[dict[str, Any]]) -> ExpertLoad:
    """Count which experts the tokens of products go to, by view.

    Args:
        encoder: of a mixture of experts.
        items: the sample; those with text and image count in all three views, others in the view they have.

    Raises:
        ValueError: the model is dense, or an item cannot be read.
    """
    config = encoder.model.config.get_text_config()
    layers = [layer for layer in range(config.num_hidden_layers) if config.is_moe_layer(layer)]
    if not layers:
        raise ValueError("the model is dense: it has no experts to choose from; load one with num_experts > 0")
    counts = torch.zeros(len(VIEWS), len(layers), config.num_experts)
    tokens = torch.zeros(len(VIEWS))
    for routing in encoder.routing(items, progress=False):
        counts += routing.expert_counts.sum(2).cpu()  # (3, layers, Z)
        tokens += routing.token_counts.sum(1).cpu()
    load = counts / counts.sum(-1, keepdim=True).clamp(min=1)
    return ExpertLoad(load.numpy(), tokens.numpy().astype(np.int64), layers, config.num_experts_per_tok)


def modality_gap(views: Views) -> ModalityGap:
    """Measure the gap between the views of a catalogue, and project them on a plane.

    The first axis leads from the centroid of the texts to that of the images, so the gap is drawn at its true length;
    the principal axes alone may miss it, as products can differ more than their views do. The second is the principal
    axis of what is left.

    Args:
        views: of N products, as `Encoder.encode_views` gives them.

    Raises:
        ValueError: fewer than two products have text and image, so there is nothing to compare.

    Reference: Liang et al., "Mind the Gap: Understanding the Modality Gap in Multi-modal Contrastive Representation
    Learning", NeurIPS 2022, arXiv 2203.02053.
    """
    both = views.has_text & views.has_image  # (N,)
    if both.sum() < 2:
        raise ValueError(
            f"{both.sum()} of {len(both)} products have text and image; the gap between views needs two or more"
        )
    vectors = {view: getattr(views, view)[both] for view in VIEWS}  # each (n, D)
    together = np.concatenate(list(vectors.values()))  # (3n, D)
    centred = together - together.mean(0)
    gap = vectors["image"].mean(0) - vectors["text"].mean(0)
    first = gap / max(float(np.linalg.norm(gap)), np.finfo(np.float32).tiny)
    rest = centred - np.outer(centred @ first, first)
    second = np.linalg.eigh(rest.T @ rest)[1][:, -1]
    second *= np.sign(second[np.abs(second).argmax()])  # else the picture could turn over from run to run
    places = np.stack([centred @ first, centred @ second], axis=1).astype(np.float32)
    explained = np.square(places).sum(0) / max(float(np.square(centred).sum()), np.finfo(np.float32).tiny)
    distances, own, other = {}, {}, {}
    for pair in (("text", "image"), ("text", "multimodal"), ("image", "multimodal")):
        a, b = (vectors[view] for view in pair)
        distances[pair] = float(np.linalg.norm(a.mean(0) - b.mean(0)))
        of_own, number = float((a * b).sum()), len(a)
        own[pair] = of_own / number
        other[pair] = (float(a.sum(0) @ b.sum(0)) - of_own) / (number * (number - 1))
    points = dict(zip(VIEWS, np.split(places, len(VIEWS)), strict=True))
    return ModalityGap(points, explained, distances, own, other)


def draw_expert_load(load: ExpertLoad, ink: str = "#1d1d1f") -> Figure:
    """Draw the load of every expert in every mixture layer, one panel per view.

    Args:
        load: what to draw.
        ink: colour of all text; the background is transparent.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.colors import TwoSlopeNorm

    num_layers, num_experts = load.load.shape[1:]
    even = 1 / num_experts
    figure = _figure(11, 1.7 + 0.42 * max(num_layers, 3))
    panels = figure.subplots(1, len(VIEWS), sharey=True)
    scale = TwoSlopeNorm(even, 0, max(2 * even, float(load.load.max())))
    for axes, view, shares, tokens in zip(panels, VIEWS, load.load, load.tokens.tolist(), strict=True):
        axes.set_label(view)
        _dress(axes, ink)
        axes.set_title(f"{view.capitalize()} inputs", loc="left", size=11, color=ink)
        axes.set_xlabel(f"expert  ·  {tokens:,} tokens" if tokens else "no product has this view", color=ink, size=9)
        axes.set_xticks(range(0, num_experts, 1 if num_experts <= NAMED_EXPERTS else num_experts // 8))
        axes.set_yticks(range(num_layers), [f"layer {layer}" for layer in load.layers])
        if not tokens:
            axes.set_xlim(-0.5, num_experts - 0.5)
            continue
        image = axes.imshow(shares, cmap="PuOr_r", norm=scale, aspect="auto")
        for row, column in np.ndindex(*shares.shape) if num_experts <= NAMED_EXPERTS else ():
            share = shares[row, column]
            strong = abs(float(scale(share)) - 0.5) > 0.3
            colour = "white" if strong else "#1d1d1f"
            axes.text(column, row, f"{share:.0%}", ha="center", va="center", size=9, color=colour)
    if load.tokens.any():
        bar = figure.colorbar(image, ax=list(panels), shrink=0.9, pad=0.015, aspect=12)
        bar.set_ticks([0, even, scale.vmax], labels=["0%", f"{even:.0%} even", f"{scale.vmax:.0%}"])
        bar.ax.tick_params(colors=ink, labelsize=8.5, length=0)
        bar.outline.set_visible(False)
    figure.suptitle(
        f"Share of each expert in a layer's work; every token goes to {load.experts_per_token} of {num_experts}",
        x=0.01, ha="left", size=10, color=ink,
    )  # fmt: skip
    return figure


def draw_modality_gap(gap: ModalityGap, ink: str = "#1d1d1f") -> Figure:
    """Draw the views of a catalogue in the plane, coloured by view, with the size of the gap.

    Args:
        gap: what to draw.
        ink: colour of all text; the background is transparent.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = _figure(8, 6)
    axes = figure.subplots()
    _dress(axes, ink)
    number = len(gap.points["text"])
    shown = np.linspace(0, number - 1, min(number, MAP_PRODUCTS)).astype(int)
    colours = VIEW_COLOURS_ON_DARK if _is_light(ink) else VIEW_COLOURS
    for view, points in gap.points.items():
        axes.scatter(*points[shown].T, s=14, marker=VIEW_MARKS[view], color=colours[view], alpha=0.6, linewidths=0,
                     label=view)  # fmt: skip
    for view, points in gap.points.items():
        mark = {"marker": VIEW_MARKS[view], "color": colours[view], "edgecolor": ink}
        axes.scatter(*points.mean(0), s=190, linewidths=1.8, zorder=3, **mark)
    ends = np.stack([gap.points["text"].mean(0), gap.points["image"].mean(0)])
    axes.plot(*ends.T, color=ink, linewidth=1.2, linestyle=(0, (4, 3)), zorder=2.5)
    axes.set_aspect("equal", adjustable="datalim")
    along, across = gap.explained
    axes.set_xlabel(f"from the centre of text to that of image, {along:.0%} of the variance", color=ink, size=9)
    axes.set_ylabel(f"principal axis of the rest, {across:.0%}", color=ink, size=9)
    pair = ("text", "image")
    own, other = (round(cosines[pair], 2) + 0.0 for cosines in (gap.own, gap.other))  # no -0.00
    axes.set_title(
        f"Modality gap: {gap.distances[pair]:.2f} between the centres of text and image (large marks)\n"
        f"Cosine of title and picture: {own:.2f} of one product, {other:.2f} of two",
        loc="left", size=10.5, color=ink,
    )  # fmt: skip
    legend = axes.legend(frameon=False, labelcolor=ink, loc="best", markerscale=1.8)
    for handle in legend.legend_handles:
        handle.set_alpha(1)
    return figure


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib; pip install 'moon2[space]'") from error
    return Figure(figsize=(width, height), layout="constrained", facecolor="none")


def _is_light(colour: str) -> bool:
    from matplotlib.colors import to_rgb

    return sum(to_rgb(colour)) > 1.5


def _dress(axes: Axes, ink: str) -> None:
    axes.set_facecolor("none")
    axes.tick_params(colors=ink, labelsize=8.5, length=0)
    axes.spines[:].set_visible(False)
