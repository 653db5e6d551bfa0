from __future__ import annotations

import numpy as np

from moon2_space.search_sheet import RIGHT, TILE, Hit, Search, draw_searches


def test_rows_show_the_query_and_frame_the_product_that_was_meant(make_image):
    hits = [
        Hit(make_image(i) if i < 3 else None, f"product {i} with a rather long title", 1 - i / 10, right=i == 1)
        for i in range(4)
    ]
    searches = [
        Search("red mug", None, hits),
        Search(None, make_image(9), hits),
        Search("mug", make_image(8), hits[:2]),
    ]
    sheet = draw_searches(searches)
    pixels = np.asarray(sheet)
    assert sheet.width > 5 * TILE and sheet.height > 3 * TILE
    green = (pixels == [int(RIGHT[i : i + 2], 16) for i in (1, 3, 5)]).all(-1)
    columns = np.flatnonzero(green.any(0))
    assert 2 * TILE < columns.min() and columns.max() < 4 * TILE  # the second hit, in every row
    rows = np.array_split(green.any(1), 3)
    assert all(row.any() for row in rows)
    query_column = pixels[:, :TILE].reshape(3, -1)
    assert all(len(np.unique(part)) > 2 for part in query_column)


def test_titles_in_any_script_are_drawn(make_image):
    sheet = draw_searches([Search("红色 马克杯 🔥", None, [Hit(make_image(0), "كوب أحمر", 0.5)])])
    assert np.asarray(sheet).std() > 10
