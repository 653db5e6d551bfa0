"""A contact sheet: rows of pictures with captions under them, as one PNG that stays small."""

from __future__ import annotations

import io
import math
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from .shards import write_bytes

MAX_WIDTH = 1600  # pixels
MAX_BYTES = 1_000_000
LARGEST_CELL, SMALLEST_CELL = 180, 56  # side of the square that holds a picture, pixels
MARGIN, GAP = 12, 8
CAPTION_SIZE, TITLE_SIZE = 12, 18
LEADING = 1.25  # line height over font size
CAPTION_LINES, TITLE_LINES = 4, 3
MAX_ROWS = 60  # more, nobody looks through
LONGEST_CAPTION = 400  # characters looked at
INK, FAINT, EMPTY = "#1d1d1f", "#6e6e73", "#f0f0f3"

SheetRow = tuple[Sequence[Image.Image | None], Sequence[str]]


def contact_sheet(rows: Sequence[SheetRow], path: str | os.PathLike, title: str) -> None:
    """Draw rows of pictures with captions under them, and write them as one PNG, whole or not at all.

    The sheet is at most 1600 pixels wide and 1 MB large: the more pictures, the smaller their cells. A row with more
    pictures than fit is wrapped. Rows after the first 60, and those for which even the smallest cells leave no room,
    are left out, and the last line says how many. Transparent pictures are shown on white.

    Args:
        rows: of each row its pictures (None: an empty cell) and a caption for each, "" for none. Long captions are
            wrapped and cut with "…"; a line break in them starts a new line.
        path: file to write; its folder is made.
        title: heading of the sheet.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, _fitting(rows, title))


def _fitting(rows: Sequence[SheetRow], title: str) -> bytes:
    """The sheet as a PNG, with the largest cells with which it is under MAX_BYTES."""
    columns = max((len(pictures) for pictures, _ in rows), default=1)
    cell = min(LARGEST_CELL, max(SMALLEST_CELL, (MAX_WIDTH - 2 * MARGIN + GAP) // max(columns, 1) - GAP))
    shown = min(len(rows), MAX_ROWS)
    while True:
        png = _as_png(_draw(rows[:shown], len(rows) - shown, title, cell))
        if len(png) <= MAX_BYTES or not shown:
            return png
        excess = MAX_BYTES / len(png)
        if cell > SMALLEST_CELL:
            cell = max(SMALLEST_CELL, min(cell - 4, int(0.98 * cell * math.sqrt(excess))))
        else:
            shown = min(shown - 1, int(0.95 * shown * excess))


def _draw(rows: Sequence[SheetRow], left_out: int, title: str, cell: int) -> Image.Image:
    per_line = max(1, (MAX_WIDTH - 2 * MARGIN + GAP) // (cell + GAP))
    lines = [
        (list(pictures[start : start + per_line]), list(captions[start : start + per_line]))
        for pictures, captions in rows
        for start in range(0, max(1, len(pictures)), per_line)
    ]
    columns = max((len(pictures) for pictures, _ in lines), default=1)
    width = min(MAX_WIDTH, max(480, 2 * MARGIN + columns * (cell + GAP) - GAP))
    caption_font, title_font = ImageFont.load_default(CAPTION_SIZE), ImageFont.load_default(TITLE_SIZE)
    heading = wrap_caption(title, title_font, width - 2 * MARGIN, TITLE_LINES)
    captions = [[wrap_caption(text, caption_font, cell, CAPTION_LINES) for text in texts] for _, texts in lines]

    leading, title_leading = math.ceil(CAPTION_SIZE * LEADING), math.ceil(TITLE_SIZE * LEADING)
    heights = [cell + 4 + leading * max(map(len, texts), default=0) + MARGIN for texts in captions]
    top = MARGIN + title_leading * len(heading) + MARGIN
    sheet = Image.new("RGB", (width, top + sum(heights) + (leading + MARGIN) * bool(left_out)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(heading):
        draw.text((MARGIN, MARGIN + number * title_leading), line, INK, title_font)
    for (pictures, _), texts, height in zip(lines, captions, heights, strict=True):
        for column, picture in enumerate(pictures):
            left = MARGIN + column * (cell + GAP)
            if picture is None:
                draw.rectangle((left, top, left + cell - 1, top + cell - 1), EMPTY)
            else:
                fitted = ImageOps.contain(_on_white(picture), (cell, cell), Image.Resampling.LANCZOS)
                sheet.paste(fitted, (left + (cell - fitted.width) // 2, top + (cell - fitted.height) // 2))
        for column, text in enumerate(texts):
            for number, line in enumerate(text):
                place = (MARGIN + column * (cell + GAP), top + cell + 4 + number * leading)
                draw.text(place, line, INK if number == 0 else FAINT, caption_font)
        top += height
    if left_out:
        draw.text((MARGIN, top), f"… and {left_out:,} more rows", FAINT, caption_font)
    return sheet


def wrap_caption(text: str, font: ImageFont.FreeTypeFont, width: float, lines: int) -> list[str]:
    """Break a text into lines that fit, at spaces where there are any, the last one cut with "…" if need be.

    Args:
        text: any text; control characters and lone surrogates are drawn as spaces.
        font: that it is drawn in.
        width: of a line, in pixels.
        lines: at most so many.
    """
    wrapped: list[str] = []
    cut = len(text) > LONGEST_CAPTION
    for paragraph in text[:LONGEST_CAPTION].split("\n"):
        line = ""
        for word in _drawable(paragraph).split():
            longer = f"{line} {word}" if line else word
            if font.getlength(longer) <= width:
                line = longer
                continue
            if line:
                wrapped.append(line)
            while font.getlength(word) > width and len(word) > 1:
                fits = _fitting_characters(word, font, width)
                wrapped.append(word[:fits])
                word = word[fits:]
            line = word
        if line:
            wrapped.append(line)
    if len(wrapped) > lines or (cut and wrapped):
        wrapped = wrapped[:lines]
        last = wrapped[-1]
        while last and font.getlength(last + "…") > width:
            last = last[:-1]
        wrapped[-1] = last.rstrip() + "…"
    return wrapped


def _fitting_characters(word: str, font: ImageFont.FreeTypeFont, width: float) -> int:
    fits = 1
    while fits < len(word) and font.getlength(word[: fits + 1]) <= width:
        fits += 1
    return fits


def _drawable(text: str) -> str:
    """Text without what a font cannot even be asked for: surrogates, and control and direction characters."""
    return "".join(" " if unicodedata.category(char) in ("Cc", "Cf", "Cs") else char for char in text)


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB":
        return picture
    if picture.mode in ("I", "I;16", "F"):  # sixteen bits and more: the range that is there, shown from black to white
        picture = ImageOps.autocontrast(_eight_bits(picture))
    colours = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    low, high = picture.getextrema()
    scale = 255 / (high - low) if high > low else 0.0
    return picture.convert("F").point(lambda value: value * scale - low * scale).convert("L")


def _as_png(sheet: Image.Image) -> bytes:
    """PNG of 256 colours: photos take a third of the bytes, and the eye hardly sees it on cells of this size."""
    buffer = io.BytesIO()
    sheet.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG).save(buffer, "PNG")
    return buffer.getvalue()
