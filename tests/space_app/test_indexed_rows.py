from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from moon2_space.indexed_rows import make_thumbnail, product_row, row_schema, rows_table


def picture(make_image, seed, *size, kind="PNG"):
    buffer = io.BytesIO()
    make_image(seed, *size).save(buffer, kind)
    return {"bytes": buffer.getvalue(), "path": "a.png"}


def test_keys_change_with_what_they_are_of(make_image):
    product = {"product_id": "p", "title": "Red mug", "images": [picture(make_image, 1)]}
    keys = [product_row(product | change) for change in
            ({}, {"description": "d"}, {"category_path": ["a"]}, {"attributes": [{"name": "a", "value": "b"}]},
             {"title": "Blue mug"}, {"images": [picture(make_image, 2)]}, {"images": []})]  # fmt: skip
    assert len({row["content_key"] for row in keys}) == 7
    assert [row["encoded_key"] == keys[0]["encoded_key"] for row in keys] == [True] * 4 + [False] * 3
    renamed = product_row(product | {"images": [picture(make_image, 1) | {"path": "b.png"}]})
    assert renamed["content_key"] == keys[0]["content_key"]


def test_a_row_has_what_a_product_may_leave_out():
    row = product_row({"product_id": "p", "title": "Red mug", "description": None, "attributes": None})
    assert (row["description"], row["category_path"], row["attributes"], row["images"]) == ("", [], [], [])


def test_products_that_are_none_are_refused(make_image):
    for product, told in (({"product_id": "", "title": "a"}, "no product_id"),
                          ({"product_id": "p", "title": None}, "neither title nor image"),
                          ({"product_id": "p", "title": "a", "images": [{"bytes": None, "path": "/etc/passwd"}]},
                           "paths are not followed")):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            product_row(product)


def test_rows_become_a_table_with_nulls_for_missing_views():
    row = product_row({"product_id": "p", "title": "Red mug"}) | {"thumbnail": None, "image_vector": None}
    vector = np.arange(3, dtype=np.float32)
    table = rows_table([row | {"text_vector": vector, "multimodal_vector": vector}], row_schema(3))
    assert table["image_vector"].to_pylist() == [None] and table["text_vector"].to_pylist() == [[0, 1, 2]]


def test_thumbnails_are_small_and_keep_their_shape(make_image):
    image = Image.open(io.BytesIO(make_thumbnail(picture(make_image, 1, 900, 300)["bytes"])))
    assert (image.format, image.size) == ("WEBP", (320, 107))
    assert Image.open(io.BytesIO(make_thumbnail(picture(make_image, 1, 40, 30)["bytes"]))).size == (40, 30)
    with pytest.raises(ValueError, match="unreadable image"):
        make_thumbnail(b"<html>")
