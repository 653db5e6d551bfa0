"""Encode a catalogue, change it, and look at what was written."""

from __future__ import annotations

from pathlib import Path

import datasets
import lancedb
import pyarrow as pa
import pyarrow.parquet as pq

from moon2_dataset.schema import PRODUCT_FEATURES
from moon2_training.encode_catalogue import EncodeArguments, encode_catalogue


def change(path: Path, edit) -> list[dict]:
    """Write a catalogue again with its list of products edited."""
    products = pq.read_table(path).to_pylist()
    products = edit(products) or products
    datasets.Dataset.from_list(products, features=PRODUCT_FEATURES).to_parquet(path)
    return products


def encode(model: str, catalogue: Path, output: Path, **options) -> dict:
    options = {"shard_rows": 10, "batch_size": 4} | options
    return encode_catalogue(EncodeArguments(model, [str(catalogue)], str(output), **options), progress=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def rows(path: Path) -> dict[str, list[float]]:
    table = lancedb.connect(path.parent).open_table(path.stem)
    found = table.search().limit(None).to_arrow()
    assert found.schema.field("multimodal_vector").type == pa.list_(pa.float32(), 48)
    ids = found["product_id"].to_pylist()
    assert len(set(ids)) == len(ids)
    return dict(zip(ids, found["multimodal_vector"].to_pylist(), strict=True))
