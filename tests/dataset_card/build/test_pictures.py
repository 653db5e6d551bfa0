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
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from moon2_dataset.build.image_root import ImageRoot
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
SECRET = b"GPS 48.137 N 11.575 E, Mary's phone"
Image.init()
AVIF = [kind for kind in ("AVIF",) if kind in Image.SAVE]  # not every Pillow has it
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def reason(data):
    return check_picture(data, "a.jpg", 512)[2][0]


def test_good_pictures_keep_their_bytes():
    for data in (JPEG, encoded(kind="PNG", mode="RGBA"), encoded(kind="WEBP"), encoded(512, 300),
                 encoded(mode="CMYK"), encoded(progressive=True, dpi=(72, 72), icc_profile=SRGB)):  # fmt: skip
        assert check_picture(data, "x", 512) == (data, "x", None)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", *AVIF])
def test_pictures_of_other_formats_become_jpeg(kind):
    source = encoded(kind=kind, mode="L" if kind == "GIF" else "RGB")
    data, name, problem = check_picture(source, "a.b", 512)
    image = Image.open(io.BytesIO(data))
    assert problem is None and name == "a.jpg" and (image.format, image.size) == ("JPEG", (60, 80))


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
    pictures, problems = read_pictures(cells, folder, image_root and ImageRoot(image_root), 512)
    return [picture["path"] for picture in pictures], [code for code, _ in problems]


def with_exif(**options):
    exif = Image.Exif()
    exif[0x010F] = SECRET.decode()  # the maker of the camera
    exif[0x0112] = 6  # turn by 90 degrees
    exif.get_ifd(0x8825)[29] = SECRET.decode()  # GPS
    return encoded(60, 40, exif=exif, **options)


def animated(kind):
    frames = [Image.open(io.BytesIO(encoded(kind="PNG", seed=seed))) for seed in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], comment=SECRET, xmp=SECRET)
    return buffer.getvalue()


def several_in_one():
    """A JPEG with further ones behind it, as phones write them (MPF)."""
    buffer = io.BytesIO()
    behind = Image.open(io.BytesIO(encoded(comment=SECRET)))
    Image.open(io.BytesIO(JPEG)).save(buffer, "MPO", save_all=True, append_images=[behind])
    return buffer.getvalue()


def png_text():
    text = PngInfo()
    text.add_text("Comment", SECRET.decode())
    text.add_itxt("XML:com.adobe.xmp", SECRET.decode())
    return text


def before_pixels(data, marker):
    """A JPEG with a segment of the secret in it."""
    return data[:2] + b"\xff" + marker + struct.pack(">H", 2 + len(SECRET)) + SECRET + data[2:]


def before_end(data, kind):
    """A PNG with a chunk of the secret behind its pixels."""
    chunk = kind + SECRET
    return data[:-12] + struct.pack(">I", len(SECRET)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[-12:]


def with_webp_chunk(kind):
    data, size = encoded(kind="WEBP", exif=SECRET), struct.pack("<I", len(SECRET))
    return data.replace(b"EXIF" + size, kind + size)


METADATA = {
    "JPEG exif": with_exif(),
    "PNG exif": with_exif(kind="PNG"),
    "WebP exif": with_exif(kind="WEBP"),
    "TIFF tags": with_exif(kind="TIFF"),
    "JPEG XMP": encoded(xmp=SECRET),
    "WebP XMP": encoded(kind="WEBP", xmp=SECRET),
    "TIFF XMP": encoded(kind="TIFF", tiffinfo={700: SECRET}),
    "JPEG comment": encoded(comment=SECRET),
    "GIF comment": encoded(kind="GIF", mode="L", comment=SECRET),
    "JPEG IPTC": before_pixels(JPEG, b"\xed"),
    "JPEG of an unknown segment": before_pixels(JPEG, b"\xeb"),
    "JPEG second exif": JPEG[:-2] + before_pixels(b"\xff\xd8", b"\xe1")[2:] + JPEG[-2:],
    "JPEG thumbnail": before_pixels(JPEG, b"\xe0"),
    "JPEG of several": several_in_one(),
    "JPEG with more behind it": JPEG + SECRET,
    "PNG text": encoded(kind="PNG", pnginfo=png_text()),
    "PNG exif behind the pixels": before_end(encoded(kind="PNG"), b"eXIf"),
    "PNG text behind the pixels": before_end(encoded(kind="PNG"), b"tEXt"),
    "PNG of an unknown chunk": before_end(encoded(kind="PNG"), b"caBX"),
    "PNG with more behind it": encoded(kind="PNG") + SECRET,
    "WebP of an unknown chunk": with_webp_chunk(b"C2PA"),
    "WebP with more behind it": encoded(kind="WEBP") + SECRET,
    "WebP animated": animated("WEBP"),
    "GIF animated": animated("GIF"),
    "BMP with more behind it": encoded(kind="BMP") + SECRET,
    **{f"{kind} exif": with_exif(kind=kind) for kind in AVIF},
    **{f"{kind} XMP": encoded(kind=kind, xmp=SECRET) for kind in AVIF},
}


@pytest.mark.parametrize("max_side", [200, 50])
@pytest.mark.parametrize("kind", METADATA)
def test_pictures_lose_all_but_their_pixels(kind, max_side):
    source = METADATA[kind]
    assert SECRET in source
    data, name, problem = check_picture(source, "a.png", max_side)
    assert problem is None and name == "a.jpg" and SECRET not in data
    image = Image.open(io.BytesIO(data))
    assert not image.getexif() and not image.info.keys() & {"comment", "xmp", "photoshop", "mp", "icc_profile"}
    assert image.width < image.height  # also where an orientation that is lost said to turn it


def test_pictures_that_are_written_anew_keep_their_colours():
    """A wide colour space: what the profile makes of a colour is what stands in the new file, whatever its mode."""
    swapped = SRGB.replace(b"rXYZ", b"tmp.").replace(b"gXYZ", b"rXYZ")
    swapped = swapped.replace(b"tmp.", b"gXYZ")  # red means green, and green means red
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (200, 30, 30)).save(buffer, "TIFF", icc_profile=swapped)
    for source, side in ((buffer.getvalue(), 64), (buffer.getvalue(), 32)):
        data, *_ = check_picture(source, None, side)
        assert np.allclose(np.asarray(Image.open(io.BytesIO(data)))[10, 10], (30, 200, 30), atol=6)
    buffer = io.BytesIO()
    Image.new("L", (40, 40), 90).save(buffer, "TIFF", icc_profile=b"no profile")
    data, _, problem = check_picture(buffer.getvalue(), None, 64)
    assert problem is None and np.allclose(np.asarray(Image.open(io.BytesIO(data)))[10, 10], 90, atol=3)


def test_pictures_of_sixteen_bits_keep_their_brightness():
    pixels = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    for kind in ("TIFF", "PNG"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        data, *_ = check_picture(buffer.getvalue() + b"behind", None, 512)
        found = np.asarray(Image.open(io.BytesIO(data)).convert("L")).astype(int)
        assert np.abs(found - (pixels >> 8)).max() < 12


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
    assert read_pictures([url], inside, ImageRoot(inside), 512, within=inside)[1] == [("image_outside", "link.jpg")]


def test_the_number_of_pixels_may_be_limited_further():
    assert check_picture(JPEG, "a.jpg", 512, 60 * 80)[2] is None
    assert check_picture(JPEG, "a.jpg", 512, 60 * 80 - 1)[2][0] == "image_too_large"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_picture_of_floats_that_are_not_finite_is_broken(value):
    pixels = np.random.default_rng(0).random((40, 30), dtype=np.float32)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "TIFF")
    assert check_picture(buffer.getvalue(), None, 512)[2] is None
    pixels[3, 4] = value
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "TIFF")
    data, _, (_, told) = check_picture(buffer.getvalue(), None, 512)
    assert data == b"" and "holds NaN or infinity" in told
