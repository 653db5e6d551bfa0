from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFont

from moon2_dataset.contact_sheet import MAX_BYTES, MAX_WIDTH, contact_sheet, wrap_caption


@pytest.mark.parametrize(("rows", "columns"), [(0, 1), (1, 1), (3, 20), (80, 8)])
def test_a_sheet_stays_small_and_shows_what_it_can(tmp_path, make_image, rows, columns):
    pictures = [make_image(seed, 120, 160) for seed in range(4)]
    given = [([pictures[n % 4] for n in range(columns)], ["a caption"] * columns) for _ in range(rows)]
    contact_sheet(given, tmp_path / "new" / "sheet.png", "A title")
    assert (tmp_path / "new" / "sheet.png").stat().st_size <= MAX_BYTES
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["sheet.png"]  # nothing half-written
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        assert sheet.format == "PNG" and sheet.width <= MAX_WIDTH
        shown = np.asarray(sheet.convert("L"))
        assert shown.std() > (10 if rows else 0)


def test_pictures_of_all_modes_and_captions_of_all_scripts(tmp_path, make_image):
    noise = make_image(1)
    modes = [noise, noise.convert("L"), noise.convert("P"), noise.convert("CMYK"), noise.convert("1"),
             Image.new("RGBA", (9, 9)), Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)),
             None]  # fmt: skip
    captions = ["", "红色杯子", "كوب أحمر", "x" * 900, "\ud800 lone", "two\nlines", "\u202e turned", "🧦"]
    contact_sheet([(modes, captions)], tmp_path / "sheet.png", "Все \x00 моды")
    assert Image.open(tmp_path / "sheet.png").width > 400


def test_captions_are_wrapped_and_cut():
    font = ImageFont.load_default(12)
    lines = wrap_caption(
        "a rather long caption that will need more room than there is on two lines of this", font, 120, 2
    )
    assert len(lines) == 2 and lines[1].endswith("…") and all(font.getlength(line) <= 120 for line in lines)
    assert wrap_caption("short", font, 120, 2) == ["short"] and wrap_caption("", font, 120, 2) == []
