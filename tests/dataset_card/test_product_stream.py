from __future__ import annotations

import pickle
import struct

import fsspec
import lancedb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moon2_dataset import load_products
from moon2_dataset.product_stream import ParquetPart, ProductStream
from moon2_dataset.rows import SchemaError


@pytest.fixture
def files(shop, tmp_path):
    """24 products in two files of a folder, in row groups of 5."""
    for number, rows in enumerate((range(14), range(14, 24))):
        table = shop.products.select(rows).with_format("arrow")[:]
        pq.write_table(table, tmp_path / f"products-{number}.parquet", row_group_size=5)
    return tmp_path


@pytest.mark.parametrize(
    ("start", "stop"), [(0, None), (0, 5), (3, 4), (4, 11), (12, 20), (14, 24), (23, None), (9, 9)]
)
def test_any_range_of_rows_is_read_in_order_with_its_pictures(files, shop, start, stop):
    stream = ProductStream(files)
    rows = [row for table in stream.tables(start, stop) for row in table.to_pylist()]
    expected = shop.products.select(range(start, 24 if stop is None else stop))
    assert [row["product_id"] for row in rows] == expected["product_id"]
    assert [row["images"] for row in rows] == list(expected["images"])
    assert [row["title"] for row in rows] == list(expected["title"])
    assert all(row.keys() == {"product_id", "title", "images"} for row in rows)


def test_a_stream_names_its_rows_and_can_be_pickled(files):
    stream = pickle.loads(
        pickle.dumps(ProductStream([str(files / "products-1.parquet"), files / "products-0.parquet"]))
    )
    assert stream.num_rows == 24 and stream.place(9) == "products-1.parquet row 9"
    assert stream.place(10) == "products-0.parquet row 0"
    assert list(stream.ids())[9:11] == ["p23", "p0"]


def test_the_fingerprint_changes_when_a_file_does(files):
    before = ProductStream(files).fingerprint
    assert ProductStream(files).fingerprint == before
    pq.write_table(pq.read_table(files / "products-1.parquet").slice(1), files / "products-1.parquet")
    assert ProductStream(files).fingerprint != before


def test_repeated_and_missing_ids_are_refused(files, shop):
    stream = ProductStream(files)
    stream.refuse_repeated_ids()
    again = shop.products.select([3, 5]).with_format("arrow")[:]
    pq.write_table(again, files / "products-2.parquet")
    with pytest.raises(
        SchemaError, match=r"products-2.parquet row 0: product_id p3 is already in products-0.parquet row 3 \(2 "
    ):
        ProductStream(files).refuse_repeated_ids()
    blank = again.set_column(0, "product_id", pa.array(["new", " "]))
    pq.write_table(blank, files / "products-2.parquet")
    with pytest.raises(SchemaError, match="products-2.parquet row 1: no product_id"):
        ProductStream(files).refuse_repeated_ids()


def test_a_lance_table_is_read_in_the_version_it_had(shop, tmp_path):
    table = shop.products.with_format("arrow")[:].replace_schema_metadata(None)
    database = lancedb.connect(tmp_path)
    opened = database.create_table("shop", data=table)
    stream = ProductStream(tmp_path / "shop.lance")
    opened.delete("product_id = 'p1'")
    again = pickle.loads(pickle.dumps(stream))
    for known in (stream, again):
        rows = [row for part in known.tables(1, 5) for row in part.to_pylist()]
        assert [row["product_id"] for row in rows] == ["p1", "p2", "p3", "p4"]
        assert rows[1]["images"] == shop.products[2]["images"]
    newer = ProductStream(tmp_path / "shop.lance")
    assert newer.num_rows == 23 and newer.fingerprint != stream.fingerprint


def test_a_data_set_of_the_hub_is_read_by_its_parquet_files(saved_shop, monkeypatch):
    monkeypatch.chdir(saved_shop.parent)  # a local folder stands for OWNER/NAME
    (saved_shop.parent / "owner").mkdir(exist_ok=True)
    folder = saved_shop.parent / "owner" / "shop"
    if not folder.exists():
        (folder / "data").mkdir(parents=True)
        for split, part in (("train", "train-00000"), ("test", "test")):
            target = folder / "data" / f"{split}-00000-of-00001.parquet"
            target.write_bytes((saved_shop / f"products-{part}.parquet").read_bytes())
    stream = ProductStream("hf:owner/shop:test")
    assert stream.from_hub and stream.num_rows == 8
    assert next(stream.ids()) == "p16"
    with pytest.raises(SchemaError, match="splits .*; give one, e.g. hf:owner/shop:"):
        ProductStream("hf:owner/shop")
    with pytest.raises(FileNotFoundError, match="hf:nobody/nothing: cannot be opened"):
        ProductStream("hf:nobody/nothing")


def test_a_file_elsewhere_is_read_by_its_file_system(files, shop):
    memory = fsspec.filesystem("memory")
    with memory.open("/shop/products.parquet", "wb") as file:
        file.write((files / "products-0.parquet").read_bytes())
    part = ParquetPart("/shop/products.parquet", "shop/products.parquet", memory)
    tables = list(part.tables(3, 6, ["product_id"]))
    assert [name for table in tables for name in table["product_id"].to_pylist()] == ["p3", "p4", "p5"]


@pytest.mark.parametrize(
    ("content", "message"), [(b"no parquet", "products-1.parquet: cannot be read as Parquet"), (None, "no rows")]
)
def test_what_is_no_catalogue_is_refused(files, content, message):
    if content is None:
        for path in files.glob("*.parquet"):
            pq.write_table(pq.read_table(path).slice(0, 0), path)
    else:
        (files / "products-1.parquet").write_bytes(content)
    with pytest.raises(SchemaError, match=message):
        ProductStream(files)


def test_damage_inside_a_file_names_the_rows(files):
    path = files / "products-0.parquet"
    data = bytearray(path.read_bytes())
    data[4:400] = bytes(396)  # of the first row group
    path.write_bytes(data)
    with pytest.raises(SchemaError, match="products-0.parquet: rows from .* on cannot be read"):
        list(ProductStream(files).tables())


def test_texts_that_are_none_name_the_rows(files):
    path = files / "products-0.parquet"
    ids = pa.StringArray.from_buffers(2, pa.py_buffer(struct.pack("<3i", 0, 1, 3)), pa.py_buffer(b"a\x80\xfe"))
    pq.write_table(pa.table({"product_id": ids, "title": ["red mug", "mug"]}), path)
    for read in (lambda: ProductStream(path).refuse_repeated_ids(), lambda: load_products(path)):
        with pytest.raises(SchemaError, match="products-0.parquet: .*cannot be read"):
            read()


def test_a_column_of_another_type_names_the_file(files):
    pq.write_table(pa.table({"product_id": ["a"], "title": [["no", "text"]]}), files / "products-0.parquet")
    with pytest.raises(SchemaError, match="products-0.parquet: column title is"):
        list(ProductStream(files).tables())
