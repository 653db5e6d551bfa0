"""Tables that no shop should send: text files, Parquet files, ZIPs."""

from __future__ import annotations

import gzip
import io
import zipfile
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hostile_inputs import PICTURES, damaged, numbers, picture_bytes, pieces, texts, values
from hypothesis import strategies as st

COLUMNS = ("id", "product_id", "title", "description", "category", "category_path", "attributes", "images", "image",
           "colour", "Option1 Name", "Option1 Value", "Handle", "Image Src", "Type", "SKU", "Name", "Categories",
           "Images", "query", "event", "count", "shown", "g:id", "image_link", "")  # fmt: skip
names = st.sampled_from(COLUMNS) | pieces
GOOD_HEADERS = (["id", "title", "category", "colour", "image"], ["query", "product_id", "event", "count", "shown"],
                ["Handle", "Title", "Body (HTML)", "Option1 Name", "Option1 Value", "Image Src"],
                ["ID", "Type", "SKU", "Name", "Published", "Short description", "Categories", "Images"],
                ["product_id", "title", "description", "attributes", "specs"])  # fmt: skip
headers = st.sampled_from(GOOD_HEADERS) | st.lists(names, max_size=6)
CHAOS = ",;\t|\"\n\r\\ 'ab1{}[]:=<>&\x00é\ud800"
SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json")
cells = texts | numbers.map(repr) | st.sampled_from(("a.jpg", "a.jpg|b.jpg", "['a.jpg']", "https://x/a.jpg"))


def _delimited(header: list[str], rows: list[list[str]], mark: str, quote: str, end: str) -> str:
    return end.join(mark.join(f"{quote}{cell}{quote}" for cell in row) for row in [header, *rows])


def _json_lines(rows: list[Any], end: str) -> str:
    import json

    return end.join(json.dumps(row, ensure_ascii=False) for row in rows)


def _in(encoding: str, text: str) -> bytes:
    return text.encode(encoding, "surrogatepass" if "utf" in encoding else "replace")


ends = st.sampled_from(("\n", "\r\n", "\r", ""))
chaos = st.text(st.sampled_from(CHAOS), max_size=120)
delimited = st.builds(
    _delimited,
    headers,
    st.lists(st.lists(cells, min_size=4, max_size=7) | st.lists(cells, max_size=3), max_size=5),
    st.sampled_from(",;\t|"),
    st.sampled_from(('"', "", "'")),
    ends,
)
objects = st.sampled_from(GOOD_HEADERS).flatmap(lambda header: st.fixed_dictionaries(dict.fromkeys(header, values)))
json_lines = st.builds(
    _json_lines, st.lists(objects | st.dictionaries(names, values, max_size=6) | values, max_size=5), ends
)
encodings = st.sampled_from(("utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252"))
of_chaos = chaos | st.builds("id,title\n{}".format, chaos) | st.builds("query,product_id\n{}".format, chaos)
written = st.builds(_in, encodings, delimited | json_lines | of_chaos)


@st.composite
def table_bytes(draw: st.DrawFn) -> tuple[str, bytes]:
    """(suffix, bytes) of a text file, maybe damaged, maybe gzipped, maybe damaged after that."""
    kinds = ((SUFFIXES[:3], delimited), (SUFFIXES[3:], json_lines), (SUFFIXES, of_chaos), (SUFFIXES, delimited))
    suffixes, texts_of_kind = draw(st.sampled_from(kinds))
    suffix, data = draw(st.sampled_from(suffixes)), draw(st.builds(_in, encodings, texts_of_kind))
    if draw(st.integers(0, 5)) == 0:
        data = draw(damaged((data, b"id,title\n1,mug\n", b'{"id": 1, "title": "mug"}\n')))
    if draw(st.integers(0, 5)) == 0:
        suffix, data = f"{suffix}.gz", gzip.compress(data, 1)
        if draw(st.booleans()):
            data = draw(damaged((data,)))
    return suffix, data


def _column(kind: str, length: int) -> pa.Array:
    """Values of a type, some of them null."""
    some: dict[str, tuple[pa.DataType, Any]] = {
        "text": (pa.string(), ["a", "", "红", "a\x00b"]),
        "large": (pa.large_string(), ["a", "b", " ", "a"]),
        "number": (pa.int64(), [1, 2, -1, 2**62]),
        "float": (pa.float64(), [1.0, float("nan"), float("inf"), 1e300]),
        "bytes": (pa.binary(), [b"", b"\xff", PICTURES[0], b"a"]),
        "time": (pa.timestamp("s"), [0, 2**40, -(2**50), 1]),
        "day": (pa.date32(), [0, 2**30, -(2**30), 1]),
        "decimal": (pa.decimal128(38, 2), ["1", "2", "99999999999999999999.99", "-1"]),
        "texts": (pa.list_(pa.string()), [["a"], [], [None], ["a", "b"]]),
        "pairs": (pa.list_(pa.struct([("name", pa.string()), ("value", pa.string())])), [
            [{"name": "colour", "value": "red"}], [], [None], [{"name": None, "value": None}]]),
        "pictures": (pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())])), [
            [{"bytes": PICTURES[0], "path": None}], [], [{"bytes": None, "path": "/etc/passwd"}], [None]]),
        "picture": (pa.struct([("bytes", pa.binary()), ("path", pa.string())]), [
            {"bytes": PICTURES[1], "path": "a"}, None, {"bytes": b"", "path": None}, {"bytes": None, "path": "b"}]),
        "numbers": (pa.list_(pa.int32()), [[1], [], [None], None]),
        "nested": (pa.list_(pa.list_(pa.string())), [[["a"]], [[]], [None], [["a", None]]]),
        "map": (pa.map_(pa.string(), pa.string()), [[("a", "b")], [], [("a", None)], None]),
        "nothing": (pa.null(), [None] * 4),
        "bool": (pa.bool_(), [True, False, None, True]),
        "dictionary": (pa.dictionary(pa.int8(), pa.string()), ["a", "b", "a", None]),
    }  # fmt: skip
    type_, chosen = some[kind]
    chosen = [None if kind == "decimal" and value is None else value for value in chosen]
    if kind == "decimal":
        from decimal import Decimal

        chosen = [Decimal(value) for value in chosen]
    return pa.array([chosen[n % 4] if n % 5 != 4 else None for n in range(length)], type_)


KINDS = ("text", "text", "large", "number", "float", "bytes", "time", "day", "decimal", "texts", "pairs", "pictures",
         "picture", "numbers", "nested", "map", "nothing", "bool", "dictionary")  # fmt: skip
RIGHT = {"product_id": "text", "title": "text", "category_path": "texts", "attributes": "pairs", "images": "pictures",
         "query_id": "text", "text": "text", "image": "picture"}  # fmt: skip


@st.composite
def parquet_bytes(draw: st.DrawFn) -> bytes:
    """A Parquet file of products, some columns of another type or missing, maybe damaged."""
    length = draw(st.integers(0, 7))
    kinds = dict(RIGHT)
    for name in draw(st.lists(st.sampled_from([*RIGHT, "description", "price", "expanded_images"]), max_size=2)):
        kinds[name] = draw(st.sampled_from((*KINDS, "gone")))
    columns = {name: _column(kind, length) for name, kind in kinds.items() if kind != "gone"}
    if draw(st.booleans()):
        columns["product_id"] = pa.array([f"p{n}" for n in range(length)], pa.string())
        columns["query_id"] = columns["product_id"]
        columns["text"] = pa.array(["red mug"] * length, pa.string())
    buffer = io.BytesIO()
    way = draw(st.sampled_from(("snappy", "none", "gzip", "zstd")))
    pq.write_table(pa.table(columns), buffer, compression=way, row_group_size=draw(st.sampled_from((1, 3, 100))))
    data = buffer.getvalue()
    return draw(damaged((data,))) if draw(st.integers(0, 2)) == 0 else data


MEMBERS = ("a.jpg", "state.json", "dataset_info.json", "dataset_dict.json",
           "b.PNG", "Shoes/red shoe.webp", "shop.csv", "shop.jsonl",
           "../x.jpg", "/x.jpg", "..\\x.jpg",
           "C:x.jpg", ".hidden.jpg", "__MACOSX/a.jpg", "a\nb.jpg", ".", "..", "", "/", "a/", "a/b", "é.jpg",
           "x" * 300)  # fmt: skip


@st.composite
def zip_bytes(draw: st.DrawFn) -> bytes:
    """A ZIP of tables and pictures with all sorts of names, maybe damaged."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in draw(st.lists(st.sampled_from(MEMBERS), max_size=4)):
            kind = draw(
                st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
            )
            entry = zipfile.ZipInfo(name or "x")
            entry.filename, entry.compress_type = name, kind
            entry.external_attr = draw(st.sampled_from((0, 0o100644 << 16, 0o120777 << 16, 0o040755 << 16, 0x10)))
            archive.writestr(entry, bytes(2 << 20) if draw(st.integers(0, 9)) == 0 and kind == zipfile.ZIP_DEFLATED
                             else draw(picture_bytes | written))  # fmt: skip
    data = buffer.getvalue()
    return draw(damaged((data,))) if draw(st.booleans()) else data
