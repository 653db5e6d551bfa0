from __future__ import annotations

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moon2_training.stored_vectors import IN_TABLE, NOWHERE, StoredVectors


@pytest.fixture
def files(tmp_path):
    """90 products in two files, in row groups of 20; product 7 is in both, with two digests."""
    rng = np.random.default_rng(0)
    paths = []
    for number, rows in enumerate((range(50), [*range(50, 90), 7])):
        vectors = [rng.normal(size=3).astype(np.float32).tolist() if row % 5 else None for row in rows]
        table = pa.table(
            {
                "product_id": [f"p{row}" for row in rows],
                "digest": [f"{number}{row % 3}" for row in rows],
                "multimodal_vector": pa.array(vectors, pa.list_(pa.float32(), 3)),
            }
        )
        paths.append(tmp_path / f"{number}.parquet")
        pq.write_table(table, paths[-1], row_group_size=20)
    return paths


def test_rows_are_found_by_id_and_digest_and_taken_in_the_order_asked_for(files):
    stored = StoredVectors(files)
    everything = pa.concat_tables(map(pq.read_table, files)).to_pylist()
    assert len(stored) == len(everything) == 91
    asked = [everything[row] for row in np.random.default_rng(1).permutation(91)]
    places = stored.find([row["product_id"] for row in asked], [row["digest"] for row in asked])
    assert (places >= 0).all()
    assert stored.take(places).to_pylist() == asked
    seven = stored.take(stored.find(["p7", "p7"], ["11", "01"])).to_pylist()
    assert [row["digest"] for row in seven] == ["11", "01"]
    assert seven[0]["multimodal_vector"] != seven[1]["multimodal_vector"]


def test_another_digest_or_id_is_not_found(files):
    stored = StoredVectors(files)
    assert stored.find(["p1", "p1", "p90", ""], ["01", "02", "10", ""]).tolist() == [1, -1, -1, -1]
    assert StoredVectors([]).find(["p1"], ["01"]).tolist() == [-1]


def test_a_product_is_found_by_its_id_alone_whatever_its_digest_and_first_in_the_table(files, tmp_path):
    stored = StoredVectors(files)
    places = stored.find_ids(["p89", "p7", "p90"])
    assert places.tolist() == [89, 7, NOWHERE]
    assert stored.take(places[:2])["product_id"].to_pylist() == ["p89", "p7"]
    rows = pa.table({"product_id": ["p7", "x"], "digest": ["2", "01"]})
    lancedb.connect(tmp_path).create_table("there", data=rows)
    stored = StoredVectors(files, tmp_path / "there.lance")
    assert stored.find_ids(["p7", "x", "p8", "y"]).tolist() == [IN_TABLE, IN_TABLE, 8, NOWHERE]
    assert stored.find(["p7", "x", "p7"], ["2", "01", "01"]).tolist() == [IN_TABLE, IN_TABLE, 7]
