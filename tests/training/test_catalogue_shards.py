from __future__ import annotations

from itertools import count
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from catalogue_runs import change, encode

from moon2_dataset.product_stream import ProductStream
from moon2_training import catalogue_shards
from moon2_training.catalogue_shards import ShardJob, _windows
from moon2_training.stored_vectors import StoredVectors


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
    windows = _windows(job, 0, 1000, StoredVectors([]), {})
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
