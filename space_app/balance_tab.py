"""The tab that shows where routing goes and how far apart the catalogue's views lie."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np

from moon2_training.encode import VIEWS, Encoder, Views
from moon2_training.vector_columns import VECTOR_COLUMNS, vector_column

from .balance import (
    ExpertLoad,
    ModalityGap,
    draw_expert_load,
    draw_modality_gap,
    expert_load,
    modality_gap,
)
from .indexed_rows import PRODUCT_COLUMNS, row_item
from .live_catalogue import LiveCatalogue
from .product_cards import data_url, message
from .theme import INK, LIGHT_INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLE, MAX_SAMPLE = 120, 1000
GAP_SAMPLE = 2000  # vectors that are there already
AT_A_TIME = 16  # products, so that searches get their turn between
DPI = 120


def build_balance_tab(catalogue: LiveCatalogue, limits: Mapping[str, Any]) -> None:
    """Build the tab.

    Args:
        catalogue: whose products and model are looked at.
        limits: of its events, for Gradio's queue.
    """
    with gr.Row(elem_classes="m2-ask"):
        sample = gr.Slider(
            20, MAX_SAMPLE, SAMPLE, step=20, label="Products to look at", scale=4, min_width=220, elem_id="sample"
        )
        go = gr.Button("Measure", variant="primary", scale=1, min_width=120, elem_id="measure")
    load = gr.HTML(
        message("Which experts the tokens of text, of pictures and of both go to, and how far apart the two lie."),
        elem_id="expert-load", apply_default_css=False,
    )  # fmt: skip
    gap = gr.HTML(elem_id="modality-gap", apply_default_css=False)
    options = {"api_visibility": "private", **limits}
    go.click(lambda count: shown_gap(catalogue), sample, gap, show_progress="minimal", **options)
    go.click(lambda count: shown_load(catalogue, round(count)), sample, load, show_progress="full", **options)


def measured_load(catalogue: LiveCatalogue, count: int) -> ExpertLoad:
    """The expert load of a sample of the catalogue.

    Raises:
        ValueError: the catalogue is empty, or the model is dense.
    """
    if not 1 <= count <= MAX_SAMPLE:
        raise ValueError(f"sample={count}; give 1 to {MAX_SAMPLE:,}")
    now = catalogue.now
    ids = _spread(now.index.ids(), count)
    parts: list[ExpertLoad] = []
    for start in range(0, len(ids), AT_A_TIME):
        rows = now.index.products(ids[start : start + AT_A_TIME], PRODUCT_COLUMNS).values()
        parts.append(now.encoder.run(_load, [row_item(row) for row in rows]))
    if not parts:
        raise ValueError("the catalogue is empty; add products first")
    tokens = np.stack([part.tokens for part in parts])  # (P, 3)
    shares = np.stack([part.load for part in parts])  # (P, 3, layers, Z)
    weights = tokens / np.maximum(tokens.sum(0), 1)
    load = (shares * weights[:, :, None, None]).sum(0)  # every token has as many assignments
    return ExpertLoad(load, tokens.sum(0), parts[0].layers, parts[0].experts_per_token)


def measured_gap(catalogue: LiveCatalogue, count: int = GAP_SAMPLE) -> ModalityGap:
    """The modality gap of a sample of the catalogue, from the vectors of its index.

    Raises:
        ValueError: fewer than two products have text and image.
    """
    index = catalogue.now.index
    rows = list(index.products(_spread(index.ids(), count), VECTOR_COLUMNS).values())
    vectors = {view: [row[vector_column(view)] for row in rows] for view in VIEWS}
    there = {view: np.array([vector is not None for vector in of_view], bool) for view, of_view in vectors.items()}
    filled = []
    for view in VIEWS:
        of_view = np.zeros((len(rows), index.manifest["dimension"]), dtype=np.float32)
        for row in np.flatnonzero(there[view]):
            of_view[row] = vectors[view][row]
        filled.append(of_view)
    return modality_gap(Views(*filled, there["text"], there["image"]))


def shown_load(catalogue: LiveCatalogue, count: int) -> str:
    """The expert load as HTML."""
    try:
        load = measured_load(catalogue, count)
    except ValueError as error:
        return message(str(error), "error")
    even = 1 / load.load.shape[-1]
    alt = "; ".join(
        f"{view} inputs, {tokens:,} tokens: experts take from {of_view.min():.0%} to {of_view.max():.0%}"
        for view, of_view, tokens in zip(VIEWS, load.load, load.tokens.tolist(), strict=True)
        if tokens
    )
    return _figure(lambda ink: draw_expert_load(load, ink), f"Expert load by layer, {even:.0%} is even. {alt}")


def shown_gap(catalogue: LiveCatalogue) -> str:
    """The modality gap as HTML."""
    try:
        gap = measured_gap(catalogue)
    except ValueError as error:
        return message(str(error), "error")
    distance = gap.distances[("text", "image")]
    alt = f"Texts, pictures and both in the plane; the centres of text and image lie {distance:.2f} apart"
    return _figure(lambda ink: draw_modality_gap(gap, ink), alt)


def _load(encoder: Encoder, items: list[dict[str, Any]]) -> ExpertLoad:
    return expert_load(encoder, items)


def _spread(ids: list[str], count: int) -> list[str]:
    """So many ids, evenly over all."""
    return [ids[place] for place in np.linspace(0, len(ids) - 1, min(count, len(ids))).astype(int)]


def _figure(draw: Callable[[str], Figure], alt: str) -> str:
    pictures = "".join(
        f'<img class="m2-figure {style}" src="{data_url(_png(draw(ink)), "png")}" alt="{escape(alt)}">'
        for ink, style in ((INK, "m2-on-light"), (LIGHT_INK, "m2-on-dark"))
    )
    return f'<section class="m2-panel">{pictures}</section>'


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
