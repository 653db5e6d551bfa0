"""Files that would be small and cost very much; made up by hand, tried in the whole run alone."""

from __future__ import annotations

import io
import json
import os
import zlib

import numpy as np
import pytest
from PIL import Image
from watched import is_long_run, watched

from modeling_moon2.processing_moon2 import load_image
from moon2_dataset.build.clean import clean_product
from moon2_dataset.build.pictures import check_picture
from moon2_dataset.build.sources import open_source

pytestmark = pytest.mark.skipif(not is_long_run(), reason="they take a gigabyte; give --hypothesis-profile=whole")
EVERY_MODE = ("1", "L", "P", "RGB", "RGBA", "LA", "I;16")
MODES = {"PNG": EVERY_MODE, "TIFF": EVERY_MODE, "WEBP": ("RGB", "RGBA"), "JPEG": ("L", "RGB"), "GIF": ("P",)}
TABLES = {
    "quotes that each swallow the rest": (".csv", lambda: "id,title\n" + 'a","\n' * 100_000),
    "a quote that is never closed": (".csv", lambda: 'id,title\n1,"' + "mug\n" * 50_000),
    "equal names of columns": (".csv", lambda: ",".join(["a"] * 500_000) + "\n1\n"),
    "the most columns": (".csv", lambda: ",".join(f"c{n}" for n in range(2_000)) + "\n" + ("1," * 2_000 + "\n") * 200),
    "a name of a column without end": (".csv", lambda: "id,title," + "_" * 1_000_000 + "1 name\n1,mug,x\n"),
    "many columns of underscores": (".csv", lambda: ",".join(["_" * 190] * 1_900) + "\n"),
    "a field without end": (".csv", lambda: "id,title\n1," + "a" * 16_000_000 + "\n"),
    "white space in attributes": (".csv", lambda: "id,title,specs\n" + ('1,mug,":' + " " * 65_000 + 'x"\n') * 20),
    "brackets in attributes": (".csv", lambda: "id,title,specs\n" + ("1,mug," + "[" * 150_000 + "\n") * 5),
    "sums in attributes": (".csv", lambda: 'id,title,specs\n1,mug,"[' + "1+" * 60_000 + '1]"\n'),
    "tags in a description": (".csv", lambda: "id,title,description\n" + ("1,mug," + "<a " * 100_000 + "\n") * 20),
    "very many objects on a line": (".jsonl", lambda: '{"title": [' + "{}," * 1_500_000 + "{}]}\n"),
    "lists in lists": (".jsonl", lambda: '{"title": ' + "[" * 400_000 + "\n" + '{"id": 1, "title": "mug"}\n'),
    "very many names on a line": (".jsonl", lambda: json.dumps({f"k{n}": n for n in range(80_000)}) + "\n"),
    "numbers without end": (".jsonl", lambda: ('{"id": ' + "9" * 4_000 + ', "title": ' + "9" * 4_000 + "}\n") * 500),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table(name, tmp_path):
    suffix, text = TABLES[name]
    file = tmp_path / f"shop{suffix}"
    file.write_text(text())
    with watched("tables that cost much", ValueError):
        source = open_source(file)
        for batch in source.batches():
            for row in batch:
                clean_product(row, source.mapping, None, 64, tmp_path)


@pytest.mark.parametrize(("form", "mode"), [(form, mode) for form, modes in MODES.items() for mode in modes])
def test_a_picture(form, mode, tmp_path):
    width, height = (16_000, 3_000) if form == "WEBP" else (10_000, 5_000)
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, form, **({"compression": "tiff_lzw"} if form == "TIFF" else {}))
    data = buffer.getvalue()
    del buffer
    with watched("pictures of the most pixels, load_image", ValueError):
        assert load_image(data).size == (width, height)
    with watched("pictures of the most pixels, check_picture"):
        assert check_picture(data, "a", 512)[2] is None


def test_texts_inside_a_picture():
    image, buffer = Image.fromarray(np.zeros((32, 32, 3), np.uint8)), io.BytesIO()
    image.save(buffer, "PNG")
    data = buffer.getvalue()
    for kind, body in ((b"zTXt", b"a\0\0" + zlib.compress(bytes(200 << 20), 9)),
                       (b"iCCP", b"a\0\0" + zlib.compress(bytes(200 << 20), 9)),
                       (b"tEXt", os.urandom(20 << 20))):  # fmt: skip
        chunk = len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
        with watched("texts inside a picture", ValueError):
            load_image(data[:33] + chunk + data[33:])
