"""What carries a match: a heat map over the item's picture and a weight for every word of its title."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from modeling_moon2.processing_moon2 import FIELD_SEPARATOR, load_image, text_parts
from moon2_training.encode import Encoder
from moon2_training.items import take_view

SHORT_SIDE_CELLS = 12  # along the shorter side of the map, unless the model itself looks closer
LONG_SIDE_CELLS = 4 * SHORT_SIDE_CELLS  # a longer picture is squeezed
# Han and kana are written without spaces; there a word is one character
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\s\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")

SHOWN_SIDE = 480  # pixels of the longer side of a drawn map, at least
LEGEND_HEIGHT = 46
LEGEND_INK, LEGEND_GROUND = "#f5f5f7", "#1d1d1f"
# dark to light and readable by the colour-blind: positions in 0..1 and colours, in the manner of matplotlib's inferno
HEAT_COLOURS = ((0.0, "#1b0c41"), (0.25, "#6a176e"), (0.5, "#bc3754"), (0.75, "#f3771a"), (1.0, "#fcf6a4"))
HEAT_OPACITY = 0.78  # where the map is hottest


@dataclass(frozen=True)
class Heatmap:
    """What of an item carries its similarity to a query.

    Attributes:
        cells: (h, w) float32 in 0..1 over the item's picture, 1 where it carries most; all 0 where nothing of it
            speaks for the query, None without a picture.
        words: the words of the item's title in order, each with a weight in 0..1, 1 for the word that carries most;
            empty without a title. Weights compare words with each other, not with the picture.
        score: cosine similarity of query and item, as search ranks by.
    """

    cells: np.ndarray | None
    words: list[tuple[str, float]]
    score: float


class _Trace(NamedTuple):
    """One item on its way through the model.

    Args:
        embedding: (D,) of the item.
        relevance: (L,) of every token.
        visual: (L,) bool, which tokens are of the picture.
        words_from: the first token of the title.
        cells: rows and columns of the visual tokens; None without a picture.
    """

    embedding: np.ndarray
    relevance: np.ndarray
    visual: np.ndarray
    words_from: int
    cells: tuple[int, int] | None


def match_heatmap(
    encoder: Encoder, query: Mapping[str, Any], item: Mapping[str, Any], average: np.ndarray | None = None
) -> Heatmap:
    """Map where an item's similarity to a query comes from, with Grad-CAM.

    Images stand before the text and never see it, so attention cannot tell what words have to do with a picture; the
    gradient of the similarity can. With A (N, D) the visual tokens as they enter the language model, and
    s = ⟨q, r⟩ the cosine similarity of the query's vector and the item's, the heat of cell i is
    ReLU(⟨A_i, 1/N Σ_j ∂s/∂A_j⟩). The words' weights are made in the same way of the title's token embeddings, summed
    over the tokens of a word.

    A small model sees few cells, so the picture is shown to it once more, larger, for the map. With `average`, the
    gradient is that of ⟨q - average, r⟩: what speaks for this query rather than for just any. That sharpens the map,
    above all for a query with a photo, whose vector has much in common with that of every picture.

    Args:
        encoder: the encoder.
        query: an item with text, images or both, see `Encoder`.
        item: likewise; of several images the first is taken as its picture.
        average: (D,) mean of the catalogue's vectors.

    Returns:
        The map, with 12 or more cells along the shorter side.

    Raises:
        ValueError: query or item has neither text nor image, or cannot be read.

    Reference: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
    ICCV 2017, arXiv 1610.02391.
    """
    target = encoder.encode([query], progress=False)[0]  # (D,)
    direction = target if average is None else target - average
    text, images = take_view(item, 0, "multimodal")
    picture = load_image(images[0]) if images else None
    trace = _traced(encoder, text, picture, direction)
    cells = None
    if picture is not None:
        rows, columns = trace.cells
        larger = _cells_wanted(rows, columns, picture)
        closer = trace if larger == trace.cells else _traced(encoder, text, picture, direction, larger)
        cells = _to_unit(closer.relevance[closer.visual].reshape(larger))
    title = FIELD_SEPARATOR.join(part.strip() for _, part in text_parts(text))
    words = _word_weights(encoder.processor.tokenizer, title, trace.relevance[trace.words_from :])
    return Heatmap(cells, words, float(trace.embedding @ target))


def draw_heatmap(image: Image.Image, heatmap: Heatmap) -> Image.Image:
    """Lay the heat over a picture, with a legend below; the hotter a place, the more its colour covers.

    Args:
        image: the item's picture, the one that was mapped.
        heatmap: with cells.

    Returns:
        RGB, the longer side of the picture 480 pixels or more.

    Raises:
        ValueError: the map is of an item without a picture.
    """
    if heatmap.cells is None:
        raise ValueError("the heat map has no cells; map an item that has a picture")
    image = load_image(image)
    scale = max(1.0, SHOWN_SIDE / max(image.size))
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    heat = Image.fromarray(heatmap.cells.astype(np.float32)).resize(image.size, Image.Resampling.BICUBIC)
    heat = np.asarray(heat).clip(0, 1)  # (H, W)
    grey = np.asarray(ImageOps.grayscale(image), dtype=np.float32)[..., None]
    pixels = 0.45 * np.asarray(image, dtype=np.float32) + 0.55 * grey  # else a red shoe would look like heat
    opacity = (HEAT_OPACITY * heat**0.7)[..., None]
    pixels += opacity * (_heat_colours()[(heat * 255).astype(np.uint8)] - pixels)
    sheet = Image.new("RGB", (image.width, image.height + LEGEND_HEIGHT), LEGEND_GROUND)
    sheet.paste(Image.fromarray(pixels.round().astype(np.uint8)), (0, 0))
    _draw_legend(sheet, image.height)
    return sheet


def _traced(
    encoder: Encoder,
    text: str | Mapping | None,
    picture: Image.Image | None,
    direction: np.ndarray,
    cells: tuple[int, int] | None = None,
) -> _Trace:
    """Grad-CAM of ⟨direction, r⟩ at the language model's input; `cells` sets how large the model sees the picture."""
    model, processor = encoder.model, encoder.processor
    options = {}
    if cells is not None:
        side = processor.image_processor.patch_size * processor.image_processor.merge_size
        picture = picture.resize((cells[1] * side, cells[0] * side), Image.Resampling.BICUBIC)
        pixels = math.prod(picture.size)
        options["size"] = {"shortest_edge": pixels, "longest_edge": pixels}
        options["max_length"] = math.prod(cells) + processor.tokenizer.model_max_length
    inputs = processor(text=[text], images=[[picture] if picture is not None else []], **options)
    inputs = inputs.to(model.device)
    input_ids = inputs.pop("input_ids")
    with torch.enable_grad():
        embeds = model.get_input_embeddings()(input_ids).detach().requires_grad_()
        output = model(inputs_embeds=embeds, **inputs, output_hidden_states=True)
        similarity = output.embeddings[0] @ torch.from_numpy(direction).to(model.device)
        states = output.hidden_states[0]  # (1, L, D), the pictures in it
        (gradient,) = torch.autograd.grad(similarity, states)
    states, gradient = states[0].detach().float(), gradient[0].float()  # (L, D)
    visual = input_ids[0] == processor.image_token_id  # (L,)
    grid = None
    words_from = 0
    if picture is not None:
        grid = tuple((inputs["image_grid_thw"][0, 1:] // processor.image_processor.merge_size).tolist())
        words_from = int(visual.nonzero().max()) + 2  # behind the token that ends the picture
    relevance = torch.zeros(len(states), device=states.device)
    written = torch.arange(len(states), device=states.device) >= words_from
    for tokens in (visual, written):
        if tokens.any():
            channels = gradient[tokens].mean(0)  # (D,)
            relevance[tokens] = states[tokens] @ channels
    embedding = output.embeddings[0].detach().cpu().numpy()
    return _Trace(embedding, relevance.cpu().numpy(), visual.cpu().numpy(), words_from, grid)


def _cells_wanted(rows: int, columns: int, picture: Image.Image) -> tuple[int, int]:
    """Rows and columns of the map: what the model itself sees, or more in the picture's proportions."""
    if min(rows, columns) >= SHORT_SIDE_CELLS:
        return rows, columns
    scale = SHORT_SIDE_CELLS / min(picture.size)
    return tuple(min(round(side * scale), LONG_SIDE_CELLS) for side in (picture.height, picture.width))


def _to_unit(relevance: np.ndarray) -> np.ndarray:
    """What is positive, over the largest of it."""
    positive = np.maximum(relevance, 0).astype(np.float32)
    return positive / max(float(positive.max(initial=0)), np.finfo(np.float32).tiny)


def _word_weights(tokenizer, title: str, relevance: np.ndarray) -> list[tuple[str, float]]:
    """Words of a title with weights, each from its tokens; relevance (T,), words beyond what the model reads get 0."""
    words = list(WORD.finditer(title))
    if not words:
        return []
    encoded = tokenizer(title, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ends = [word.end() for word in words]
    weights = np.zeros(len(words))
    for (_, end), value in zip(encoded["offset_mapping"], relevance.tolist(), strict=False):
        # by its last character, for a token may begin with the space before it
        place = min(int(np.searchsorted(ends, end)), len(words) - 1)
        weights[place] += value
    return [(word[0], float(weight)) for word, weight in zip(words, _to_unit(weights), strict=True)]


@cache
def _heat_colours() -> np.ndarray:
    """(256, 3) float32, the colours of heat from 0 to 1."""
    positions, colours = zip(*HEAT_COLOURS, strict=True)
    channels = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in colours])
    steps = np.linspace(0, 1, 256)
    return np.stack([np.interp(steps, positions, channel) for channel in channels.T], axis=1).astype(np.float32)


def _draw_legend(sheet: Image.Image, top: int) -> None:
    """A bar of the colours, and what its ends mean."""
    draw = ImageDraw.Draw(sheet)
    small = sheet.width < 300
    font = ImageFont.load_default(10 if small else 13)
    left, right = ("0", "1") if small else ("adds nothing", "adds most to the match")
    margin, middle = 12, top + LEGEND_HEIGHT // 2
    draw.text((margin, middle), left, LEGEND_INK, font, anchor="lm")
    draw.text((sheet.width - margin, middle), right, LEGEND_INK, font, anchor="rm")
    start = margin + round(draw.textlength(left, font)) + 10
    end = sheet.width - margin - round(draw.textlength(right, font)) - 10
    bar = np.linspace(0, 255, max(end - start, 1)).astype(np.uint8)
    bar = np.broadcast_to(_heat_colours()[bar], (12, len(bar), 3)).astype(np.uint8)
    sheet.paste(Image.fromarray(bar), (start, middle - 6))
