from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moon2_dataset import shards
from moon2_dataset.shards import Shards, ShardWriter, Tally, read_notes, written

SCHEMA = pa.schema([("number", pa.int64()), ("picture", pa.binary())])


def rows(start: int, end: int, size: int = 0) -> pa.Table:
    return pa.table([range(start, end), [bytes(size)] * (end - start)], schema=SCHEMA)


def numbers(folder, name="part") -> list[list[int]]:
    return [pq.read_table(path)["number"].to_pylist() for path in written(folder, name)]


def test_a_tally_counts_with_the_first_examples_also_over_several_files():
    first, second, whole = Tally(), Tally(), Tally()
    for place in range(5):
        for tally in (first if place < 2 else second, whole):
            tally.add("broken", f"row {place}")
            tally.add("rare" if place == 4 else "common")
    joined = Tally()
    joined.merge(first.as_json())
    joined.merge(second.as_json())
    assert joined.as_json() == whole.as_json()
    assert list(joined.as_json()) == ["broken", "common", "rare"]
    assert joined.as_json()["broken"] == {"rows": 5, "examples": ["row 0", "row 1", "row 2"]}
    assert joined.total() == 10


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path):
    path = tmp_path / "part-00000.parquet"
    writer = ShardWriter(path, SCHEMA)
    writer.write(rows(0, 3))
    writer.write(rows(0, 0))
    assert not path.exists() and writer.row_groups == 1
    writer.close({"rows": 3})
    assert read_notes(path) == {"rows": 3}
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_rows_are_dealt_into_files_of_one_size(tmp_path):
    out = Shards(tmp_path, "part", SCHEMA, 10)
    for start, end in ((0, 4), (4, 4), (4, 31), (31, 34)):
        out.add(rows(start, end))
    assert len(numbers(tmp_path)) == 3
    out.finish()
    assert numbers(tmp_path) == [[*range(0, 10)], [*range(10, 20)], [*range(20, 30)], [*range(30, 34)]]


@pytest.mark.parametrize("finished", range(5))
def test_going_on_after_any_file_gives_the_same_bytes(tmp_path, finished, monkeypatch):
    monkeypatch.setattr(shards, "GROUP_ROWS", 3)
    tables = [rows(0, 4), rows(4, 9), rows(9, 10), rows(10, 27), rows(27, 34)]
    (tmp_path / "whole").mkdir()
    (tmp_path / "again").mkdir()
    for folder in ("whole", "again"):
        out = Shards(tmp_path / folder, "part", SCHEMA, 10)
        for table in tables:
            out.add(table)
        out.finish()
    for path in written(tmp_path / "again", "part")[finished:]:
        path.unlink()
    out = Shards(tmp_path / "again", "part", SCHEMA, 10)
    for table in tables:
        if out.has(len(table)):
            out.pass_over(len(table))
        else:
            out.add(table)
    out.finish()
    whole = [path.read_bytes() for path in written(tmp_path / "whole", "part")]
    assert [path.read_bytes() for path in written(tmp_path / "again", "part")] == whole


def test_row_groups_are_small_in_rows_and_in_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "GROUP_BYTES", 5_000)
    out = Shards(tmp_path, "part", SCHEMA, 10_000)
    for start in range(0, 40, 4):
        out.add(rows(start, start + 4, 500))
    for start in range(40, 3040, 100):
        out.add(rows(start, start + 100))
    out.finish()
    metadata = pq.read_metadata(tmp_path / "part-00000.parquet")
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    assert sizes[:3] == [12, 12, 12] and max(sizes) <= 1100 and sum(sizes) == 3040
