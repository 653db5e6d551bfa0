from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset

from moon2_training import teacher_features
from moon2_training.encode import Encoder
from moon2_training.hub_folder import save_hub_folder
from moon2_training.items import ProductItems
from moon2_training.peer_encoders import DualEncoder
from moon2_training.teacher_features import load_teacher_features, main, write_teacher_features


@pytest.fixture(scope="module")
def dual_encoder(tiny_dual_encoder):
    return DualEncoder(*tiny_dual_encoder("clip"), batch_size=8)


@pytest.fixture
def written(dual_encoder, shop, tmp_path):
    write_teacher_features(dual_encoder, shop.products, tmp_path / "teacher.parquet", progress=False)
    return tmp_path / "teacher.parquet"


def write(path, ids, **columns):
    """A file with (n, D) arrays or Nones as columns."""
    arrays = {"product_id": pa.array(ids)}
    for name, rows in columns.items():
        width = next(len(row) for row in rows if row is not None)
        listed = [None if row is None else np.asarray(row, np.float16) for row in rows]
        arrays[name] = pa.array(listed, pa.list_(pa.float16(), width))
    pq.write_table(pa.table(arrays), path)
    return str(path)


def test_every_product_has_the_vectors_of_its_views(written, dual_encoder, shop):
    table = pq.read_table(written)
    assert table.column_names == ["product_id", "text", "image"]
    assert table["product_id"].to_pylist() == shop.products["product_id"]
    views = dual_encoder.encode_views(ProductItems(shop.products), progress=False)
    for name, present in (("text", views.has_text), ("image", views.has_image)):
        assert table.schema.field(name).type == pa.list_(pa.float16(), 24)
        vectors = table[name].to_pylist()
        assert [vector is not None for vector in vectors] == present.tolist()
        found = np.array([vector for vector in vectors if vector is not None], np.float32)
        np.testing.assert_allclose(found, getattr(views, name)[present], atol=1e-3)
    assert table["text"].null_count == table["image"].null_count == 1


@pytest.mark.parametrize("rows", [1, 5, 24])
def test_groups_of_any_size_are_the_same_file(written, dual_encoder, shop, tmp_path, monkeypatch, rows):
    monkeypatch.setattr(teacher_features, "ROWS_PER_GROUP", rows)
    write_teacher_features(dual_encoder, shop.products, tmp_path / "grouped.parquet", progress=False)
    whole, grouped = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("teacher", "grouped"))
    assert grouped["product_id"].equals(whole["product_id"])
    for name in ("text", "image"):
        for one, other in zip(grouped[name].to_pylist(), whole[name].to_pylist(), strict=True):
            assert (one is None and other is None) or np.allclose(one, other, atol=1e-3)


def test_what_fails_leaves_the_older_file_and_nothing_else(written, dual_encoder, shop, monkeypatch):
    monkeypatch.setattr(teacher_features, "ROWS_PER_GROUP", 8)
    before = written.read_bytes()
    broken = shop.products.map(
        lambda row: {"images": [{"bytes": b"no image", "path": None}]} if row["product_id"] == "p20" else {}
    )
    with pytest.raises(ValueError, match="product p20"):
        write_teacher_features(dual_encoder, broken, written, progress=False)
    assert written.read_bytes() == before and [path.name for path in written.parent.iterdir()] == [written.name]


def test_a_catalogue_is_not_overwritten(dual_encoder, shop, tmp_path):
    shop.products.to_parquet(tmp_path / "products.parquet")
    with pytest.raises(ValueError, match="holds another table"):
        write_teacher_features(dual_encoder, shop.products, tmp_path / "products.parquet", progress=False)


def test_products_are_looked_up_by_their_keys(written, shop):
    features, messages = load_teacher_features([str(written)], shop)
    rows = [23, 3, 4, 0, 3]
    taught = features.look_up(torch.from_numpy(shop.product_key[rows]))
    table = pq.read_table(written)
    assert messages == [] and [of_view.view for of_view in taught] == ["text", "image"]
    assert taught[0].present.tolist() == [True, True, False, True, True]  # product 4 has no title
    assert taught[1].present.tolist() == [True, False, True, True, False]  # product 3 no picture
    for view, vectors, present in taught:
        for row, vector, there in zip(rows, vectors, present.tolist(), strict=True):
            expected = table[view][row].as_py() if there else [0] * 24
            torch.testing.assert_close(vector, torch.tensor(expected, dtype=torch.float32), atol=2e-3, rtol=0)


def test_files_of_one_teacher_and_of_several(shop, tmp_path):
    ids = shop.products["product_id"]
    rng = np.random.default_rng(0)
    text, image = rng.normal(size=(24, 5)), rng.normal(size=(24, 3))
    write(tmp_path / "text-0.parquet", ids[12:], text=text[12:])
    write(tmp_path / "text-1.parquet", [*ids[:10], "of another shop"], text=text[:11])
    pictures = write(tmp_path / "image.parquet", ids, image=[None, *image[1:]])
    features, messages = load_teacher_features([str(tmp_path / "text-*.parquet"), pictures], shop)
    assert len(messages) == 1 and "2 of 24 products are missing, for example p10" in messages[0]
    by_text, by_image = features.look_up(torch.from_numpy(shop.product_key))
    assert by_text.present.tolist() == [row not in (10, 11) for row in range(24)]
    assert by_image.present.tolist() == [row != 0 for row in range(24)]
    for taught, vectors in ((by_text, text), (by_image, image)):
        expected = torch.from_numpy(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).float()
        torch.testing.assert_close(taught.vectors[taught.present], expected[taught.present], atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"ids": ["a", "b"], "text": np.ones((2, 3))}, "none of the 24 products of the catalogue, whose first is p0"),
        ({"ids": ["p1", "p1"], "text": np.ones((2, 3))}, "product p1 is there twice"),
        ({"ids": ["p1", "p2"], "text": [[1, 1], [0, 0]]}, "column text, product p2: is zero or not finite"),
        ({"ids": ["p1", "p2"], "text": [[1, 1], [0, np.nan]]}, "column text, product p2: is zero or not finite"),
        ({"ids": ["p1", "p2"], "vector": np.ones((2, 3))}, "has the columns product_id, vector; give product_id, and"),
        ({"ids": ["p1", "other"], "text": [None, [1, 1]]}, "has no vector for any product of the catalogue"),
    ],
)
def test_a_file_that_cannot_teach_is_named(shop, tmp_path, columns, message):
    file = write(tmp_path / "teacher.parquet", **columns)
    with pytest.raises(ValueError, match=message) as raised:
        load_teacher_features([file], shop)
    assert str(raised.value).startswith(file)


def test_files_of_another_form_are_named(shop, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.parquet: no such file"):
        load_teacher_features([str(tmp_path / "none.parquet")], shop)
    Dataset.from_dict({"product_id": ["p0"], "text": [[1.0, 2.0]]}).to_parquet(tmp_path / "lists.parquet")
    with pytest.raises(ValueError, match="column text is list.*give fixed-size lists of float16"):
        load_teacher_features([str(tmp_path / "lists.parquet")], shop)
    for number, width in enumerate((2, 3)):
        write(tmp_path / f"part-{number}.parquet", [f"p{number}"], text=np.ones((1, width)))
    with pytest.raises(ValueError, match="column text has 3 numbers, an earlier file 2"):
        load_teacher_features([str(tmp_path / "part-*.parquet")], shop)


def test_the_command_takes_a_saved_encoder(tiny, saved_shop, tmp_path, capsys):
    save_hub_folder(tmp_path / "model", *tiny)
    products = str(saved_shop / "products-train*.parquet")
    main(["--teacher", str(tmp_path / "model"), "--products", products, "--output", str(tmp_path / "t" / "t.parquet")])
    assert "16 products written to" in capsys.readouterr().out
    table = pq.read_table(tmp_path / "t" / "t.parquet")
    model, processor = tiny
    items = ProductItems(Dataset.from_parquet([str(file) for file in sorted(saved_shop.glob("products-train*"))]))
    views = Encoder(model, processor).encode_views(items, progress=False)
    assert len(table) == 16
    for row, vector in enumerate(table["text"].to_pylist()):
        assert (vector is not None) == views.has_text[row]
        if vector is not None:
            np.testing.assert_allclose(vector, views.text[row], atol=1e-3)
