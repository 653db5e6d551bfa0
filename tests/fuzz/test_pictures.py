"""Bytes that were a picture once: they give one, or a refusal."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from hostile_inputs import PICTURES, arrays, images, picture_bytes, texts, values
from hypothesis import strategies as st
from PIL import Image
from watched import fuzzed, watched

from modeling_moon2.processing_moon2 import load_image
from moon2_dataset.build.pictures import check_picture, read_pictures
from moon2_space.search import SearchQuery
from moon2_space.uploads import uploaded_picture
from moon2_training.encoded_pictures import decode_picture, picture_size


def is_plain(image) -> bool:
    """Whether it is what the model's image processor takes."""
    return image.mode == "RGB" and np.asarray(image).shape == (image.height, image.width, 3)


@fuzzed(0.2, data=picture_bytes)
def test_the_model_s_own_reading(data):
    with watched("load_image, bytes", ValueError):
        assert is_plain(load_image(data))


@fuzzed(0.04, image=images | arrays())
def test_pictures_in_memory(image):
    with watched("load_image, arrays and modes", ValueError):
        assert is_plain(load_image(image))


@fuzzed(0.12, data=picture_bytes, budget=st.sampled_from((1, 3_000, 1_000_000)))
def test_the_encoder_s_fast_path(data, budget):
    with watched("picture_size", ValueError):
        assert min(picture_size(data)) > 0
    with watched("decode_picture", ValueError):
        assert is_plain(load_image(decode_picture({"bytes": data, "path": None}, budget)))


@fuzzed(0.08, data=picture_bytes, side=st.sampled_from((16, 40, 512)))
def test_a_table_s_pictures(data, side):
    with watched("check_picture"):
        kept, _, problem = check_picture(data, "a.jpg", side)
        assert problem is not None or max(Image.open(io.BytesIO(kept)).size) <= side


@fuzzed(0.04, cells=st.lists(values | picture_bytes | texts, max_size=4))
def test_cells_that_name_pictures(cells, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    with watched("read_pictures"):
        pictures, problems = read_pictures(cells, folder, None, 64, within=folder / "nowhere")
        assert len(pictures) + len(problems) <= 17


@fuzzed(0.08, data=picture_bytes, head=st.sampled_from(("data:image/png;base64,", "data:;base64,", "data:", "DATA:")))
def test_pictures_of_visitors(data, head):
    with watched("uploaded_picture", ValueError):
        picture = uploaded_picture({"url": head + base64.b64encode(data).decode()})
        if picture:
            SearchQuery(image=picture)


@fuzzed(0.02, upload=values | st.fixed_dictionaries({"path": texts | values, "url": texts | values}))
def test_uploads_that_are_none(upload):
    with watched("uploaded_picture, anything", ValueError):
        assert not uploaded_picture(upload)


@pytest.mark.parametrize("data", PICTURES)
def test_a_picture_that_was_not_damaged_is_read_or_known_to_be_none(data):
    if data[:2] in (b"<s", b"%P", b"", b"%!", b"\0\0"):
        with pytest.raises(ValueError, match="unreadable image|no image"):
            load_image(data)
    else:
        assert is_plain(load_image(data))
