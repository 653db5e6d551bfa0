from __future__ import annotations

import os
import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Image

from moon2_dataset import SchemaError, join, load_product_queries, load_products, load_queries
from moon2_dataset.build.sources import open_source
from moon2_dataset.product_stream import ProductStream

PICTURE = {"bytes": b"jpeg", "path": None}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    """A shop's folder: two product files, one file of queries."""
    shop = tmp_path / "shop"
    shop.mkdir()
    for name, ids in (("products-1", ["a", "b"]), ("products-2", ["c", "d"])):
        titles = ["Red mug", "red mug."] if ids[0] == "a" else ["", ""]
        Dataset.from_dict(
            {
                "product_id": ids,
                "title": titles,
                "category_path": [["Home"], ["Home", "Mugs"]],
                "images": [[PICTURE]] * 2,
            }
        ).to_parquet(shop / f"{name}.parquet")
    Dataset.from_dict(
        {
            "query_id": ["q", "q", "r"],
            "text": ["mug", "mug", "x"],
            "product_id": ["a", "c", "b"],
            "grade": [3.0, 1.0, 2.0],
        }
    ).to_parquet(shop / "queries.parquet")
    return shop


def test_a_folder_a_glob_a_list_and_a_file(folder):
    assert load_products(folder)["product_id"][:] == ["a", "b", "c", "d"]
    assert load_products(str(folder / "products-*.parquet"))["product_id"][:] == ["a", "b", "c", "d"]
    files = [folder / "products-2.parquet", folder / "products-1.parquet"]
    assert load_products(files)["product_id"][:] == ["c", "d", "a", "b"]
    assert len(load_products(files[0])) == 2
    assert len(load_queries(folder)) == 3


def test_images_stay_undecoded_and_nothing_is_written_beside_the_source(folder):
    before = sorted(folder.iterdir())
    os.chmod(folder, 0o555)
    loaded = load_products(folder)
    os.chmod(folder, 0o755)
    assert sorted(folder.iterdir()) == before
    assert loaded.features["images"].feature == Image(decode=False)
    assert loaded[0]["images"] == [PICTURE] and loaded.cache_files


def test_a_changed_file_is_read_again(folder):
    assert load_products(folder / "products-1.parquet")["title"][0] == "Red mug"
    Dataset.from_dict({"product_id": ["a"], "title": ["Green mug"]}).to_parquet(folder / "products-1.parquet")
    assert load_products(folder / "products-1.parquet")["title"][:] == ["Green mug"]


def test_join_finds_positives_leaves_and_twins(folder):
    data = load_product_queries(folder, folder)
    assert len(data) == 3 and data.positives == {"q": {"a": 3.0, "c": 1.0}, "r": {"b": 2.0}}
    assert data.positive_row.tolist() == [0, 2, 1]
    assert data.leaf[0] == data.leaf[2] != data.leaf[1] == data.leaf[3]
    assert data.title_key[0] == data.title_key[1]  # case and end punctuation do not matter
    assert data.title_key[2] != data.title_key[3]  # no title is no common title
    assert len(set(data.product_key.tolist())) == 4 and 0 not in data.product_key
    assert data.product_key.dtype == data.title_key.dtype == np.int64


def test_keys_are_the_same_in_every_process(folder):
    script = f"""if True:
        from moon2_dataset import load_product_queries
        data = load_product_queries({str(folder)!r}, {str(folder)!r})
        print(data.product_key.tolist(), data.title_key.tolist())"""
    run = []
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "HF_HOME": str(folder)}
        command = [sys.executable, "-c", script]
        run.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    data = load_product_queries(folder, folder)
    assert run[0] == run[1] == f"{data.product_key.tolist()} {data.title_key.tolist()}\n"


def test_what_is_not_there_or_not_parquet(folder):
    with pytest.raises(FileNotFoundError, match="nowhere.parquet: no Parquet file there"):
        load_products(folder / "nowhere.parquet")
    (folder / "products-1.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(SchemaError, match="products-1.parquet: cannot be read as Parquet"):
        load_products(folder)


def test_errors_name_the_file_and_its_row(folder):
    Dataset.from_dict({"product_id": ["e", "a"], "title": ["x", "y"]}).to_parquet(folder / "products-3.parquet")
    with pytest.raises(
        SchemaError, match="products-3.parquet row 1: product_id a is already in products-1.parquet row 0"
    ):
        load_products(folder)
    with pytest.raises(SchemaError, match="queries row 1: product_id z is not in the catalogue"):
        join(
            load_products(folder / "products-1.parquet"),
            Dataset.from_dict({"query_id": ["1", "2"], "text": ["x", "y"], "product_id": ["a", "z"]}),
        )


def test_real_tables_load_unchanged(shared_data):
    data = load_product_queries(shared_data / "fashion/products-validation.parquet",
                                shared_data / "fashion/queries-validation.parquet")  # fmt: skip
    assert (len(data.products), len(data), len(np.unique(data.leaf))) == (570, 570, 50)
    assert data.products[0]["title"] == "Manchester United Men Solid Red Tshirt"
    assert data.products[0]["images"][0]["bytes"][:2] == b"\xff\xd8"


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_pickle_in_the_metadata_is_not_run(folder, tmp_path):
    marker = tmp_path / "it-ran"
    payload = pickle.dumps(Hostile(marker))
    pickle.loads(payload)
    marker.rmdir()
    file = folder / "products-1.parquet"
    table = pq.read_table(file)
    extension = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": payload}
    title = table.schema.field("title").with_metadata(extension)
    schema = table.schema.set(table.schema.get_field_index("title"), title).with_metadata({"pickle": payload})
    pq.write_table(pa.Table.from_arrays(table.columns, schema=schema), file)
    assert load_products(file)["product_id"] == ["a", "b"]
    assert list(ProductStream(file).ids()) == ["a", "b"]
    assert [row.values["title"] for batch in open_source(file).batches() for row in batch] == ["Red mug", "red mug."]
    assert not marker.exists()
