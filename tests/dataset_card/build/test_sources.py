"""Sources: every kind of path opens, batches are bounded and restart anywhere, places and fingerprints hold."""

from __future__ import annotations

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from moon2_dataset.build import sources
from moon2_dataset.build.sources import open_log, open_source

ROWS = [{"id": f"P{n}", "title": f"red mug {n}", "category": "Home > Mugs"} for n in range(25)]


def write(folder, kind, rows=ROWS, name="shop"):
    path = folder / f"{name}.{kind}"
    if kind in ("csv", "tsv"):
        with open(path, "w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)
    else:
        Dataset.from_list(rows).save_to_disk(path)
    return path


def read(source, start=0, size=1000):
    return [row for batch in source.batches(start, size) for row in batch]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "saved", "hub"])
def test_every_format_gives_the_same_rows_from_every_start(tmp_path, kind):
    path = f"hf:{write(tmp_path, 'parquet').parent}:train" if kind == "hub" else write(tmp_path, kind)
    source = open_source(path)
    whole = read(source)
    assert [row.values for row in whole] == ROWS and [row.number for row in whole] == list(range(25))
    assert source.mapping == {"product_id": ("id",), "title": ("title",), "category_path": ("category",)}
    assert source.num_rows == (25 if kind in ("parquet", "saved") else None)
    for start in (1, 4, 24, 25, 40):
        assert read(source, start, 7) == whole[start:]
    assert [len(batch) for batch in source.batches(size=10)] == [10, 10, 5]
    assert "product_id <- id: its name; 100% of 25 values differ" in source.explain()


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_globs_lists_and_folders_of_files_are_one_source(tmp_path, kind):
    write(tmp_path, kind, ROWS[:10], "part-0")
    write(tmp_path, kind, ROWS[10:], "part-1")
    for path in (tmp_path / "part-*", str(tmp_path / f"*.{kind}"), tmp_path,
                 [tmp_path / f"part-0.{kind}", str(tmp_path / f"part-1.{kind}")]):  # fmt: skip
        source = open_source(path)
        whole = read(source)
        assert [row.values["id"] for row in whole] == [f"P{n}" for n in range(25)]
        assert [row.number for row in whole] == list(range(25))
        first = "row 0" if kind == "parquet" else "line 1" if kind == "jsonl" else "line 2"
        assert whole[10].place == f"part-1.{kind} {first}"
        for start in (3, 9, 10, 17, 25):
            assert read(source, start) == whole[start:]


def test_files_of_one_name_are_told_apart(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, "csv")
    source = open_source(str(tmp_path / "*" / "shop.csv"))
    assert read(source)[25].place == f"{tmp_path}/b/shop.csv line 2"
    assert read(source)[25].folder == tmp_path / "b"


def test_a_metadata_file_in_a_folder_of_images_is_the_table(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.jpg", "title": "red mug"}\n')
    source = open_source(tmp_path)
    assert source.mapping == {"title": ("title",), "images": ("file_name",)}
    assert "products are numbered by their rows; a log cannot name them" in source.explain()


def test_of_the_folder_of_a_data_set_its_products_are_read(tmp_path):
    for split, names in (("train-00000", ["a", "b"]), ("test", ["c"])):
        table = pa.table({"product_id": names, "title": [f"mug {name}" for name in names]})
        pq.write_table(table, tmp_path / f"products-{split}.parquet")
    pq.write_table(pa.table({"query_id": ["q"], "text": ["mug"]}), tmp_path / "queries-train-00000.parquet")
    (tmp_path / "build_report.json").write_text("{}")
    source = open_source(tmp_path)
    assert [row.values["product_id"] for row in read(source)] == ["c", "a", "b"]
    assert f"{tmp_path}: read its products*.parquet alone" in source.explain()


def test_a_folder_of_images(tmp_path):
    (tmp_path / "Home" / "Mugs").mkdir(parents=True)
    (tmp_path / "Home" / "Mugs" / "red_mug.jpg").write_bytes(b"x")
    source = open_source(tmp_path)
    (row,) = read(source)
    assert row.values == {"product_id": "Home/Mugs/red_mug.jpg", "title": "red mug", "category_path": ["Home", "Mugs"],
                          "images": "Home/Mugs/red_mug.jpg"}  # fmt: skip
    assert source.num_rows == 1


def test_only_wanted_columns_are_kept(tmp_path):
    rows = [row | {"vector": "0.1 0.2", "stock": n} for n, row in enumerate(ROWS)]
    source = open_source(write(tmp_path, "csv", rows))
    assert set(read(source)[0].values) == {"id", "title", "category"}
    assert any(line.startswith("not used: vector, stock; to keep them, give attributes=") for line in source.explain())
    source = open_source(write(tmp_path, "csv", rows), {"attributes": "stock", "category_path": ""})
    assert set(read(source)[0].values) == {"id", "title", "stock"}


def test_batches_end_early_where_rows_are_large(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BATCH_BYTES", 10_000)
    rows = [{"id": str(n), "title": "x" * 3_000} for n in range(9)]
    assert [len(batch) for batch in open_source(write(tmp_path, "csv", rows)).batches()] == [4, 4, 1]
    with pytest.raises(ValueError, match="start -1, size 5; give start >= 0"):
        open_source(write(tmp_path, "csv", rows)).batches(-1, 5)


def test_lines_read_as_cp1252_are_counted_however_often_and_wherever_it_starts(tmp_path):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_bytes("id,title\n1,Café\n2,Tee\n3,Größe\n".encode("cp1252"))
    source = open_source(tmp_path)
    for start in (0, 5, 0):
        assert read(source, start)[-1].values["title"] == "Größe"
        assert source.counts == {"read_as_cp1252": 4}


def test_the_fingerprint_changes_with_the_files_and_only_then(tmp_path):
    path = write(tmp_path, "csv")
    before = open_source(path).fingerprint
    assert open_source(path, {"title": "category"}).fingerprint == before
    write(tmp_path, "csv", ROWS[:-1])
    assert open_source(path).fingerprint != before
    assert open_source(write(tmp_path, "jsonl")).fingerprint != before


def test_logs(tmp_path):
    rows = [{"search": f"mug {n}", "item": f"P{n}", "event": "click", "seen": "P1|P2"} for n in range(6)]
    log = open_log(write(tmp_path, "csv", rows, "log"), {"shown": "seen"})
    assert log.mapping == {"text": ("search",), "product_id": ("item",), "event": ("event",), "shown": ("seen",)}
    assert read(log)[3].values == rows[3]
    with pytest.raises(ValueError, match="log.csv: no column found for text or image"):
        open_log(write(tmp_path, "csv", [{"item": "P1", "event": "click"}], "log"))


def test_shop_columns_of_a_log_are_not_taken_for_a_shop(tmp_path):
    rows = [{"Handle": "mug", "Title": "red mug", "Image Src": "a.jpg", "query": "mug"}] * 3
    log = open_log(write(tmp_path, "csv", rows, "log"))
    assert len(read(log)) == 3 and log.mapping["text"] == ("query",)


@pytest.mark.parametrize("make, error, message", [
    (lambda f: f / "none.csv", FileNotFoundError, "none.csv: no such file; give a file, a glob, a folder, or hf:"),
    (lambda f: f / "*.csv", FileNotFoundError, "no such file"),
    (lambda f: f, ValueError, "neither tables nor images in that folder"),
    (lambda f: [], ValueError, "no path given"),
    (lambda f: [write(f, "csv"), write(f, "jsonl")], ValueError, "shop.jsonl: two formats; give files of one"),
    (lambda f: (f / "a.xlsx").write_bytes(b"x") and f / "a.xlsx", ValueError, "a.xlsx: not a known format; give .csv"),
    (lambda f: [write(f, "csv"), write(f, "csv", [{"id": 1, "name": "x"}], "b")], ValueError,
     "b.csv has no column 'title', which shop.csv has; read it on its own"),
])  # fmt: skip
def test_wrong_paths_name_the_way_out(tmp_path, make, error, message):
    with pytest.raises(error, match=message):
        open_source(make(tmp_path))


def test_an_empty_table_is_a_source_without_rows(tmp_path):
    (tmp_path / "a.csv").write_text("id,title\n")
    assert read(open_source(tmp_path / "a.csv")) == []


def test_the_sample_that_columns_are_guessed_from_is_small_where_rows_are_large(tmp_path, monkeypatch):
    monkeypatch.setattr("moon2_dataset.build.sources.BATCH_BYTES", 10_000)
    (tmp_path / "a.csv").write_text("id,title\n" + "".join(f"{i},{'mug ' * 500}\n" for i in range(50)))
    lines = open_source(tmp_path / "a.csv").explain()
    assert "product_id <- id: its name; 100% of 5 values differ" in lines


def test_a_table_of_too_many_columns_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("id,title," + ",".join(f"c{n}" for n in range(1_999)) + "\n1,mug\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({f"c{n}": n for n in range(2_001)}) + "\n")
    for name in ("a.csv", "b.jsonl"):
        with pytest.raises(ValueError, match=f"{name}.*: 2,001 columns; give a table of at most 2,000"):
            open_source(tmp_path / name)
    row = json.dumps({"id": 1, "title": "mug " * 1_000}) + "\n"
    for late in (json.dumps({f"c{n}": n for n in range(3_000)}), json.dumps({"x" * 2_000_000: 1})):
        (tmp_path / "c.jsonl").write_text(300 * row + late + "\n" + row)
        with pytest.raises(ValueError, match=r"c.jsonl line 301: [\d,]+ columns; give a table of at most 2,000"):
            open_source(tmp_path / "c.jsonl")


def test_columns_that_come_late_in_json_lines_are_mapped(tmp_path):
    rows = [{"sku": f"a{n}", "title": f"Mug {n}", "text": "stoneware " * 60} for n in range(3_000)]
    rows[-1] |= {"color": "red", "image": "a.jpg", "category": "Mugs"}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_source(tmp_path / "a.jsonl")
    assert {"attributes": ("color",), "images": ("image",), "category_path": ("category",)}.items() <= (
        source.mapping.items()
    )
    assert [*source.batches()][-1][-1].values["color"] == "red"
