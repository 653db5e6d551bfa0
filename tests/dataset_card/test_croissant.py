from __future__ import annotations

import hashlib
import io
import json

import mlcroissant
import pytest
from datasets import Dataset
from etils import epath
from PIL import Image

from moon2_dataset import load_product_queries
from moon2_dataset.card import write_dataset_card
from moon2_dataset.croissant import CONTEXT, write_croissant
from moon2_dataset.data_files import data_files


def as_read(record: dict, name: str) -> dict:
    """A record of mlcroissant under the names of its columns, with text as text."""
    return {key.removeprefix(f"{name}/"): decoded(value) for key, value in record.items()}


def decoded(value):
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        return [decoded(part) for part in value]
    if isinstance(value, dict):
        return {key.rpartition("/")[2]: decoded(part) for key, part in value.items()}
    return value


def pixels(image: Image.Image | dict | None) -> bytes | None:
    if isinstance(image, dict):
        image = Image.open(io.BytesIO(image["bytes"]))
    return image and image.tobytes()


@pytest.mark.parametrize("dataset_id", [None, "me/shop"])
def test_the_library_finds_no_error_and_reads_every_row(dataset_id, data_folder):
    write_dataset_card(data_folder, dataset_id, license="cc-by-4.0")
    path = write_croissant(data_folder, dataset_id)
    assert path == data_folder / "croissant.json" and not list(data_folder.glob(".*"))
    here = {"repo": epath.Path(data_folder)} if dataset_id else None
    described = mlcroissant.Dataset(str(path), mapping=here)
    issues = described.metadata.ctx.issues
    assert not issues.errors
    missing = {warning.split('"')[1].rpartition("/")[2] for warning in issues.warnings}
    assert missing <= {"datePublished", "version"}  # nobody here knows them
    files = data_files(data_folder)
    for split in ("train", "test"):
        data = load_product_queries(files["products"][split], files["queries"][split])
        for kind, table in (("products", data.products), ("queries", data.queries)):
            name = f"{kind}-{split}"
            read = [as_read(record, name) for record in described.records(name)]
            assert len(read) == len(table)
            for record, row in zip(read, table.to_list(), strict=True):
                for column in ("images", "expanded_images"):
                    if column in row:
                        assert list(map(pixels, record.pop(column))) == list(map(pixels, row.pop(column)))
                if "image" in row:
                    assert pixels(record.pop("image")) == pixels(row.pop("image"))
                assert record == row


def test_what_stands_where(data_folder):
    write_dataset_card(data_folder, "me/shop", license="cc-by-4.0")
    content = json.loads(write_croissant(data_folder, "me/shop").read_text())
    assert content["conformsTo"] == "http://mlcommons.org/croissant/1.0" and content["@context"] == CONTEXT
    assert (content["name"], content["license"]) == ("shop", "cc-by-4.0")
    assert content["url"] == "https://huggingface.co/datasets/me/shop"
    nodes = {node["@id"]: node for node in content["distribution"]}
    for file in data_folder.glob("*.parquet"):
        node = nodes[file.name]
        assert node["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert node["contentSize"] == f"{file.stat().st_size} B"
        assert node["contentUrl"] == f"https://huggingface.co/datasets/me/shop/resolve/main/{file.name}"
    assert nodes["products-train-files"]["includes"] == "products-train-[0-9]*.parquet"
    sets = {record_set["@id"]: record_set for record_set in content["recordSet"]}
    assert set(sets) == {"products-train", "products-test", "queries-train", "queries-test"}
    fields = {field["name"]: field for field in sets["products-train"]["field"]}
    assert fields["images"]["dataType"] == "sc:ImageObject" and fields["images"]["repeated"]
    assert [part["name"] for part in fields["attributes"]["subField"]] == ["name", "value"]
    assert fields["core_region"]["dataType"] == "sc:Float"
    assert "core_region" not in {field["name"] for field in sets["products-test"]["field"]}
    (asks_for,) = [field for field in sets["queries-test"]["field"] if field["name"] == "product_id"]
    assert asks_for["references"] == {"field": {"@id": "products-test/product_id"}}


def test_without_an_id_it_names_the_files_beside_it(data_folder):
    content = json.loads(write_croissant(data_folder).read_text())
    assert not {"url", "license"} & content.keys() and content["name"] == "noise-shop"
    assert str(data_folder.parent) not in json.dumps(content)
    addresses = {node["contentUrl"] for node in content["distribution"] if "contentUrl" in node}
    assert addresses == {file.name for file in data_folder.glob("*.parquet")}


def test_columns_of_others(data_folder):
    """Those that the format has types for are described; the file is sound with the others too."""
    file = data_folder / "queries-test.parquet"
    queries = Dataset.from_parquet(str(file))
    rows = len(queries)
    queries = queries.add_column("label_noise", [True] * rows).add_column("rank", list(range(rows)))
    queries = queries.add_column("nested", [[[1.0], [2.0]]] * rows).add_column("where", [{"page": 1}] * rows)
    queries.to_parquet(file)
    path = write_croissant(data_folder)
    described = mlcroissant.Dataset(str(path))
    assert not described.metadata.ctx.issues.errors
    first = as_read(next(iter(described.records("queries-test"))), "queries-test")
    assert first["label_noise"] is True and first["rank"] == 0 and first["where"] == {"page": 1}
    assert "nested" not in first
