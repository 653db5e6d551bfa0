"""Texts, pictures and values that nobody should send."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

CONTROL = ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>", "<|im_start|>", "<|im_end|>",
           "<|endoftext|>", "<|ima", "ge_pad|>")  # fmt: skip
SCRIPTS = ("red mug", "Größe 42", "красная кружка", "红色马克杯", "赤いマグ", "빨간 컵", "كوب أحمر", "लाल मग",
           "แก้วแดง", "👩‍👩‍👧 🔥", "e\u0301", "İ", "ß", "𐍈")  # fmt: skip
TRICKY = (
    "\x00", "\ud800", "\udfff", "\u202e", "\ufeff", "\u200b", "\u2028", "\n", "\r", "\t", "\x1d", "\x1e", "\x1f",
    "\x1a", "\x85", " ", "' OR 1=1 --", "'; DROP TABLE products; --", '"', '""', '","', "\\", "\\N", "%", "`", "$1",
    "{}", "{id}", "[", "[[", "[{", "}", "<script>", "<b", "<!--", "<![CDATA[", "&#1114112;", "&amp;", "=1+1", "@x",
    "../../etc/passwd", "/dev/zero", "C:\\x", "http://169.254.169.254/", "file:///etc/passwd",
    "data:image/png;base64,", "-", "a.jpg", "nan", "NULL", "1e999", "-0", "12.0", "9" * 400, "1_0", "٣", "sep=;",
    ";", "|", ",", ":", "=", " > ", "/",
)  # fmt: skip
letters = st.characters(exclude_categories=())  # halves of surrogate pairs too
pieces = st.sampled_from(CONTROL + SCRIPTS + TRICKY) | st.text(letters, max_size=12)
texts = st.builds(
    lambda parts, times: "".join(parts) * times,
    st.lists(pieces, max_size=5),
    st.sampled_from([1] * 30 + [40, 3_000]),
)
numbers = (
    st.integers(-3, 70)
    | st.sampled_from([-(10**30), 2**31, 2**63, 2**64, 10**400, -1])
    | st.floats(allow_nan=True, allow_infinity=True)
)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts.map(lambda text: text[:60]), inner, max_size=4),
    max_leaves=6,
)


def _noise(width: int, height: int, mode: str) -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image.convert(mode)


def _encoded(form: str, mode: str = "RGB", size: tuple[int, int] = (33, 24), **options: Any) -> bytes:
    buffer = io.BytesIO()
    _noise(*size, mode).save(buffer, form, **options)
    return buffer.getvalue()


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a note"
    return exif.tobytes()


PICTURES = (
    *(_encoded("PNG", mode) for mode in ("RGB", "RGBA", "P", "L", "LA", "1", "I;16")),
    _encoded("PNG", size=(200, 160)),
    *(_encoded("JPEG", mode) for mode in ("RGB", "L", "CMYK")),
    _encoded("JPEG", size=(300, 200), progressive=True),
    _encoded("JPEG", exif=_turned()),
    *(_encoded("WEBP", mode) for mode in ("RGB", "RGBA")),
    _encoded("WEBP", lossless=True),
    _encoded("GIF", "P"),
    _encoded("GIF", "P", save_all=True, append_images=[_noise(33, 24, "P"), _noise(24, 33, "P")]),
    *(_encoded("BMP", mode) for mode in ("RGB", "P", "1")),
    *(_encoded("TIFF", compression=way) for way in (None, "tiff_deflate", "tiff_lzw", "jpeg")),
    _encoded("TIFF", "F"),
    _encoded("TIFF", "CMYK", save_all=True, append_images=[_noise(20, 20, "L")]),
    _encoded("PPM"),
    _encoded("ICO"),
    _encoded("EPS"),
    b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    b"%PDF-1.4",
    b"",
)
NUMBERS = tuple(
    struct.pack(form, number)
    for form in (">H", "<H", ">I", "<I")
    for number in (0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
    if number < 1 << (8 * struct.calcsize(form))
)


def with_right_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have the checksums of what they hold, so that damage is not found by them."""
    out, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        body = data[at + 4 : at + 8 + length]
        if len(body) < 4 + length:
            break
        out += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return bytes(out) + data[at:]


@st.composite
def damaged(draw: st.DrawFn, files: tuple[bytes, ...]) -> bytes:
    """One of the files as it is, or with bytes set, cut off, left out, put in, doubled, or of another one behind."""
    data = bytearray(draw(st.sampled_from(files)))
    is_png = data[:8] == b"\x89PNG\r\n\x1a\n"
    for way in draw(st.lists(st.sampled_from(("set", "set", "number", "cut", "drop", "put", "double", "join")),
                             max_size=5)):  # fmt: skip
        at = draw(st.integers(0, 64) | st.integers(0, len(data)))
        if way == "set":
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif way == "number":
            number = draw(st.sampled_from(NUMBERS))
            data[at : at + len(number)] = number
        elif way == "cut":
            del data[at:]
        elif way == "drop":
            del data[at : at + draw(st.integers(1, 40))]
        elif way == "put":
            data[at:at] = draw(st.binary(max_size=12))
        elif way == "double":
            data[at:at] = data[at : at + draw(st.integers(1, 200))]
        else:
            data += draw(st.sampled_from(files))
    return with_right_checksums(bytes(data)) if is_png and draw(st.booleans()) else bytes(data)


picture_bytes = damaged(PICTURES)
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I", "F",
         "I;16")  # fmt: skip
SIZES = ((1, 1), (1, 200), (200, 1), (1, 201), (5000, 3), (28, 28), (60, 80), (333, 17), (640, 480))


def _image(mode: str, size: tuple[int, int]) -> Image.Image:
    """A picture of a mode, of noise where pixels can be converted to it."""
    try:
        return _noise(*size, mode)
    except ValueError:
        return Image.new(mode, size)


images = st.builds(_image, st.sampled_from(MODES), st.sampled_from(SIZES))


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """An array that may be a picture, with any type and shape."""
    shape = draw(st.lists(st.sampled_from((0, 1, 2, 3, 4, 5, 30)), max_size=4))
    kind = draw(st.sampled_from(("u1", "i2", "u2", "i8", "u8", "f2", "f4", "f8", "?", "c8", "O", "U3", "M8[s]")))
    made = np.zeros(shape, dtype=kind)
    if made.size and kind[0] in "uif":
        fill = draw(st.sampled_from((0, 1, 0.5, 3, 255, 256, 65_535, -1, float("nan"), float("inf"))))
        with np.errstate(all="ignore"):
            made[...] = np.array(fill).astype(kind)
    return made
