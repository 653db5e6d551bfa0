"""Pictures of a row: references, checks, a reason for every one that is left out, and smaller copies."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from moon2_dataset.build.pictures import MAX_IMAGES, PICTURE_REASONS, check_picture, read_pictures


def encoded(width=60, height=80, kind="JPEG", mode="RGB", seed=0, **options):
    bands = {"RGB": 3, "RGBA": 4, "L": 1, "LA": 2, "CMYK": 4}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, bands), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(), mode if mode in ("CMYK", "LA") else None).save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width, height):
    """A PNG that says it is that large, with no pixels behind."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(99))]
    packed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


JPEG = encoded()


def reason(data):
    return check_picture(data, "a.jpg", 512)[2][0]


def test_good_pictures_keep_their_bytes():
    for data in (JPEG, encoded(kind="PNG", mode="RGBA"), encoded(kind="WEBP"), encoded(kind="GIF", mode="L"),
                 encoded(kind="BMP"), encoded(kind="TIFF"), encoded(512, 300), encoded(mode="CMYK")):  # fmt: skip
        assert check_picture(data, "x", 512) == (data, "x", None)


def test_every_kind_of_bad_picture_has_its_reason():
    assert reason(b"") == "image_empty"
    assert reason(b"hello") == reason(b"<svg xmlns='x'/>") == reason(b"<html>404</html>") == "image_not_an_image"
    assert "an SVG drawing" in check_picture(b"<?xml?>\n<svg>", "a.png", 512)[2][1]
    assert "a web page" in check_picture(b"<!DOCTYPE html>", "a.png", 512)[2][1]
    assert (
        reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n") == "image_not_an_image"
    )  # would run Ghostscript
    assert reason(JPEG[: len(JPEG) // 2]) == "image_broken"
    assert reason(encoded(kind="PNG")[:-200]) == "image_broken"
    png = bytearray(encoded(kind="PNG"))
    png[len(png) // 2] ^= 255
    assert reason(bytes(png)) == "image_broken"
    assert reason(encoded(900, 700)[:-5_000]) == "image_broken"  # damage shows where it is made smaller too
    assert reason(png_header(10_000, 6_000)) == "image_too_large"
    assert reason(png_header(60_000, 60_000)) == "image_too_large"  # a bomb, for Pillow too
    assert reason(encoded(15, 80)) == "image_too_small"
    assert reason(encoded(16, 330)) == "image_too_long"


def test_long_pictures_become_jpeg_turned_and_flattened():
    data, name, problem = check_picture(encoded(900, 600, "PNG", "RGBA"), "dir.v2.png", 300)
    image = Image.open(io.BytesIO(data))
    assert (
        problem is None
        and name == "dir.v2.jpg"
        and (image.format, image.size, image.mode) == ("JPEG", (300, 200), "RGB")
    )
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    data, *_ = check_picture(encoded(800, 400, exif=exif), "a.jpg", 200)
    image = Image.open(io.BytesIO(data))
    assert image.size == (100, 200) and not image.getexif().get(0x0112)
    clear = Image.new("RGBA", (600, 600), (255, 0, 0, 0))
    buffer = io.BytesIO()
    clear.save(buffer, "PNG")
    data, *_ = check_picture(buffer.getvalue(), None, 300)
    assert np.asarray(Image.open(io.BytesIO(data))).min() > 250  # what is clear is white, not red or black
    for mode in ("L", "LA"):
        data, *_ = check_picture(encoded(600, 600, "PNG", mode), None, 300)
        assert Image.open(io.BytesIO(data)).mode == "RGB"
    data, *_ = check_picture(encoded(600, 600, mode="CMYK"), None, 300)
    assert Image.open(io.BytesIO(data)).mode == "RGB"
    assert check_picture(encoded(900, 600), None, 300) == check_picture(encoded(900, 600), None, 300)


@pytest.fixture
def shop(tmp_path):
    for name in ("a.jpg", "b, c.jpg", "sub/d.jpg", "ü.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded(seed=len(name)))
    (tmp_path / "empty.jpg").write_bytes(b"")
    return tmp_path


def names(cells, folder, image_root=None):
    pictures, problems = read_pictures(cells, folder, image_root, 512)
    return [picture["path"] for picture in pictures], [code for code, _ in problems]


def test_small_pictures_too_lose_where_they_were_taken():
    exif = Image.Exif()
    exif.get_ifd(0x8825)[1] = "N"  # GPS
    exif[0x0112] = 6
    data, name, problem = check_picture(encoded(60, 40, exif=exif), "a.jpg", 200)
    image = Image.open(io.BytesIO(data))
    assert problem is None and image.size == (40, 60) and not image.getexif()


@pytest.mark.parametrize("cell", [
    "a.jpg,sub/d.jpg", "a.jpg, sub/d.jpg", "a.jpg|sub/d.jpg", "a.jpg; sub/d.jpg;", '["a.jpg", "sub/d.jpg"]',
    "['a.jpg', 'sub/d.jpg']", ["a.jpg", "sub/d.jpg"], [{"src": "a.jpg"}, {"url": "sub/d.jpg"}],
    [{"bytes": None, "path": "a.jpg"}, {"bytes": JPEG, "path": "x/d.jpg"}],
    "a.jpg\nsub/d.jpg", "a.jpg,a.jpg,sub/d.jpg",
])  # fmt: skip
def test_references_in_every_form(shop, cell):
    assert names([cell, None, "", float("nan"), "nan", []], shop) == (["a.jpg", "d.jpg"], [])


def test_paths_start_beside_the_file_or_at_the_image_root(shop):
    assert names(["b, c.jpg", "ü.jpg", str(shop / "a.jpg"), f"file://{shop}/sub/d.jpg"], shop)[0] == [
        "b, c.jpg", "ü.jpg", "a.jpg", "d.jpg"]  # fmt: skip
    assert names(["d.jpg"], shop) == ([], ["image_missing"])
    assert names(["d.jpg"], shop, shop / "sub") == (["d.jpg"], [])


def test_web_pages_are_not_fetched_but_found_in_the_image_root(shop):
    url = "https://cdn.shop.example/files/d.jpg?v=17&width=800"
    assert names([url, "data:image/png;base64,AAAA", "s3://b/a.jpg"], shop) == ([], ["image_url_not_fetched"] * 3)
    assert names([url], shop, shop / "sub") == (["d.jpg"], [])
    assert "URLs are not fetched: download" in PICTURE_REASONS["image_url_not_fetched"]


def test_what_is_no_picture_file_is_told(shop):
    (shop / "folder.jpg").mkdir()
    os.mkfifo(shop / "pipe.jpg")  # reading it would wait forever
    cells = ["none.jpg", "folder.jpg", "pipe.jpg", "x" * 5000 + ".jpg", "a\0.jpg", "\ud800.jpg", "/dev/zero"]
    assert names(cells, shop) == ([], ["image_missing"] * 7)
    cells = ["empty.jpg", b"", {"bytes": b"", "path": None}, 7, {"a": 1}, {"bytes": "x"}, True, [[[[1]]]]]
    assert names(cells, shop) == ([], ["image_empty"] * 3 + ["image_not_understood"] * 5)
    with open(shop / "huge.jpg", "wb") as stream:
        stream.truncate(1 << 30)
    assert names(["huge.jpg"], shop) == ([], ["image_too_large"])


def test_a_product_has_a_bounded_number_of_pictures(shop):
    found, problems = names([[f"none{n}.jpg" for n in range(10_000)]], shop)
    assert not found and problems == ["image_missing"] * MAX_IMAGES + ["images_over_limit"]


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, len(JPEG) - 1), junk=st.binary(max_size=40), cut=st.booleans())
def test_damaged_bytes_are_kept_or_given_a_reason(at, junk, cut):
    data = JPEG[:at] + junk + (b"" if cut else JPEG[at + len(junk) :])
    for max_side in (512, 50):
        kept, _, problem = check_picture(data, "a.jpg", max_side)
        assert (problem is None and kept) or problem[0] in PICTURE_REASONS


def test_within_a_folder_no_path_and_no_link_leads_out(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside.jpg"
    (inside / "sub").mkdir(parents=True)
    outside.write_bytes(JPEG)
    (inside / "sub" / "a.jpg").write_bytes(encoded(seed=1))
    os.symlink(outside, inside / "link.jpg")
    os.symlink(inside / "sub", inside / "again")
    os.symlink(inside / "loop.jpg", inside / "loop.jpg")
    ways_out = ["../outside.jpg", "sub/../../outside.jpg", str(outside), f"file://{outside}", "link.jpg", "loop.jpg",
                "\0.jpg", "a" * 300 + "/../../outside.jpg"]  # fmt: skip
    for path in ways_out:
        assert read_pictures([{"path": path}], inside, None, 512, within=inside)[0] == []
    pictures, problems = read_pictures(ways_out[:5], inside, None, 512, within=inside)
    assert pictures == [] and {reason for reason, _ in problems} == {"image_outside"}
    assert (
        len(read_pictures(["sub/a.jpg", "again/a.jpg", "sub/../sub/a.jpg"], inside, None, 512, within=inside)[0]) == 3
    )
    assert len(read_pictures([str(outside)], inside, None, 512)[0]) == 1
    assert len(read_pictures([JPEG], inside, None, 512, within=inside)[0]) == 1  # bytes are no file
    url = "https://shop.example/link.jpg"
    assert read_pictures([url], inside, inside, 512, within=inside)[1] == [("image_outside", "link.jpg")]


def test_the_number_of_pixels_may_be_limited_further():
    assert check_picture(JPEG, "a.jpg", 512, 60 * 80)[2] is None
    assert check_picture(JPEG, "a.jpg", 512, 60 * 80 - 1)[2][0] == "image_too_large"
