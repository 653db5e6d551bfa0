from __future__ import annotations

from itertools import count
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from catalogue_runs import change, encode

from moon2_dataset.product_stream import ProductStream
from moon2_training import catalogue_shards, stored_vectors
from moon2_training.catalogue_shards import ShardJob, _windows
from moon2_training.ray_engine import ShardWorker
from moon2_training.stored_vectors import StoredVectors
from moon2_training.vector_files import ShardFiles


@pytest.fixture
def linked(catalogue, tmp_path, make_image) -> Path:
    """The catalogue with a picture of 30 kB for every product, in files of their own."""
    (tmp_path / "pictures").mkdir()
    for number in range(24):
        make_image(number, 100, 100).save(tmp_path / "pictures" / f"{number}.png")

    def link(products):
        for number, product in enumerate(products):
            product["images"] = [{"bytes": None, "path": str(tmp_path / "pictures" / f"{number}.png")}]

    change(catalogue, link)
    return catalogue


def test_of_linked_pictures_no_more_are_read_than_a_window_holds(linked, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue_shards, "WINDOW_BYTES", 150_000)
    monkeypatch.setattr(catalogue_shards, "BYTES_AT_ONCE", 60_000)
    job = ShardJob(ProductStream(linked), tmp_path, 24, ("multimodal",), "float32", 48)
    read, original = count(), Path.read_bytes

    def counting(path):
        next(read)
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", counting)
    windows = _windows(job, 0, 1000, StoredVectors([]))
    assert len(next(windows).items) == 5 and next(read) <= 5 + 2
    assert [len(window.items) for window in windows] == [5, 5, 5, 4]


def test_the_vectors_are_the_same_wherever_a_window_ends(saved_model, linked, tmp_path, monkeypatch):
    encode(str(saved_model), linked, tmp_path / "whole")
    monkeypatch.setattr(catalogue_shards, "WINDOW_BYTES", 50_000)
    monkeypatch.setattr(catalogue_shards, "BYTES_AT_ONCE", 40_000)
    encode(str(saved_model), linked, tmp_path / "parted")
    whole, parted = pq.read_table(tmp_path / "whole"), pq.read_table(tmp_path / "parted")
    assert parted.select(["product_id", "digest"]).equals(whole.select(["product_id", "digest"]))
    vectors = (np.stack(table["multimodal_vector"].to_pylist()) for table in (parted, whole))
    np.testing.assert_allclose(*vectors, atol=1e-5)


@pytest.mark.parametrize("name", ["out", "out.lance"])
def test_a_worker_reads_the_keys_of_what_is_stored_once_and_not_for_every_shard(
    saved_model, catalogue, tmp_path, monkeypatch, name
):
    out = tmp_path / name
    encode(str(saved_model), catalogue, out)
    stored = {"unchanged_in": out} if out.suffix else {"stored": tuple(sorted(out.glob("*.parquet")))}
    (tmp_path / "work" / "vectors").mkdir(parents=True)
    (tmp_path / "work" / "records").mkdir()
    job = ShardJob(ProductStream(catalogue), tmp_path / "work", 2, ("multimodal",), "float32", 48, **stored)
    hashed, original = [], stored_vectors._key
    monkeypatch.setattr(stored_vectors, "_key", lambda *product: hashed.append(product) or original(*product))
    worker = ShardWorker(job, {"model": str(saved_model)}, 4, 1)
    for number in range(job.num_shards):
        assert worker({"shard": np.array([number])})["error"].tolist() == [""]
    assert job.num_shards == 12 and len(hashed) == 24 + 24
    records = ShardFiles(job.folder).finished().values()
    assert sum(record.unchanged for record in records) == 24 and not sum(record.encoded for record in records)
