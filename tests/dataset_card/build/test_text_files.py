"""CSV and JSON Lines files: dialect, encoding, line numbers, and what is broken."""

from __future__ import annotations

import csv
import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moon2_dataset.build import text_files
from moon2_dataset.build.text_files import Delimited, JsonLines

ROWS = [["1", "red mug", "Home > Kitchen"], ["2", 'the "big" one, blue', "Home"], ["3", "two\nlines; or | more", ""]]


def read(table, start=0):
    return list(table.rows(start, table.columns))


def write(path, rows, encoding="utf-8", **dialect):
    with open(path, "w", newline="", encoding=encoding) as stream:
        csv.writer(stream, **dialect).writerows([["id", "title", "category"], *rows])
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_dialect_and_encoding_are_found(tmp_path, delimiter, encoding, end):
    rows = [*ROWS, ["4", "Schön — 赤い", "Küche"]]
    table = Delimited(write(tmp_path / "a.csv", rows, encoding, delimiter=delimiter, lineterminator=end), "a.csv")
    assert [list(row.values.values()) for row in read(table)] == rows
    assert [row.place for row in read(table)] == ["a.csv line 2", "a.csv line 3", "a.csv line 4", "a.csv line 6"]
    assert not table.counts


def test_lines_that_are_no_utf8_are_read_as_cp1252_and_counted(tmp_path):
    lines = [b"id,title", "1,Café".encode(), b"2,plain", "3,Größe – 5 €".encode("cp1252"), b"4,\x81x"]
    (tmp_path / "a.csv").write_bytes(b"\n".join(lines))
    table = Delimited(tmp_path / "a.csv", "a.csv")
    assert [row.values["title"] for row in read(table)] == ["Café", "plain", "Größe – 5 €", "x"]
    assert table.counts == {"read_as_cp1252": 2}


def test_given_encoding_is_used_and_an_unknown_one_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes("id,title\n1,红色马克杯\n".encode("gb18030"))
    assert read(Delimited(tmp_path / "a.csv", "a.csv", "gb18030"))[0].values["title"] == "红色马克杯"
    with pytest.raises(ValueError, match="a.csv: encoding 'gb-1' is not known"):
        Delimited(tmp_path / "a.csv", "a.csv", "gb-1")


def test_line_ends_of_old_macs_gzip_and_the_delimiter_line_of_excel(tmp_path):
    (tmp_path / "mac.csv").write_bytes(b"id,title\r1,mug\r2,cup\r")
    assert [row.values["title"] for row in read(Delimited(tmp_path / "mac.csv", "mac"))] == ["mug", "cup"]
    with gzip.open(tmp_path / "a.csv.gz", "wb") as stream:
        stream.write(b"sep=;\nid;title\n1;a,b\n")
    row = read(Delimited(tmp_path / "a.csv.gz", "a"))[0]
    assert row.values == {"id": "1", "title": "a,b"} and row.place == "a line 3"


def test_backslash_escapes_are_recognised_and_backslashes_kept_elsewhere(tmp_path):
    (tmp_path / "a.csv").write_text('id,title\n1,"a \\"big\\", red mug"\n2,"x"\n')
    assert read(Delimited(tmp_path / "a.csv", "a"))[0].values["title"] == 'a "big", red mug'
    (tmp_path / "b.csv").write_text('id,title\n1,"C:\\new"\n')
    assert read(Delimited(tmp_path / "b.csv", "b"))[0].values["title"] == "C:\\new"


def test_a_quote_that_is_never_closed_costs_its_own_line_only(tmp_path):
    lines = ["id,title,colour", '1,"mug,red', *(f"{n},cup {n},blue" for n in range(2, 500))]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    rows = read(Delimited(tmp_path / "a.csv", "a.csv"))
    assert "quote that is not closed" in rows[0].error and rows[0].place == "a.csv line 2"
    assert [row.values for row in rows[1:]] == [
        {"id": str(n), "title": f"cup {n}", "colour": "blue"} for n in range(2, 500)
    ]
    assert [row.number for row in rows] == list(range(499)) and rows[-1].place == "a.csv line 500"


def test_a_quote_closed_by_a_later_line_costs_those_two(tmp_path):
    (tmp_path / "a.csv").write_text('id,title,colour\n1,"mug,red\n2,cup,blue\n3,"jar,green\n4,pot,black\n')
    rows = read(Delimited(tmp_path / "a.csv", "a.csv"))
    assert [row.values.get("id") for row in rows if not row.error] == ["2", "4"]
    assert [row.place for row in rows if row.error] == ["a.csv line 2", "a.csv line 4"]


def test_rows_that_are_too_long_or_too_short(tmp_path):
    (tmp_path / "a.csv").write_text("id,title,colour\n1,mug\n2,cup,red,,\n3,jar,red,x\n\n4,pot,blue\n")
    rows = read(Delimited(tmp_path / "a.csv", "a.csv"))
    assert rows[0].values == {"id": "1", "title": "mug", "colour": None}
    assert rows[1].values == {"id": "2", "title": "cup", "colour": "red"}
    assert rows[2].error == "4 cells where the header has 3" and rows[2].values == {}
    assert rows[3].values["id"] == "4" and rows[3].place == "a.csv line 6"


def test_a_title_of_ten_megabytes_and_a_line_over_the_limit(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text(f"id,title\n1,{'x' * 10_000_000}\n2,cup\n")
    assert [len(row.values["title"]) for row in read(Delimited(tmp_path / "a.csv", "a"))] == [10_000_000, 3]
    monkeypatch.setattr(text_files, "MAX_LINE", 1 << 20)
    rows = read(Delimited(tmp_path / "a.csv", "a"))
    assert "a line of more than" in rows[0].error and rows[1].values["title"] == "cup"
    (tmp_path / "a.jsonl").write_text(
        f'{{"id": 1, "title": "x"}}\n{{"id": 2, "t": "{"x" * (3 << 20)}"}}\n{{"id": 3}}\n'
    )
    rows = read(JsonLines(tmp_path / "a.jsonl", "a"))
    assert [row.values.get("id") for row in rows] == [1, None, 3] and "a line of more than" in rows[1].error


def test_header_names_are_made_different(tmp_path):
    (tmp_path / "a.csv").write_text("id,title,title,,\n1,a,b,c,d\n")
    assert Delimited(tmp_path / "a.csv", "a").columns == ["id", "title", "title (2)", "column 4", "column 5"]


@pytest.mark.parametrize("content", ["", "\n\n", "sep=,\n"])
def test_no_header_is_an_error_that_names_the_file(tmp_path, content):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(ValueError, match="a.csv: no header line"):
        Delimited(tmp_path / "a.csv", "a.csv")


def test_start_gives_the_same_rows_as_reading_all(tmp_path):
    rows = [[str(n), f"title\n{n}", ""] for n in range(50)]
    table = Delimited(write(tmp_path / "a.csv", rows), "a.csv")
    assert read(table, 17) == read(table)[17:]
    (tmp_path / "a.jsonl").write_text("".join(f'{{"id": {n}}}\n\n' for n in range(50)))
    table = JsonLines(tmp_path / "a.jsonl", "a.jsonl")
    assert read(table, 17) == read(table)[17:] and read(table)[17].place == "a.jsonl line 35"


def test_json_lines_that_are_no_objects_are_told(tmp_path):
    lines = ['{"id": 1, "price": NaN}', "[1]", '{"id": ', "", "7" * 5000, '{"id": "\\ud800", "new": 2}', "[" * 100_000]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    rows = read(JsonLines(tmp_path / "a.jsonl", "a.jsonl"))
    assert [bool(row.error) for row in rows] == [False, True, True, True, False, True]
    assert "a JSON list where an object belongs" in rows[1].error and "no JSON" in rows[2].error
    assert rows[4].values == {"id": "\ud800", "new": 2}


def test_keys_that_json_lines_begin_with_late_are_columns_too(tmp_path):
    text = "stoneware, for the dishwasher too. " * 20
    rows = [{"id": n, "title": f"Mug {n}", "text": text} for n in range(4_000)]
    rows += [row | {"id": n, "color": "red", "image": f"{n}.jpg"} for n, row in enumerate(rows[:2_000], 4_000)]
    body = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(f'{body}{{"id": 1, "broken\n[1]\n{{"weight": {{"g": 300}}}}')
    assert body.index("color") > text_files.SAMPLE_BYTES
    table = JsonLines(tmp_path / "a.jsonl", "a.jsonl")
    assert table.columns == ["id", "title", "text", "color", "image", "weight"]
    values = [row.values for row in read(table)]
    assert len(values) == 6_003 and values[:6_000] == rows and values[-1] == {"weight": {"g": 300}}
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(body.encode())[:-20])  # cut short after all keys
    assert JsonLines(tmp_path / "a.jsonl.gz", "a").columns == ["id", "title", "text", "color", "image"]


def test_one_json_list_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"id": 1}, {"id": 2}]))
    with pytest.raises(ValueError, match="a.json: no JSON object on a line of its own; write one object a line"):
        JsonLines(tmp_path / "a.json", "a.json")


def test_a_gzip_file_cut_short_ends_with_a_counted_error(tmp_path):
    lines = "".join(f'{{"id": {n}, "title": "cup {n * n}"}}\n' for n in range(20_000))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode())[:-9_000])
    rows = read(JsonLines(tmp_path / "a.jsonl.gz", "a"))
    assert len(rows) > 5_000 and "cannot be read further" in rows[-1].error
    assert not any(row.error for row in rows[:-2])
    table = "id,title\n" + "".join(f"{n},cup {n * n}\n" for n in range(20_000))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(table.encode())[:-9_000])
    rows = read(Delimited(tmp_path / "a.csv.gz", "a"))
    assert len(rows) > 5_000 and "cannot be read further" in rows[-1].error


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=12),
                              min_size=3, max_size=3), max_size=8))  # fmt: skip
def test_what_the_csv_module_writes_comes_back(tmp_path, rows):
    table = Delimited(write(tmp_path / "a.csv", rows, lineterminator="\n"), "a.csv")
    got = read(table)
    assert [list(row.values.values()) for row in got] == rows
    assert not any(row.error for row in got)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=300) | st.text('a,;"\n\r\\', max_size=60).map(str.encode))
def test_any_bytes_give_rows_or_errors_and_every_line_is_accounted_for(tmp_path, body):
    (tmp_path / "a.csv").write_bytes(b"id,title,colour\n" + body)
    rows = read(Delimited(tmp_path / "a.csv", "a.csv"))
    assert [row.number for row in rows] == list(range(len(rows)))
    assert all(row.values or row.error for row in rows)
    (tmp_path / "a.jsonl").write_bytes(b'{"id": 1}\n' + body)
    assert len(read(JsonLines(tmp_path / "a.jsonl", "a.jsonl"))) >= 1


def test_a_file_of_quotes_that_each_swallow_the_rest_is_read_in_its_own_length(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_RECORD", 50)
    monkeypatch.setattr(text_files, "REREAD", 100)
    taken = []

    def counted(feed, next_line=text_files._Feed.__next__):
        taken.append(1)
        return next_line(feed)

    monkeypatch.setattr(text_files._Feed, "__next__", counted)
    (tmp_path / "a.csv").write_text("id,title\n" + 'a","\n' * 2_000 + '5,"mug\nor cup"\n')
    table = Delimited(tmp_path / "a.csv", "a.csv")
    rows = read(table)
    assert len(taken) < 100 + 6 * 2_000
    assert len(rows) == 2_001 and rows[-1].values == {"id": "5", "title": "mug\nor cup"}
    assert sum("a quote that is not closed" in (row.error or "") for row in rows) > 100


def test_a_record_over_many_lines_is_one_row(tmp_path):
    text = "\n".join(f"line {n}" for n in range(1_500))
    rows = read(Delimited(write(tmp_path / "a.csv", [["1", text, "Home"], *ROWS]), "a.csv"))
    assert rows[0].values["title"] == text and len(rows) == 4


def test_a_header_of_very_many_equal_names_has_different_ones(tmp_path):
    (tmp_path / "a.csv").write_text(",".join(["a"] * 20_000) + "\n" + ",".join(["1"] * 20_000) + "\n")
    table = Delimited(tmp_path / "a.csv", "a.csv")
    assert len(set(table.columns)) == 20_000 and table.columns[:3] == ["a", "a (2)", "a (3)"]
    assert read(table)[0].values["a (20000)"] == "1"
    assert len(Delimited(write(tmp_path / "b.csv", []), "b").columns) == 3
    (tmp_path / "c.csv").write_text("a" * 1_000 + "," + "a" * 1_000 + "\n1,2\n")
    assert [len(name) for name in Delimited(tmp_path / "c.csv", "c").columns] == [200, 204]
