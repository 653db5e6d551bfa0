"""Data sets known by name, on small files of the layout that named.py documents."""

from __future__ import annotations

import io

import numpy as np
import pytest
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PilImage

from moon2_dataset import PRODUCT_FEATURES, validate_products
from moon2_dataset.build.clean import clean_product
from moon2_dataset.build.named import NAMED, open_named


def png(seed):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    PilImage.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture(scope="module")
def pairs():
    """Ten purchases of four items; every other row has an item that was shown and not bought."""
    item = [n % 4 for n in range(10)]
    return Dataset.from_dict(
        {
            "query_id": [f"q{n}" for n in range(10)],
            "query_text": [None if n == 3 else f"mug {n}" for n in range(10)],
            "query_image": [png(100 + n) if n in (3, 4) else None for n in range(10)],
            "item_id": item,
            "item_title": [f"red mug {n}" for n in item],
            "item_image": [[png(n)] for n in item],
            **{f"cate_level{level}_name": [f"L{level}-{n % level}" for n in item] for level in range(1, 6)},
            "item_attributes": [f"colour: red; size: {n}" for n in item],
            "negative_id": [90 + n if n % 2 else None for n in range(10)],
            "negative_title": [f"cup {n}" if n % 2 else None for n in range(10)],
        },
        features=Features(
            {"query_id": Value("string"), "query_text": Value("string"), "query_image": Image(),
             "item_id": Value("int64"),
             "item_title": Value("string"), "item_image": List(Image()),
             **{f"cate_level{level}_name": Value("string") for level in range(1, 6)},
             "item_attributes": Value("string"), "negative_id": Value("int64"), "negative_title": Value("string")}
        ),
    )  # fmt: skip


def read(source, start=0):
    return [row for batch in source.batches(start, 3) for row in batch]


@pytest.mark.parametrize("name", list(NAMED))
def test_pairs_are_a_catalogue_and_a_log(tmp_path, pairs, name):
    pairs.to_parquet(tmp_path / "train.parquet")
    catalogue, log = open_named(name, path=tmp_path / "train.parquet")
    rows = read(catalogue)
    assert catalogue.num_rows == len(rows) == 20 and read(catalogue, 7) == rows[7:]
    cleaned = [clean_product(row, catalogue.mapping) for row in rows]
    products = {got.product["product_id"]: got.product for got in cleaned if hasattr(got, "product")}
    assert sorted(products) == ["0", "1", "2", "3", "91", "93", "95", "97", "99"]
    assert products["3"] == {
        "product_id": "3", "title": "red mug 3", "description": "", "images": [png(3)],
        "category_path": ["L1-0", "L2-1", "L3-0", "L4-3", "L5-3"],
        "attributes": [{"name": "colour", "value": "red"}, {"name": "size", "value": "3"}],
    }  # fmt: skip
    validate_products(Dataset.from_list(list(products.values()), features=PRODUCT_FEATURES))
    assert {got.reason_code for got in cleaned if not hasattr(got, "product")} == {
        "no_product_id"
    }  # no negative there

    queries = read(log)
    assert log.num_rows == 10 and [row.values["product_id"] for row in queries] == [n % 4 for n in range(10)]
    assert queries[3].values == {"query_id": "q3", "text": None, "image": png(103), "product_id": 3,
                                 "event": "purchase",
                                 "shown": 93}  # fmt: skip
    assert queries[3].place == "train.parquet row 3" and read(log, 4) == queries[4:]
    assert catalogue.fingerprint == log.fingerprint
    assert "item_category_path <- cate_level1_name, cate_level2_name" in "\n".join(catalogue.explain())


def test_it_streams_from_a_repository(tmp_path, pairs):
    (tmp_path / "data").mkdir()
    pairs.to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    catalogue, log = open_named("ZHNie/MBE2.0", path=f"hf:{tmp_path}:test")
    assert len(read(catalogue)) == 20 and len(read(log)) == 10
    assert clean_product(read(catalogue)[0], catalogue.mapping).product["images"] == [png(0)]


def test_other_layouts_are_put_right_by_given_columns(tmp_path):
    rows = [{"q": f"mug {n}", "cand_title": f"red mug {n % 2}", "pic": f"{n % 2}.jpg", "c1": "Home", "c2": "Mugs"}
            for n in range(4)]  # fmt: skip
    Dataset.from_list(rows).to_json(tmp_path / "a.jsonl")
    with pytest.raises(
        ValueError, match=r"no column for query_text or query_image; give columns=\{'query_text': COLUMN\}"
    ):
        open_named("ZHNie/MBE2.0", path=tmp_path / "a.jsonl")
    given = {"query_text": "q", "item_title": "cand_title", "item_images": "pic", "item_category_path": ["c1", "c2"]}
    catalogue, log = open_named("ZHNie/MBE2.0", columns=given, path=tmp_path / "a.jsonl")
    products = [clean_product(row, catalogue.mapping).product for row in read(catalogue)]
    assert [product["category_path"] for product in products] == [["Home", "Mugs"]] * 4
    # Without ids, the same item gets the same id, and the log names it.
    ids = [product["product_id"] for product in products]
    assert ids[0] == ids[2] != ids[1] == ids[3]
    assert [row.values["product_id"] for row in read(log)] == ids
    assert len({row.values["query_id"] for row in read(log)}) == 4


@pytest.mark.parametrize("name, columns, message", [
    ("ZHNie/MBE3", None, "ZHNie/MBE3: not a data set known by name; those are ZHNie/MBE2.0, Daoze/MM-Bench"),
    ("ZHNie/MBE2.0", {"item_titel": "x"}, r"no part 'item_titel' of a row \(did you mean item_title\?\)"),
    ("ZHNie/MBE2.0", {"item_title": "x"}, "no column 'x' for item_title; its columns are query_id, query_text"),
])  # fmt: skip
def test_wrong_names_and_columns_name_the_way_out(tmp_path, pairs, name, columns, message):
    pairs.to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=message):
        open_named(name, columns=columns, path=tmp_path / "train.parquet")


def test_rows_that_cannot_be_read_stay_errors(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"query_text": "mug", "item_id": 1, "item_title": "red mug"}\n{broken\n')
    catalogue, log = open_named("ZHNie/MBE2.0", path=tmp_path / "a.jsonl")
    assert [bool(row.error) for row in read(catalogue)] == [bool(row.error) for row in read(log)] == [False, True]
