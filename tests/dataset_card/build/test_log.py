from __future__ import annotations

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from moon2_dataset.build import log
from moon2_dataset.build.clean import Dropped
from moon2_dataset.build.duplicates import stable_key
from moon2_dataset.build.log import (
    AMBIGUOUS,
    CLICK,
    EXPOSURE,
    PURCHASE,
    UNKNOWN,
    KnownProducts,
    clean_event,
    read_log,
)
from moon2_dataset.build.raw_rows import RawRow
from moon2_dataset.build.sources import open_log
from moon2_dataset.shards import Tally, written

MAPPING = {name: (name,) for name in ("text", "image", "product_id", "event", "count", "shown")}


def known(number: int) -> KnownProducts:
    keys = np.array([stable_key("product", f"p{row}") for row in range(number)], dtype=np.uint64)
    return KnownProducts(keys, np.arange(number))


def event(mapping=MAPPING, **values):
    row = RawRow(0, "log.csv line 2", {name: None for name in MAPPING} | values)
    return clean_event(row, mapping, None, 512, CLICK, Tally())


def write_log(path, lines):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["query", "product_id", "event", "count", "shown"], restval="")
        writer.writeheader()
        writer.writerows(lines)
    return open_log(path)


def summed(work) -> dict[tuple[str, int], tuple[int, ...]]:
    """(normalised query, row) -> counts of purchases, clicks and exposures, over all work files."""
    texts, sums = {}, {}
    for path in written(work, "log"):
        for pair in pq.read_table(path).to_pylist():
            texts.setdefault(pair["query"], (pair["text"] or "").casefold() or None)
            counts = np.array([pair[name] for name in ("purchase", "click", "exposure")])
            sums[pair["query"], pair["row"]] = sums.get((pair["query"], pair["row"]), 0) + counts
    return {(texts[query], row): tuple(counts.tolist()) for (query, row), counts in sums.items()}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("Purchase", PURCHASE), ("buy", PURCHASE), ("add to cart", CLICK), ("pv", CLICK), ("Impression", EXPOSURE)],
)
def test_events_have_many_names(name, kind):
    assert np.flatnonzero(event(text="mug", product_id="p1", event=name).counts).tolist() == [kind]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"product_id": "p1", "event": "click"}, "no_text_no_image"),
        ({"text": " !? ", "product_id": "p1", "event": "click"}, "no_text_no_image"),
        ({"text": "mug", "event": "click"}, "no_product_id"),
        ({"text": "mug", "product_id": "nan", "event": "click"}, "no_product_id"),
        ({"text": "mug", "product_id": "p1", "event": "logout"}, "unknown_event"),
        ({"text": "mug", "product_id": "p1"}, "unknown_event"),
        *(
            ({"text": "mug", "product_id": "p1", "event": "click", "count": count}, "broken_count")
            for count in ("0", "-3", "many", "2.5", "nan", "inf", "1e99", False, [1], {})
        ),
    ],
)
def test_a_line_that_cannot_be_used_is_dropped_with_its_reason(values, reason):
    found = event(**values)
    assert isinstance(found, Dropped)
    assert (found.place, found.reason_code) == ("log.csv line 2", reason)


def test_what_a_line_may_leave_out():
    assert event(text="mug", product_id=12.0, event="click", count="3.0")[3:] == ("12", (0, 3, 0), [])
    without_event = {field: columns for field, columns in MAPPING.items() if field not in ("event", "count")}
    assert event(without_event, text="mug", product_id="p1")[3:] == ("p1", (0, 1, 0), [])
    assert event(text="mug", shown="p1|p2 p1")[3:] == ("", (0, 0, 1), ["p1", "p2"])


SUMS = {name: (name,) for name in ("text", "product_id", "purchases", "clicks", "exposures")}


@pytest.mark.parametrize(
    ("values", "counts"),
    [
        ({"purchases": "2", "clicks": 9.0, "exposures": "120"}, (2, 9, 120)),
        ({"purchases": 0, "clicks": "", "exposures": "40"}, (0, 0, 40)),
        ({"purchases": 0, "clicks": 0, "exposures": 0}, (0, 0, 1)),
        ({"purchases": None, "clicks": True, "exposures": "nan"}, (0, 1, 0)),
    ],
)
def test_a_line_may_sum_up_events_of_every_kind(values, counts):
    assert event(SUMS, text="mug", product_id="p1", **values).counts == counts


@pytest.mark.parametrize("count", ["-1", "2.5", "many"])
def test_a_count_that_is_none_costs_the_line_and_is_named(count):
    found = event(SUMS, text="mug", product_id="p1", purchases="1", clicks=count)
    assert (found.reason_code, found.detail) == ("broken_count", f"clicks: {count}")


def test_a_query_may_be_a_picture_and_loses_one_that_cannot_be_read(tmp_path, make_image):
    make_image(0).save(tmp_path / "query.png")
    notes = Tally()
    for name, kept in (("query.png", True), ("nowhere.png", False)):
        row = RawRow(0, "log", {"text": "mug", "image": name, "product_id": "p1"}, folder=tmp_path)
        mapping = {name: (name,) for name in ("text", "image", "product_id")}
        found = clean_event(row, mapping, None, 512, CLICK, notes)
        assert bool(found.picture) == kept
        row = row._replace(values=row.values | {"text": ""})
        assert isinstance(clean_event(row, mapping, None, 512, CLICK, notes), Dropped) != kept
    assert notes.as_json()["image_missing"]["rows"] == 2


def test_lines_are_summed_by_query_and_product(tmp_path):
    source = write_log(
        tmp_path / "log.csv",
        [
            {"query": "Red Mug", "product_id": "p1", "event": "buy", "count": "2", "shown": "p1,p2"},
            {"query": "red  mug!", "product_id": "p1", "event": "click"},
            {"query": "RED MUG", "product_id": "p3", "event": "impression", "count": "5"},
            {"query": "cup", "product_id": "p1", "event": "click", "shown": "p2|gone"},
            {"query": "cup", "shown": "gone"},
            {"query": "cup", "product_id": "gone", "event": "buy", "shown": "p2"},
            {"query": "", "product_id": "p1", "event": "click"},
        ],
    )
    (tmp_path / "work").mkdir()
    counts = read_log(source, tmp_path / "work", known(4), None, 512, "purchase", progress=False)
    assert summed(tmp_path / "work") == {
        ("red mug", 1): (2, 1, 1),
        ("red mug", 2): (0, 0, 1),
        ("red mug", 3): (0, 0, 5),
        ("cup", 1): (0, 1, 0),
        ("cup", 2): (0, 0, 1),
    }
    assert (counts.lines, counts.used) == (7, 4)
    assert counts.events == {"purchase": 2, "click": 2, "exposure": 8}
    assert counts.dropped.as_json() == {
        "unknown_product": {"rows": 2, "examples": ["log.csv line 6: gone", "log.csv line 7: gone"]},
        "no_text_no_image": {"rows": 1, "examples": ["log.csv line 8"]},
    }
    assert counts.notes.as_json() == {"unknown_product_shown": {"rows": 1, "examples": ["log.csv line 5"]}}


def test_a_dropped_duplicate_stands_for_the_kept_product():
    keys = np.array([stable_key("product", name) for name in ("a", "b", "a")], dtype=np.uint64)
    products = KnownProducts(keys, np.array([0, 0, 0]))
    assert products.find(["b", "c", "a"]).tolist() == [0, -1, 0]
    assert KnownProducts(keys[:0], np.empty(0, np.int64)).find(["a"]).tolist() == [-1]
    assert products.find([]).shape == (0,)


def test_a_product_is_found_by_its_other_names_unless_they_are_several_products():
    def keys(*names):
        return np.array([stable_key("product", name) for name in names], dtype=np.uint64)

    ids, kept = keys("shirt", "scarf", "hat", "copy"), np.array([0, 1, 2, 2])
    aliases = keys("S-1", "S-2", "X", "X", "hat", "H-1", "H-1", "H-1-red", "lost", "X-red", "S-2")
    of = keys("shirt", "shirt", "shirt", "scarf", "shirt", "hat", "copy", "H-1", "gone", "X", "shirt")
    found = KnownProducts(ids, kept, aliases, of).find(["S-1", "S-2", "X", "hat", "H-1", "H-1-red", "lost", "X-red"])
    assert found.tolist() == [0, 0, AMBIGUOUS, 2, 2, 2, UNKNOWN, AMBIGUOUS]
    assert KnownProducts(ids[:0], kept[:0], aliases, of).find(["S-1"]).tolist() == [UNKNOWN]


def test_a_line_with_a_name_of_several_products_is_dropped_and_named(tmp_path):
    (tmp_path / "work").mkdir()
    key = {name: stable_key("product", name) for name in ("p0", "p1", "x", "y")}
    products = KnownProducts(
        np.array([key["p0"], key["p1"]], np.uint64),
        np.arange(2),
        np.array([key["x"], key["x"], key["y"]], np.uint64),
        np.array([key["p0"], key["p1"], key["p1"]], np.uint64),
    )
    lines = [{"query": "mug", "product_id": name, "event": "buy", "shown": "x|p0"} for name in ("x", "y")]
    source = write_log(tmp_path / "log.csv", lines)
    counts = read_log(source, tmp_path / "work", products, None, 512, "purchase", progress=False)
    assert summed(tmp_path / "work") == {("mug", 1): (1, 0, 0), ("mug", 0): (0, 0, 1)}
    assert counts.dropped.as_json() == {"ambiguous_product": {"rows": 1, "examples": ["log.csv line 2: x"]}}
    assert counts.notes.as_json()["unknown_product_shown"]["rows"] == 1


def test_the_size_of_work_files_and_a_stop_between_them_change_nothing(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    lines = [
        {"query": f"mug {rng.integers(9)}", "product_id": f"p{rng.integers(40)}",
         "event": rng.choice(["buy", "click", "x"]), "shown": "|".join(f"p{row}" for row in rng.integers(0, 40, 3))}
        for _ in range(500)
    ]  # fmt: skip
    source = write_log(tmp_path / "log.csv", lines)
    found = {}
    for size in (10_000, 70, 125):
        monkeypatch.setattr(log, "WORK_LINES", size)
        work = tmp_path / str(size)
        work.mkdir()
        counts = read_log(source, work, known(30), None, 512, "purchase", progress=False)
        found[size] = (counts.as_json(), summed(work))
    assert found[70] == found[125] == found[10_000]
    assert counts.lines == 500 == counts.used + counts.dropped.total()
    files = written(tmp_path / "125", "log")
    content = [path.read_bytes() for path in files]
    assert len(files) == 5  # the fifth without lines says that the log has ended
    for path in files[3:]:
        path.unlink()
    again = read_log(source, tmp_path / "125", known(30), None, 512, "purchase", progress=False)
    assert again.as_json() == counts.as_json()
    assert [path.read_bytes() for path in files] == content


def test_a_work_file_ends_early_where_pictures_are_large(tmp_path, monkeypatch, make_image):
    monkeypatch.setattr(log, "WORK_BYTES", 30_000)
    with open(tmp_path / "log.jsonl", "w") as lines:
        for number in range(6):
            make_image(number).save(tmp_path / f"{number}.png")
            lines.write(json.dumps({"image": f"{number}.png", "product_id": "p1"}) + "\n")
    (tmp_path / "work").mkdir()
    read_log(open_log(tmp_path / "log.jsonl"), tmp_path / "work", known(4), None, 512, "click", progress=False)
    sizes = [pq.read_metadata(path).num_rows for path in written(tmp_path / "work", "log")]
    assert sum(sizes) == 6 and max(sizes) == 3
