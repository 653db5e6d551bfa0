from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Image, List, Value

from moon2_dataset import SchemaError, load_product_queries
from moon2_dataset.data_files import data_files
from moon2_dataset.table_statistics import product_statistics, query_statistics, table_features


def test_features_are_those_of_all_splits_together(saved_shop):
    files = data_files(saved_shop)
    features, present = table_features("products", files["products"])
    assert list(features)[-3:] == ["enriched_title", "expanded_images", "core_region"]
    assert features["images"] == List(Image(decode=False))
    assert present["images"] == ["train", "test"] and present["enriched_title"] == ["train"]


def test_files_of_another_shape_are_named(data_folder):
    pq.write_table(pa.table({"product_id": ["a"], "title": [[1]]}), data_folder / "products-test.parquet")
    with pytest.raises(SchemaError, match="products-test.parquet: column title is list"):
        table_features("products", data_files(data_folder)["products"])
    for number, value in enumerate(([1], ["a"])):
        table = pa.table({"product_id": ["a"], "title": ["b"], "own": value})
        pq.write_table(table, data_folder / f"products-own-{number}.parquet")
    own = {"own": data_files(data_folder)["products"]["own"]}
    with pytest.raises(SchemaError, match="products-own-1.parquet: column own is .*string.*, elsewhere .*int64"):
        table_features("products", own)
    (data_folder / "products-own-1.parquet").write_bytes(b"no Parquet")
    for read in (lambda: table_features("products", own), lambda: product_statistics(own["own"])):
        with pytest.raises(SchemaError, match="products-own-1.parquet: cannot be read as Parquet"):
            read()


def test_statistics_are_those_of_the_rows(saved_shop):
    files = data_files(saved_shop)
    for split in ("train", "test"):
        data = load_product_queries(files["products"][split], files["queries"][split])
        rows, queries = data.products.to_list(), data.queries.to_list()
        counts = product_statistics(files["products"][split])
        assert counts.products == len(rows)
        assert counts.images == sum(len(row["images"]) for row in rows)
        assert counts.with_image == sum(bool(row["images"]) for row in rows)
        assert counts.with_title == sum(bool(row["title"]) for row in rows)
        assert counts.with_description == 0 and counts.with_category == len(rows)
        assert counts.categories == [1, 3] and counts.leaf_categories == 3
        assert counts.attributes == Counter(colour=len(rows))
        assert counts.enriched_titles == sum(row.get("enriched_title", "") not in ("", row["title"]) for row in rows)
        assert counts.expanded_images == sum(len(row.get("expanded_images", [])) for row in rows)
        assert counts.core_regions == sum(bool(row.get("core_region")) for row in rows)

        asked = query_statistics(files["queries"][split])
        holds = {}
        for row in queries:
            holds.setdefault(row["query_id"], (row["text"] is not None, row["image"] is not None))
        assert (asked.rows, asked.queries) == (len(queries), len(data.positives))
        assert (asked.several, asked.most) == ((1, 2) if split == "train" else (0, 1))
        held = Counter(holds.values())
        assert (asked.text_only, asked.photo_only, asked.both) == (held[1, 0], held[0, 1], held[1, 1])
        assert asked.negatives == sum(len(row["negative_ids"]) for row in queries)
        assert asked.with_negatives == (1 if split == "train" else 0)
    assert product_statistics(files["products"]["train"]).expanded_images > 0


def test_batches_and_files_do_not_change_the_statistics(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    rows = 300
    table = pa.table(
        {
            "query_id": [f"q{n}" for n in np.sort(rng.integers(0, 120, rows))],
            "text": ["x"] * rows,
            "product_id": [f"p{n}" for n in range(rows)],
            "grade": rng.uniform(1, 5, rows),
            "slice": rng.choice(["image", "text", None], rows).tolist(),
            "label_noise": rng.random(rows) < 0.1,
            "known": [[{"name": "colour", "value": "red" if n % 3 else "blue"}] * (n % 2) for n in range(rows)],
            "note": [f"note {n}" for n in range(rows)],
        }
    )
    whole, parts = tmp_path / "queries.parquet", [tmp_path / f"queries-{n}.parquet" for n in range(3)]
    pq.write_table(table, whole)
    for number, part in enumerate(parts):
        pq.write_table(table.slice(100 * number, 100), part)
    expected = query_statistics([whole])
    monkeypatch.setattr("moon2_dataset.table_statistics._BATCH_ROWS", 7)
    assert query_statistics([whole]) == query_statistics(parts) == expected
    ids, positives = np.unique(table["query_id"].to_numpy(), return_counts=True)
    assert (expected.queries, expected.most) == (len(ids), positives.max())
    assert expected.grades == (table["grade"].to_numpy().min(), table["grade"].to_numpy().max())
    assert expected.labels["slice"] == Counter(value or "none" for value in table["slice"].to_pylist())
    assert expected.labels["label_noise"]["true"] == table["label_noise"].to_numpy().sum()
    assert expected.labels["known: colour"] == Counter(red=100, blue=50)
    assert set(expected.labels) == {"slice", "label_noise", "known: colour"}  # a note of each row is no label


def test_tables_of_other_writers(tmp_path):
    pq.write_table(
        pa.table(
            {
                "product_id": pa.array([1, 2, 3]),
                "title": pa.array(["a", "  ", None]).dictionary_encode(),
                "description": pa.array([None] * 3),
                "images": pa.array([[b"x", b"y"], [], None], pa.list_(pa.binary())),
                "category_path": pa.array([["A", "B"], ["A"], []], pa.large_list(pa.large_string())),
                "attributes": pa.array(
                    [[{"name": "n", "value": "1"}, {"name": "n", "value": "2"}], None, []],
                    pa.list_(pa.struct({"name": pa.string(), "value": pa.string()})),
                ),
                "own.column": [1, 2, 3],
            }
        ),
        tmp_path / "products.parquet",
    )
    counts = product_statistics([tmp_path / "products.parquet"])
    assert (counts.products, counts.images, counts.with_image, counts.with_title) == (3, 2, 1, 1)
    assert (counts.categories, counts.leaf_categories, counts.attributes) == ([1, 1], 2, Counter(n=1))
    features, _ = table_features("products", {"train": [tmp_path / "products.parquet"]})
    assert features["product_id"] == Value("string") and features["images"] == List(Image(decode=False))


def test_pictures_are_not_read(saved_shop, tmp_path):
    """Where their bytes stand, the file is damaged, and nobody notices."""
    file = tmp_path / "products-test.parquet"
    content = bytearray((saved_shop / file.name).read_bytes())
    group = pq.read_metadata(saved_shop / file.name).row_group(0)
    (pictures,) = [
        column
        for column in map(group.column, range(group.num_columns))
        if column.path_in_schema.startswith("images.") and column.path_in_schema.endswith(".bytes")
    ]
    start = min(filter(None, (pictures.dictionary_page_offset, pictures.data_page_offset)))
    content[start : start + pictures.total_compressed_size] = bytes(pictures.total_compressed_size)
    file.write_bytes(content)
    with pytest.raises(OSError):
        pq.read_table(file)
    assert product_statistics([file]) == product_statistics([saved_shop / file.name])
