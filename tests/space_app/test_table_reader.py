"""Reads see what was just written, by whoever, from any thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import lancedb
import pytest

from moon2_space.table_reader import TableReader


@pytest.fixture
def table(tmp_path):
    return lancedb.connect(tmp_path).create_table("rows", [{"row": row} for row in range(3)])


@pytest.fixture
def reader(table, tmp_path):
    return TableReader(tmp_path, "rows", lancedb.Session())


def rows(reader):
    return sorted(reader.read(lambda table: table.query().select(["row"]))["row"].to_pylist())


def test_it_sees_every_write_at_once(reader, table, tmp_path):
    assert rows(reader) == [0, 1, 2]
    for row in range(3, 8):
        table.add([{"row": row}])
        assert rows(reader) == list(range(row + 1))
    lancedb.connect(tmp_path).open_table("rows").delete("row > 0")  # as another process would
    assert rows(reader) == [0]


def test_threads_read_at_once(reader):
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: rows(reader), range(40))) == [[0, 1, 2]] * 40


def test_a_wrong_query_is_an_error_and_the_next_is_answered(reader):
    with pytest.raises(Exception, match="colour"):
        reader.read(lambda table: table.query().select(["colour"]))
    assert rows(reader) == [0, 1, 2]
