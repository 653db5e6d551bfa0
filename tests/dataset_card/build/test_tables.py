"""Parquet, image folders, saved data and Hub data: rows, restarts and damage."""

from __future__ import annotations

import io
import json
import re

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PilImage

from moon2_dataset.build.tables import HubRows, ImageFolder, ParquetTable, SavedRows, _fetched
from moon2_dataset.product_stream import ProductStream


def png(seed=0, size=(20, 24)):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    PilImage.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def read(table, start=0, columns=None):
    return list(table.rows(start, columns or table.columns))


@pytest.fixture(scope="module")
def table():
    return pa.table({"id": list(range(50)), "title": [f"mug {n}" for n in range(50)],
                     "tags": [["a", "b"]] * 50, "unused": [[0.5] * 8] * 50})  # fmt: skip


def test_parquet_rows_start_anywhere_and_hold_only_wanted_columns(tmp_path, table):
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=12)
    rows = ParquetTable(tmp_path / "a.parquet", "a.parquet")
    assert rows.num_rows == 50 and rows.columns == ["id", "title", "tags", "unused"]
    whole = read(rows, 0, ["title", "id"])
    assert [row.number for row in whole] == list(range(50)) and whole[17].place == "a.parquet row 17"
    assert whole[17].values == {"title": "mug 17", "id": 17} and whole[17].folder == tmp_path
    for start in (0, 11, 12, 13, 49, 50, 99):
        assert read(rows, start, ["title", "id"]) == whole[start:]


def test_restarting_parquet_does_not_read_the_row_groups_before(tmp_path, table, monkeypatch):
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    rows = ParquetTable(tmp_path / "a.parquet", "a")
    groups = []
    read_batches = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches",
                        lambda self, size, row_groups, columns: groups.extend(row_groups)
                        or read_batches(self, size, row_groups=row_groups, columns=columns))  # fmt: skip
    assert len(read(rows, 35)) == 15 and groups == [3, 4]


def test_a_damaged_row_group_costs_its_own_rows(tmp_path, table):
    file = tmp_path / "a.parquet"
    pq.write_table(table, file, row_group_size=10, compression="zstd", write_page_checksum=True, use_dictionary=False)
    rows = ParquetTable(file, "a")
    meta = pq.ParquetFile(file).metadata.row_group(2).column(1)
    data = bytearray(file.read_bytes())
    middle = meta.data_page_offset + meta.total_compressed_size // 2
    data[middle : middle + 8] = b"\xff" * 8
    file.write_bytes(data)
    got = read(rows)
    assert [row.number for row in got] == list(range(50))
    lost = [row.number for row in got if row.error]
    assert lost == list(range(20, 30)) and "row group cannot be read" in got[20].error


def test_a_row_group_whose_columns_have_names_that_are_no_text_costs_its_own_rows(tmp_path):
    pq.write_table(pa.table({"id": ["a"] * 20}), tmp_path / "a.parquet", row_group_size=10, store_schema=False)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    places = [match.start() for match in re.finditer(b"\x02id", bytes(data))]
    data[places[-1] + 1] = 0x80  # of the last row group's path
    (tmp_path / "a.parquet").write_bytes(data)
    rows = read(ParquetTable(tmp_path / "a.parquet", "a"))
    assert [row.number for row in rows if row.error] == list(range(10, 20))
    assert "row group cannot be read" in rows[10].error


def test_values_python_cannot_hold_cost_their_row(tmp_path):
    title = pa.StringArray.from_buffers(2, pa.py_buffer(np.array([0, 1, 3], np.int32)), pa.py_buffer(b"a\xff\xfe"))
    pq.write_table(pa.table({"id": [1, 2], "title": title}), tmp_path / "a.parquet")
    rows = read(ParquetTable(tmp_path / "a.parquet", "a"))
    assert rows[0].values == {"id": 1, "title": "a"} and "a value cannot be read" in rows[1].error


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(ValueError, match="a.parquet: cannot be read as Parquet"):
        ParquetTable(tmp_path / "a.parquet", "a.parquet")


def test_saved_data_gives_undecoded_images_from_any_row(tmp_path):
    data = Dataset.from_dict(
        {"id": list(range(30)), "image": [{"bytes": png(n), "path": None} for n in range(30)]},
        features=Features({"id": Value("int64"), "image": Image()}),
    )
    data.select(range(5, 30)).save_to_disk(tmp_path / "one", num_shards=3)  # with an index of its own
    rows = SavedRows(tmp_path / "one")
    whole = read(rows)
    assert rows.num_rows == 25 and [row.values["id"] for row in whole] == list(range(5, 30))
    assert whole[0].values["image"] == {"bytes": png(5), "path": None} and whole[3].place == "one row 3"
    assert read(rows, 11) == whole[11:] and read(rows, 25) == []
    DatasetDict(train=data).save_to_disk(tmp_path / "dict")
    assert SavedRows(tmp_path / "dict").num_rows == 30
    DatasetDict(train=data, test=data).save_to_disk(tmp_path / "two")
    with pytest.raises(ValueError, match="splits train, test; give one of them, e.g. .*two/train"):
        SavedRows(tmp_path / "two")


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    """What a repository on the Hub looks like, on disk."""
    folder = tmp_path_factory.mktemp("hub") / "shop"
    (folder / "data").mkdir(parents=True)
    for split, first in (("train", 0), ("test", 100)):
        data = Dataset.from_dict(
            {"id": [first + n for n in range(20)], "image": [{"bytes": png(n), "path": "x.png"} for n in range(20)]},
            features=Features({"id": Value("int64"), "image": Image()}),
        )
        data.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def test_hub_data_is_streamed_undecoded(hub_folder):
    rows = HubRows(f"hf:{hub_folder}:test")
    whole = read(rows)
    assert [row.values["id"] for row in whole] == list(range(100, 120)) and rows.columns == ["id", "image"]
    assert whole[2].values["image"]["bytes"] == png(2)
    assert read(rows, 7) == whole[7:]
    assert read(rows, 0, ["id"])[0].values == {"id": 100}
    assert rows.fingerprint == HubRows(f"hf:{hub_folder}:default:test").fingerprint
    assert rows.fingerprint != HubRows(f"hf:{hub_folder}:train").fingerprint


def test_hub_splits_are_named_and_other_specs_refused(hub_folder, tmp_path):
    with pytest.raises(ValueError, match="splits train, test; give one"):
        HubRows(f"hf:{hub_folder}")
    with pytest.raises(ValueError, match="splits train, test; give one"):
        HubRows(f"hf:{hub_folder}:valid")
    with pytest.raises(ValueError, match="give hf:OWNER/NAME"):
        HubRows("hf:")
    with pytest.raises(ValueError, match="cannot be opened"):
        HubRows("hf:nobody-here/nothing-there:train")


def test_a_hub_folder_of_images_is_read_from_its_addresses(tmp_path):
    (tmp_path / "images").mkdir()
    for n in range(3):
        (tmp_path / "images" / f"{n}.png").write_bytes(png(n))
    rows = read(HubRows(f"hf:{tmp_path}/images"))
    assert [row.values["image"]["path"].rpartition("/")[2] for row in rows] == ["0.png", "1.png", "2.png"]


def test_files_on_the_hub_are_fetched_and_no_others(monkeypatch, tmp_path):
    (tmp_path / "a.png").write_bytes(b"secret")
    opened = fsspec.open
    with opened("memory://shop/a.png", "wb") as stream:
        stream.write(b"picture")
    monkeypatch.setattr(fsspec, "open", lambda path, mode: opened(path.replace("hf://", "memory://"), mode))
    got = _fetched([{"bytes": None, "path": "hf://shop/a.png"}, {"bytes": None, "path": "hf://shop/none.png"}])
    assert got == [{"bytes": b"picture", "path": "a.png"}, {"bytes": None, "path": "hf://shop/none.png"}]
    for path in ("https://shop.example/a.png", f"file://{tmp_path}/a.png", f"local://{tmp_path}/a.png", "s3://b/a.png",
                 f"simplecache::file://{tmp_path}/a.png", f"zip://a.png::file://{tmp_path}/a.zip", "ftp://x/a.png",
                 f"hf://x::file://{tmp_path}/a.png", "memory://shop/a.png"):  # fmt: skip
        assert _fetched({"bytes": None, "path": path}) == {"bytes": None, "path": path}


def test_image_folders_name_products_by_their_files(tmp_path):
    for name in (
        "Men/Running_shoes/red_shoe.jpg",
        "Men/b.PNG",
        "a-z.webp",
        "IMG_0042.jpg",
        "Men/notes.txt",
        ".x/y.jpg",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    folder = ImageFolder(tmp_path)
    rows = read(folder)
    assert folder.num_rows == 4 and folder.counts == {"not_an_image_file": 1}
    assert [row.values["product_id"] for row in rows] == [
        "IMG_0042.jpg", "Men/Running_shoes/red_shoe.jpg", "Men/b.PNG", "a-z.webp"]  # fmt: skip
    assert [row.values["title"] for row in rows] == ["", "red shoe", "b", "a-z"]
    assert rows[1].values["category_path"] == ["Men", "Running shoes"] and rows[0].values["category_path"] == []
    assert read(folder, 2) == rows[2:]
    before = folder.fingerprint
    assert ImageFolder(tmp_path).fingerprint == before
    (tmp_path / "a-z.webp").write_bytes(b"x")
    assert ImageFolder(tmp_path).fingerprint != before


def test_one_large_value_that_all_rows_share_is_not_held_for_all_at_once(tmp_path, monkeypatch):
    pq.write_table(pa.table({"title": ["x" * 200_000] * 500, "id": range(500)}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 100_000  # and 100 MB when it is unfolded
    held = []
    iter_batches = pq.ParquetFile.iter_batches

    def watched(self, *arguments, **options):
        for batch in iter_batches(self, *arguments, **options):
            held.append(batch.nbytes)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    monkeypatch.setattr("moon2_dataset.build.tables.MOST_BYTES", 2_000_000)
    rows = ParquetTable(tmp_path / "a.parquet", "a.parquet").rows(0, ["id", "title"])
    assert sum(len(row.values["title"]) for row in rows) == 100_000_000
    assert max(held) <= 2_100_000


def test_saved_data_stay_in_their_folder(tmp_path):
    for name in ("secret", "shop"):
        Dataset.from_dict({"title": [name]}).save_to_disk(tmp_path / name)
    state = tmp_path / "shop" / "state.json"
    told = json.loads(state.read_text())
    (arrow,) = (tmp_path / "secret").glob("*.arrow")
    for place in (str(arrow), f"../secret/{arrow.name}"):
        state.write_text(json.dumps(told | {"_data_files": [{"filename": place}]}))
        with pytest.raises(ValueError, match="outside the folder; save it again"):
            SavedRows(tmp_path / "shop")
    for wrong in ("{}", "[", "[]", '{"_data_files": 3}'):
        state.write_text(wrong)
        with pytest.raises(ValueError, match="cannot be read as saved by datasets"):
            SavedRows(tmp_path / "shop")


@pytest.mark.parametrize("read", [lambda path: ParquetTable(path, path.name), lambda path: ProductStream(str(path))])
def test_parquet_whose_column_names_are_no_text_is_refused_by_name(read, tmp_path):
    pq.write_table(pa.table({"product_id": ["a"], "title": ["mug"]}), tmp_path / "shop.parquet", store_schema=False)
    data = (tmp_path / "shop.parquet").read_bytes()
    (tmp_path / "shop.parquet").write_bytes(data.replace(b"title", b"\x80itle"))
    with pytest.raises(ValueError, match="shop.parquet: cannot be read as Parquet"):
        read(tmp_path / "shop.parquet")
