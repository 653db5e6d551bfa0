"""Files that may be a catalogue or a log: rows, an error for each that is none, or a refusal of the file."""

from __future__ import annotations

import datasets
import pytest
from hostile_tables import parquet_bytes, table_bytes
from hypothesis import strategies as st
from watched import fuzzed, watched

from moon2_dataset import load_products, load_queries
from moon2_dataset.build.clean import Cleaned, Dropped, clean_product
from moon2_dataset.build.log import Event, clean_event
from moon2_dataset.build.sources import open_log, open_source
from moon2_dataset.product_stream import ProductStream
from moon2_dataset.shards import Tally
from moon2_training.items import ProductItems, QueryItems


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


@pytest.fixture(scope="module", autouse=True)
def cache(folder):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        yield folder / "cache" / "moon2"


def put(folder, name, data):
    file = folder / name
    file.write_bytes(data)
    return file


def read(source, clean, kinds):
    rows = [row for batch in source.batches(size=3) for row in batch]
    assert [row.number for row in rows] == list(range(len(rows)))
    for row in rows:
        assert isinstance(clean(row), kinds) and row.place


@fuzzed(0.12, given=table_bytes())
def test_a_catalogue_as_text(given, folder):
    suffix, data = given
    file = put(folder, f"shop{suffix}", data)
    with watched("catalogue: CSV, TSV, JSON Lines", ValueError):
        source = open_source(file)
        assert source.explain()
        read(source, lambda row: clean_product(row, source.mapping, None, 64, folder), (Cleaned, Dropped))


@fuzzed(0.03, given=table_bytes(), columns=st.sampled_from((None, {"attributes": "*"}, {"images": "img/{id}.jpg"})))
def test_a_catalogue_with_given_columns(given, columns, folder):
    suffix, data = given
    file = put(folder, f"given{suffix}", data)
    with watched("catalogue with given columns", ValueError):
        source = open_source(file, columns)
        read(source, lambda row: clean_product(row, source.mapping, None, 64, folder), (Cleaned, Dropped))


@fuzzed(0.05, given=table_bytes())
def test_a_log_as_text(given, folder):
    suffix, data = given
    file = put(folder, f"log{suffix}", data)
    with watched("behaviour log", ValueError):
        source = open_log(file)
        read(source, lambda row: clean_event(row, source.mapping, None, 64, 0, Tally()), (Event, Dropped))


@fuzzed(0.02, data=parquet_bytes())
def test_a_catalogue_in_parquet(data, folder):
    file = put(folder, "shop.parquet", data)
    with watched("catalogue: Parquet", ValueError):
        source = open_source(file)
        read(source, lambda row: clean_product(row, source.mapping, None, 64, folder), (Cleaned, Dropped))


@fuzzed(0.02, data=parquet_bytes())
def test_a_stream_of_products(data, folder):
    file = put(folder, "products-stream.parquet", data)
    with watched("ProductStream", ValueError):
        stream = ProductStream(file)
        stream.refuse_repeated_ids()
        assert sum(map(len, stream.tables())) == stream.num_rows


@fuzzed(0.02, data=parquet_bytes())
def test_the_reader_of_products_and_queries(data, folder, cache):
    file = put(folder, "products.parquet", data)
    with watched("load_products", ValueError):
        products = ProductItems(load_products(file))
        assert all(isinstance(item["text"], str) for item in products)
    with watched("load_queries", ValueError):
        queries = load_queries(file)
        assert all(item["text"] or item["images"] for item in QueryItems(queries, range(len(queries))))
    for written in cache.glob("*"):
        written.unlink()
