from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moon2_dataset import load_queries
from moon2_dataset.build import log
from moon2_dataset.build.duplicates import stable_key
from moon2_dataset.build.log import KnownProducts, read_log
from moon2_dataset.build.queries import LogRules, positive_rows, write_queries
from moon2_dataset.build.sources import open_log

RULES = LogRules(("purchase",), 1, 2, 3)
SPLITS = ("train", "test")


@pytest.fixture
def build(tmp_path):
    """Build queries of log lines for products p0, p1 … with the given splits and groups."""

    def run(lines, split_of, group=None, rules=RULES):
        number = len(split_of)
        path = tmp_path / "log.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        for folder in ("work", "out"):
            (tmp_path / folder).mkdir(exist_ok=True)
            for file in (tmp_path / folder).iterdir():
                file.unlink()
        keys = np.array([stable_key("product", f"p{row}") for row in range(number)], dtype=np.uint64)
        source = open_log(path)
        read_log(source, tmp_path / "work", KnownProducts(keys, np.arange(number)), None, 512, "purchase", False)
        groups = np.arange(number) if group is None else np.array(group)
        ids = pa.chunked_array([[f"p{row}" for row in range(number)]])
        counts = write_queries(
            tmp_path / "work", tmp_path / "out", rules, np.array(split_of), groups, ids, SPLITS, 1000, False
        )
        files = {split: sorted((tmp_path / "out").glob(f"queries-{split}-*")) for split in SPLITS}
        return {
            split: [row for path in files[split] for row in pq.read_table(path).to_pylist()] for split in SPLITS
        }, counts

    return run


def line(query, product_id, event="buy", count=1, shown=()):
    return {"query": query, "product_id": product_id, "event": event, "count": count, "shown": list(shown)}


def told(rows):
    return {(row["text"], row["product_id"]): (row["grade"], row["negative_ids"]) for row in rows}


def test_positives_are_graded_by_count_and_stand_in_the_split_of_their_product(build):
    lines = [line("Mug", "p0"), line("mug!", "p0", count=3), line("mug", "p1"), line("mug", "p2", "click"),
             line("cup", "p1", count=2)]  # fmt: skip
    rows, counts = build(lines, [0, 1, 0])
    assert told(rows["train"]) == {("Mug", "p0"): (3.0, [])}
    assert told(rows["test"]) == {("Mug", "p1"): (1.0, []), ("cup", "p1"): (2.0, [])}
    ids = {row["text"]: row["query_id"] for split in rows.values() for row in split}
    assert len({row["query_id"] for split in rows.values() for row in split}) == len(ids) == 2
    assert counts["positives"] == {"pairs": 3, "under_min_purchases": 0, "over_category_limit": 0, "written": 3}
    assert (counts["queries"], counts["queries_in_several_splits"]) == (2, 1)
    assert counts["splits"]["test"]["queries_also_in_train"] == 1
    assert counts["splits"]["test"]["mean_positives"] == 1.0


def test_clicks_count_where_they_are_asked_for(build):
    lines = [line("mug", "p0", "click", 2), line("mug", "p0", "buy", 2), line("mug", "p1", "click", 3)]
    rows, counts = build(lines, [0, 0], rules=LogRules(("purchase", "click"), 4, 2, 3))
    assert told(rows["train"]) == {("mug", "p0"): (3.0, [])}
    assert counts["positives"] == {"pairs": 2, "under_min_purchases": 1, "over_category_limit": 0, "written": 1}


def test_negatives_were_shown_often_and_left_alone(build):
    shown = [line("mug", "p0", shown=["p0", *(f"p{row}" for row in others)]) for others in (
        [1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 7], [1, 5, 6, 7], [1, 6])]  # fmt: skip
    lines = [*shown, line("mug", "p2", "click"), line("mug", "p3", "exposure", 10), line("cup", "p4", "exposure", 9)]
    # p1, p3, p5, p6 and p7 are candidates; p2 was clicked, p4 is its variant, p8 was shown once.
    group = [0, 1, 2, 3, 2, 5, 6, 7, 8]
    rows, counts = build(lines, [0] * 9, group)
    assert told(rows["train"]) == {("mug", "p0"): (3.0, ["p3", "p1", "p6"])}
    assert counts["negatives"] == {
        "pairs": 6,
        "variant_of_a_clicked_product": 1,
        "over_category_limit": 0,
        "in_another_split": 0,
        "over_max_negatives": 2,
        "written": 3,
    }


def test_negatives_are_of_the_split_or_left_out(build):
    lines = [
        line("mug", "p0"),
        line("mug", "p1"),
        *(line("mug", f"p{row}", "exposure", 9 - row) for row in range(2, 7)),
    ]
    rows, counts = build(lines, [0, 1, 0, 1, -1, 0, 1])
    assert told(rows["train"]) == {("mug", "p0"): (1.0, ["p2", "p5"])}
    assert told(rows["test"]) == {("mug", "p1"): (1.0, ["p3", "p6"])}
    assert counts["negatives"]["over_category_limit"] == 1
    rows, counts = build([row for row in lines if row["product_id"] != "p1"], [0, 1, 0, 1, -1, 0, 1])
    assert told(rows["train"]) == {("mug", "p0"): (1.0, ["p2", "p5"])} and not rows["test"]
    assert counts["negatives"]["in_another_split"] == 2


def test_a_positive_that_is_in_no_split_is_counted(build):
    rows, counts = build([line("mug", "p0"), line("mug", "p1")], [-1, 0])
    assert told(rows["train"]) == {("mug", "p1"): (1.0, [])}
    assert counts["positives"]["over_category_limit"] == 1


def test_positive_rows_are_the_products_somebody_bought(build, tmp_path):
    build([line("mug", "p0"), line("cup", "p2", "click"), line("cup", "p3")], [0] * 5)
    assert positive_rows(tmp_path / "work", RULES, 5).tolist() == [True, False, False, True, False]


def test_a_log_of_pictures_keeps_them(build, tmp_path, make_image):
    make_image(3).save(tmp_path / "query.jpg")
    lines = [{"query": "", "query_image": "query.jpg", "product_id": f"p{row}", "event": "buy"} for row in (0, 1)]
    lines += [{"query": "mug", "query_image": "query.jpg", "product_id": "p1", "event": "buy"}]
    rows, counts = build(lines, [0, 0])
    pictures = {(row["text"], row["product_id"]): row["image"]["bytes"] for row in rows["train"]}
    assert pictures == dict.fromkeys(
        [(None, "p0"), (None, "p1"), ("mug", "p1")], (tmp_path / "query.jpg").read_bytes()
    )
    assert (counts["queries"], counts["splits"]["train"]["queries_with_image"]) == (2, 2)


def brute_force(lines, split_of, group, rules):
    """Rows of write_queries by the definition, one pair at a time."""
    counts: dict[str, dict[int, dict[str, int]]] = {}
    for entry in lines:
        of_query = counts.setdefault(entry["query"], {})
        pairs = [(entry["product_id"], entry["event"], entry["count"])]
        pairs += [(product, "exposure", 1) for product in dict.fromkeys(entry["shown"])]
        for product, event, count in pairs:
            of_pair = of_query.setdefault(int(product[1:]), dict.fromkeys(("buy", "click", "exposure"), 0))
            of_pair[event] += count
    rows = {}
    for query, products in counts.items():
        touched = {group[row] for row, events in products.items() if events["buy"] + events["click"]}
        ranked = sorted((-events["exposure"], row) for row, events in products.items()
                        if events["exposure"] >= rules.min_exposures and group[row] not in touched)  # fmt: skip
        for row, events in products.items():
            if events["buy"] >= rules.min_purchases and split_of[row] >= 0:
                negatives = [f"p{other}" for _, other in ranked if split_of[other] == split_of[row]]
                rows[query, f"p{row}"] = (1 + float(np.log2(events["buy"])), negatives[: rules.max_negatives])
    return rows


@pytest.mark.parametrize("seed", range(3))
def test_it_agrees_with_the_definition_whatever_the_pieces(build, monkeypatch, seed, tmp_path):
    rng = np.random.default_rng(seed)
    split_of, group = rng.integers(-1, 2, 30).tolist(), rng.integers(0, 20, 30).tolist()
    lines = [
        line(f"mug {rng.integers(12)}", f"p{rng.integers(30)}", str(rng.choice(["buy", "click", "exposure"])),
             int(rng.integers(1, 4)), [f"p{row}" for row in rng.integers(0, 30, rng.integers(8))])
        for _ in range(150)
    ]  # fmt: skip
    rules = LogRules(("purchase",), 2, 2, 2)
    monkeypatch.setattr(log, "WORK_LINES", 40)
    rows, counts = build(lines, split_of, group, rules)
    assert told(rows["train"]) | told(rows["test"]) == brute_force(lines, split_of, group, rules)
    for kind in ("positives", "negatives"):
        pairs = dict(counts[kind])
        assert pairs.pop("pairs") == sum(pairs.values()) > pairs["written"]
    load_queries(tmp_path / "out/queries-*")
