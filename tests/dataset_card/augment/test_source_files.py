from __future__ import annotations

import pytest

from moon2_dataset.augment.source_files import find_products


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder as `moon2 build-dataset` leaves it, with a split of its own name, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "products-train-00000", "products-train-00001", "products-test-00000", "products-zoo-00000",
        "queries-train-00000", "queries-test-00000",
    ):  # fmt: skip
        (tmp_path / "shop" / f"{name}.parquet").parent.mkdir(exist_ok=True)
        (tmp_path / "shop" / f"{name}.parquet").touch()
    (tmp_path / "shop" / "build_report.json").touch()
    return tmp_path / "shop"


def found(*given: str, allow_held_out: bool = False) -> tuple[list[str], list[str]]:
    files, left_out = find_products(given, allow_held_out)
    return [file.name for file in files], [file.name for file in left_out]


def test_of_a_folder_the_products_to_learn_from_are_taken(folder):
    train = ["products-train-00000.parquet", "products-train-00001.parquet"]
    assert found("shop") == (train, ["products-test-00000.parquet", "products-zoo-00000.parquet"])
    assert found("shop", allow_held_out=True) == (sorted([*train, *found("shop")[1]]), [])
    folder.rename(folder.with_name("test"))  # what a folder is called says nothing of its files
    assert found("test")[0] == train


def test_a_folder_of_other_names(tmp_path):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001", "queries"):
        (tmp_path / f"{name}.parquet").touch()
    assert found(str(tmp_path)) == (
        ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"], ["test-00000-of-00001.parquet"]
    )  # fmt: skip


def test_a_folder_with_nothing_to_learn_from(folder):
    for file in folder.glob("products-train*"):
        file.unlink()
    with pytest.raises(ValueError, match="shop: products-test-00000.parquet, products-zoo-00000.parquet are held out"):
        found("shop")
    for file in folder.glob("products*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match="shop: no Parquet file of products there"):
        found("shop")


def test_globs_and_lists(folder):
    train = ["products-train-00000.parquet", "products-train-00001.parquet"]
    assert found("shop/products-train-*.parquet") == (train, [])
    assert found(*(f"shop/{name}" for name in train)) == (train, [])
    with pytest.raises(FileNotFoundError, match="nothing.parquet: no Parquet file there"):
        found("nothing.parquet")
    with pytest.raises(ValueError, match="two files called products-train-00000.parquet.*; give each a name"):
        found("shop", "shop/products-train-00000.parquet")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("shop/products-test-00000.parquet", "'test' in its name says that products are judged on it"),
        ("shop/products-*.parquet", "products-test-00000.parquet: 'test' in its name"),
        ("shop/*-train-*.parquet", "queries-train-00000.parquet: holds queries, by its name; give products"),
    ],
)
def test_files_that_are_named_must_be_to_learn_from(folder, given, message):
    with pytest.raises(ValueError, match=message):
        found(given)
    if "-train-" not in given:
        assert found(given, allow_held_out=True)[0]


@pytest.mark.parametrize("name", ["validation_products.parquet", "shop.dev.parquet", "held-out.parquet"])
def test_held_out_names(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match="give the training split, or --allow_held_out true"):
        found(str(tmp_path / name))
