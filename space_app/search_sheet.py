"""A picture of searches: what was asked on the left, the best products beside it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps

TILE, MARGIN, CAPTION = 132, 12, 46
INK, FAINT, RIGHT = "#1d1d1f", "#8a8a8e", "#2e9e5b"


class Hit(NamedTuple):
    """One product found: its picture if it has one, its title, the cosine similarity, whether it is the one meant."""

    image: Image.Image | None
    title: str
    score: float
    right: bool = False


class Search(NamedTuple):
    """One query, with its text, its photo or both, and what was found, best first."""

    text: str | None
    photo: Image.Image | None
    hits: Sequence[Hit]


def draw_searches(searches: Sequence[Search]) -> Image.Image:
    """Draw searches as rows; a green frame marks the product that was meant."""
    width = MARGIN + (1 + max(len(search.hits) for search in searches)) * (TILE + MARGIN) + 2 * MARGIN
    height = MARGIN + len(searches) * (TILE + CAPTION + MARGIN)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    font, bold = ImageFont.load_default(11), ImageFont.load_default(14)
    for row, search in enumerate(searches):
        top = MARGIN + row * (TILE + CAPTION + MARGIN)
        if search.photo is not None:
            sheet.paste(_fitted(search.photo), (MARGIN, top))
        lines = textwrap.wrap(search.text or "", 17)[:4]
        below = top + (TILE + 4 if search.photo is not None else TILE // 2 - 9 * len(lines))
        draw.multiline_text((MARGIN, below), "\n".join(lines[: 2 if search.photo is not None else 4]), INK, bold)
        for column, hit in enumerate(search.hits, start=1):
            left = MARGIN + column * (TILE + MARGIN) + 2 * MARGIN
            if hit.image is not None:
                sheet.paste(_fitted(hit.image), (left, top))
            if hit.right:
                draw.rectangle((left - 3, top - 3, left + TILE + 2, top + TILE + 2), outline=RIGHT, width=3)
            caption = textwrap.wrap(hit.title, 23)[:2]
            draw.multiline_text((left, top + TILE + 3), "\n".join(caption), INK, font)
            draw.text((left, top + TILE + 31), f"{hit.score:.2f}", FAINT, font)
    return sheet


def _fitted(image: Image.Image) -> Image.Image:
    return ImageOps.pad(image.convert("RGB"), (TILE, TILE), color="white")
