from __future__ import annotations

from pathlib import Path

import pytest

from moon2_dataset import load_product_queries, load_products, load_queries
from moon2_dataset.data_files import (
    data_files,
    file_pattern,
    is_for_training,
    is_held_out,
    split_files,
    split_of,
    table_files,
)


def names(files: dict) -> dict:
    return {kind: {s: [f.name for f in of] for s, of in splits.items()} for kind, splits in files.items()}


def test_files_by_table_and_split(saved_shop):
    found = data_files(saved_shop)
    assert names(found) == {
        "products": {
            "train": ["products-train-00000.parquet", "products-train-00001.parquet"],
            "test": ["products-test.parquet"],
        },
        "queries": {"train": ["queries-train.parquet"], "test": ["queries-test.parquet"]},
    }
    assert file_pattern(found["products"]["train"]) == "products-train-[0-9]*.parquet"
    assert file_pattern(found["products"]["test"]) == "products-test.parquet"
    assert is_for_training("train") and not is_for_training("test")
    for splits in found.values():
        assert all(split_of(file) == split for split, files in splits.items() for file in files)
    assert split_of(Path("products.parquet")) is split_of(Path("products-00000-of-00002.parquet")) is None
    assert split_of(Path("catalogue-test.parquet")) == "test"


@pytest.mark.parametrize(
    ("given", "splits"),
    [
        (["products.parquet"], ["train"]),
        (["products-00000-of-00002.parquet", "products-00001-of-00002.parquet"], ["train"]),
        (["products-zoo.parquet", "products-test.parquet", "products-train-0.parquet"], ["train", "test", "zoo"]),
    ],
)
def test_what_files_may_be_called(given, splits, tmp_path):
    for name in given:
        (tmp_path / name).touch()
    found = data_files(tmp_path)
    assert list(found["products"]) == splits and found["queries"] == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no products"),
        (["queries.parquet"], "no products"),
        (["products-train-augmented.parquet"], "products-train-augmented.parquet: of no known split"),
        (["products-train-0.parquet", "products-train.parquet"], "products-train-0.parquet are both there"),
        (["products.parquet", "products-train.parquet"], "are both there; keep one"),
        (["products-0.parquet", "products-train-0.parquet"], "are both there; keep one"),
    ],
)
def test_a_folder_whose_splits_are_unclear_is_refused(given, message, tmp_path):
    for name in given:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=message):
        data_files(tmp_path)


def test_of_a_folder_one_split_is_read(saved_shop):
    learned = load_product_queries(saved_shop, saved_shop, "train")
    judged = load_product_queries([saved_shop], saved_shop, split="test")
    assert (len(learned.products), len(judged.products)) == (16, 8)
    assert not set(learned.products["product_id"]) & set(judged.products["product_id"])
    assert not set(learned.queries["query_id"]) & set(judged.queries["query_id"])
    for read in (load_products, load_queries):
        with pytest.raises(ValueError, match="of several splits, test, train; give the split"):
            read(saved_shop)
        with pytest.raises(ValueError, match="of test, train, none of validation; give another split"):
            read(saved_shop, "validation")
    with pytest.raises(ValueError, match="several splits"):
        load_product_queries(saved_shop / "products-*.parquet", saved_shop)


def test_files_and_globs_are_meant_as_they_stand(saved_shop):
    everything = load_products(saved_shop / "products-*.parquet", "train")
    assert len(everything) == 24 and len(table_files(saved_shop, "products")) == 3
    assert len(load_products(saved_shop / "products-test.parquet", "train")) == 8


@pytest.mark.parametrize(
    ("names", "split", "found"),
    [
        (["products.parquet"], "test", ["products.parquet"]),  # one catalogue for the queries of all splits
        (["products-0.parquet", "products-1.parquet"], None, ["products-0.parquet", "products-1.parquet"]),
        (["products.parquet", "products-test.parquet"], "train", ["products.parquet"]),
        (["products-train_a.parquet", "products-train_b.parquet", "products-zoo.parquet"], "train",
         ["products-train_a.parquet", "products-train_b.parquet"]),
        (["shop.parquet", "shop-dev.parquet"], "train", ["shop.parquet"]),
        (["shop.parquet", "shop-dev.parquet"], "dev", ["shop-dev.parquet"]),
        (["products-test.parquet"], None, ["products-test.parquet"]),
    ],
)  # fmt: skip
def test_which_files_of_a_folder_are_of_a_split(names, split, found, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    assert [file.name for file in split_files(tmp_path, "products", split)] == found


def test_what_is_held_out_by_its_name():
    for name in ("products-test.parquet", "products-zoo-00000.parquet", "shop.dev.parquet", "my_held_out.parquet"):
        assert is_held_out(Path(name))
    for name in ("products.parquet", "products-train-00000.parquet", "queries-train_b.parquet", "contest.parquet"):
        assert not is_held_out(Path(name))
