from __future__ import annotations

import csv
import json
import shutil
from datetime import timedelta
from pathlib import Path

import datasets
import lancedb
import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
from catalogue_runs import change, contents, encode, rows
from lancedb.index import BTree

from moon2_training import lance_versions
from moon2_training.cli import main
from moon2_training.encode import Encoder
from moon2_training.encode_catalogue import EncodeArguments
from moon2_training.items import ProductItems
from moon2_training.saved_encoder import load_encoder


@pytest.fixture(scope="module")
def model(saved_model) -> str:
    return str(saved_model)


def test_what_is_written_is_what_the_encoder_says_in_the_order_of_the_catalogue(model, shop, catalogue, tmp_path):
    views = ["text", "image", "multimodal"]
    told = encode(model, catalogue, tmp_path / "out.parquet", views=views)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "out.parquet.json", "products.parquet"]
    assert [entry["rows"] for entry in told["files"]] == [10, 10, 4] and told["products"] == told["encoded"] == 24
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.names == ["product_id", "digest", "text_vector", "image_vector", "multimodal_vector"]
    assert table["product_id"].to_pylist() == shop.products["product_id"]
    found = Encoder(*load_encoder(model)).encode_views(ProductItems(shop.products), progress=False)
    for view, has in (("text", found.has_text), ("image", found.has_image), ("multimodal", np.ones(24, bool))):
        column = table[f"{view}_vector"].to_pylist()
        assert [vector is not None for vector in column] == has.tolist()
        there = np.array([vector for vector in column if vector is not None])
        np.testing.assert_allclose(there, getattr(found, view)[has], atol=1e-5)
    assert not found.has_text.all() and not found.has_image.all()


@pytest.mark.parametrize("vector_dtype", ["float32", "float16"])
def test_datasets_pandas_and_lancedb_read_the_folder_as_it_stands(model, catalogue, tmp_path, vector_dtype):
    out = tmp_path / "vectors"
    encode(model, catalogue, out, vector_dtype=vector_dtype, truncate_dim=16)
    data = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert data.features["multimodal_vector"] == datasets.List(datasets.Value(vector_dtype), length=16)
    frame = pandas.read_parquet(out)
    vectors = np.stack(frame["multimodal_vector"])
    assert vectors.dtype == vector_dtype and vectors.shape == (24, 16)
    np.testing.assert_array_equal(np.array(data["multimodal_vector"], dtype=vector_dtype), vectors)
    np.testing.assert_allclose(np.linalg.norm(vectors.astype(np.float32), axis=1), 1.0, atol=2e-3)
    table = lancedb.connect(tmp_path / "db").create_table("vectors", data=pq.read_table(out))
    nearest = table.search(vectors[5].astype(np.float32), vector_column_name="multimodal_vector").limit(1).to_list()
    assert nearest[0]["product_id"] == "p5"


def test_polars_reads_the_folder_as_it_stands(model, catalogue, tmp_path):
    polars = pytest.importorskip("polars", reason="polars is not installed")
    encode(model, catalogue, tmp_path / "vectors.parquet")
    frame = polars.read_parquet(tmp_path / "vectors.parquet")
    assert frame["product_id"].to_list() == [f"p{i}" for i in range(24)]


def test_only_what_is_new_or_changed_is_encoded_again_and_what_is_gone_is_gone(model, catalogue, tmp_path):
    out = tmp_path / "vectors"
    encode(model, catalogue, out)
    before = {row["product_id"]: row["multimodal_vector"] for row in pq.read_table(out).to_pylist()}

    def edit(products):
        products[6]["title"] = "Nordvik shoes"  # changed
        products[7]["images"] = products[8]["images"]  # changed
        products[9]["description"] = "in no vector"
        del products[2]
        products.insert(0, products[10] | {"product_id": "new"})

    change(catalogue, edit)
    told = encode(model, catalogue, out)
    assert (told["encoded"], told["unchanged"]) == (3, 21)
    table = pq.read_table(out)
    ids = ["new", *(f"p{i}" for i in range(24) if i != 2)]
    assert table["product_id"].to_pylist() == ids
    vectors = dict(zip(ids, table["multimodal_vector"].to_pylist(), strict=True))
    assert [name for name in ids if vectors[name] != before.get(name)] == ["new", "p6", "p7"]
    encode(model, catalogue, tmp_path / "fresh")
    fresh = pq.read_table(tmp_path / "fresh")
    for name in ("product_id", "digest"):
        assert fresh[name] == table[name]
    np.testing.assert_allclose(*(np.stack(t["multimodal_vector"].to_pylist()) for t in (fresh, table)), atol=1e-5)


def test_a_catalogue_that_is_the_same_costs_nothing(model, catalogue, tmp_path):
    out = tmp_path / "vectors"
    encode(model, catalogue, out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert "nothing has changed: 24 products" in encode(model, catalogue, out)["message"]
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert not (tmp_path / "vectors.partial").exists()


def test_a_catalogue_that_changes_while_its_run_is_interrupted_keeps_what_is_done(model, catalogue, tmp_path):
    out = tmp_path / "out"
    change(catalogue, lambda products: products[15].update(images=[{"bytes": b"broken", "path": None}]))
    with pytest.raises(ValueError, match="row 15"):
        encode(model, catalogue, out, on_error="raise")
    assert len(list((tmp_path / "out.partial" / "records").glob("*.json"))) == 1
    change(catalogue, lambda products: products[15].update(images=[]) or products[1:])
    told = encode(model, catalogue, out)
    assert (told["encoded"], told["unchanged"]) == (14, 9)
    assert pq.read_table(out)["product_id"].to_pylist() == [f"p{i}" for i in range(1, 24)]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"views": ["text", "multimodal"]}, r"views=\['multimodal'\], not \['text', 'multimodal'\]"),
        ({"vector_dtype": "float16"}, "vector_dtype='float32', not 'float16'"),
        ({"truncate_dim": 8}, "dimension=48, not 8"),
        ({"dtype": "float16"}, "made with another encoder"),
    ],
)
def test_another_encoder_or_other_options_are_refused_with_the_way_out(model, catalogue, tmp_path, options, reason):
    out = tmp_path / "out"
    encode(model, catalogue, out)
    before = contents(out)
    with pytest.raises(ValueError, match=f"{reason}.*--overwrite true"):
        encode(model, catalogue, out, **options)
    assert contents(out) == before and not (tmp_path / "out.partial").exists()
    told = encode(model, catalogue, out, overwrite=True, **options)
    assert told["encoded"] == 24 and contents(out) != before


def test_what_a_gpu_has_encoded_in_bfloat16_is_brought_up_to_date_on_a_cpu(model, catalogue, tmp_path):
    encode(model, catalogue, tmp_path / "out", dtype="bfloat16")
    change(catalogue, lambda products: products[3].update(title="mug"))
    told = encode(model, catalogue, tmp_path / "out")
    assert (told["encoded"], told["unchanged"]) == (1, 23)


def test_a_folder_of_something_else_is_never_replaced(model, catalogue, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "holiday.jpg").write_bytes(b"sun")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="out.json, which would tell whether it holds vectors"):
            encode(model, catalogue, tmp_path / "out", overwrite=overwrite)
    assert contents(tmp_path / "out") == {"holiday.jpg": b"sun"}


def test_repeated_ids_are_named_before_anything_is_encoded(model, catalogue, tmp_path):
    def edit(products):
        products[12]["product_id"], products[14]["product_id"] = "p3", "p5"

    change(catalogue, edit)
    with pytest.raises(ValueError, match=r"row 12: product_id p3 is already in .* row 3 \(2 such ids: p3, p5\)"):
        encode(model, catalogue, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def broken_catalogue(catalogue: Path, tmp_path: Path) -> None:
    (tmp_path / "linked.jpg").write_bytes(pq.read_table(catalogue).to_pylist()[5]["images"][0]["bytes"])

    def edit(products):
        good = products[5]["images"][0]
        products[3] |= {"title": " ", "images": []}
        products[6] |= {"images": [good, {"bytes": b"no picture", "path": None}]}
        products[9] |= {"title": "", "images": [{"bytes": b"no picture", "path": None}]}
        products[11] |= {"title": "", "images": [{"bytes": None, "path": str(tmp_path / "linked.jpg")}]}
        products[12] |= {"images": [{"bytes": None, "path": "=nowhere.jpg"}]}

    change(catalogue, edit)


def test_what_cannot_be_encoded_is_left_out_counted_and_listed(model, catalogue, tmp_path):
    broken_catalogue(catalogue, tmp_path)
    out = tmp_path / "out.parquet"
    message = encode(model, catalogue, out, views=["image", "multimodal"])["message"]
    assert "22 products in" in message and "2 products left out, 2 pictures left out" in message
    with open(tmp_path / "out.parquet.errors.csv", newline="") as file:
        listed = {row["product_id"]: row for row in csv.DictReader(file)}
    assert {name: row["dropped"] for name, row in listed.items()} == {
        "p3": "yes",
        "p6": "no",
        "p9": "yes",
        "p12": "no",
    }
    assert listed["p3"]["message"] == (
        "products.parquet row 3, product p3: neither title nor image; give at least one"
    )
    assert listed["p9"]["message"].startswith("products.parquet row 9, product p9, image 0: unreadable image")
    table = pq.read_table(out)
    found = {row["product_id"]: row for row in table.to_pylist()}
    assert len(found) == 22 and not {"p3", "p9"} & set(found)
    assert found["p12"]["image_vector"] is None and found["p12"]["multimodal_vector"] is not None
    np.testing.assert_allclose(found["p11"]["multimodal_vector"], found["p5"]["image_vector"], atol=1e-5)
    np.testing.assert_allclose(found["p6"]["image_vector"], found["p5"]["image_vector"], atol=1e-5)

    again = encode(model, catalogue, out, views=["image", "multimodal"])  # a linked picture may have changed
    assert (again["encoded"], again["unchanged"]) == (0, 22)
    assert "2 products left out, 2 pictures left out" in again["message"]
    shutil.copy(tmp_path / "linked.jpg", tmp_path / "old.jpg")
    products = pq.read_table(catalogue).to_pylist()
    (tmp_path / "linked.jpg").write_bytes(products[8]["images"][0]["bytes"])
    assert encode(model, catalogue, out, views=["image", "multimodal"])["encoded"] == 1


@pytest.fixture
def pictures(catalogue, tmp_path) -> Path:
    """A folder with the pictures of the catalogue, which links them."""
    folder = tmp_path / "pictures"
    folder.mkdir()

    def link(products):
        for product in products:
            for number, picture in enumerate(product["images"]):
                path = folder / f"{product['product_id']}-{number}.png"
                path.write_bytes(picture["bytes"])
                picture |= {"bytes": None, "path": str(path)}

    change(catalogue, link)
    return folder


@pytest.mark.parametrize("name", ["out", "out.lance"])
def test_vectors_stay_while_the_folder_of_linked_pictures_is_away(model, catalogue, pictures, tmp_path, name):
    out = tmp_path / name
    read = rows if out.suffix else table_rows
    products = pq.read_table(catalogue).to_pylist()
    with_pictures = {product["product_id"] for product in products if product["images"]}
    first = encode(model, catalogue, out)
    before = read(out)
    pictures.rename(tmp_path / "away")

    def edit(products):
        products[5]["title"] = "Nordvik mug"  # has a picture
        products[3]["title"] = "Nordvik mug"  # has none
        products.append(products[5] | {"product_id": "new"})  # has no vectors that could stay

    change(catalogue, edit)
    assert "p5" in with_pictures and "p3" not in with_pictures
    with pytest.raises(ValueError, match="row 0, product p0, image 0: .*p0-0.png cannot be opened"):
        encode(model, catalogue, out, on_error="raise")
    told = encode(model, catalogue, out)
    assert (told["products"], told["encoded"], told["unchanged"]) == (25, 2, 23)
    after = read(out)
    assert {product for product in after if after[product] != before.get(product)} == {"p3", "new"}
    assert {product for _, product, _, _ in told["kept"]} == with_pictures
    lost = len(with_pictures)
    assert f"0 products left out, 1 pictures left out, {lost} products as they were before" in told["message"]
    with open(f"{out}.errors.csv", newline="") as file:
        listed = {row["product_id"]: row["message"] for row in csv.DictReader(file)}
    assert listed.keys() == with_pictures | {"new"}
    assert listed["p5"].endswith(
        "p5-0.png cannot be opened (No such file or directory); its vectors stay until it can"
    )

    again = encode(model, catalogue, out)  # still away
    assert (again["encoded"], again["unchanged"], len(again["kept"])) == (0, 25, lost) and read(out) == after

    (tmp_path / "away").rename(pictures)
    shutil.copy(pictures / "p6-0.png", pictures / "p8-0.png")
    back = encode(model, catalogue, out)
    assert back["encoded"] == 3 and not back["kept"] and not back["errors"]
    found = read(out)
    assert {product for product in found if found[product] != after[product]} == {"p5", "p8", "new"}
    assert first["products"] == 24 and back["products"] == 25


@pytest.mark.parametrize("views", [["text"], ["multimodal"]])
def test_a_picture_that_never_was_there_keeps_nothing_as_it_was(model, catalogue, pictures, tmp_path, views):
    (pictures / "p5-0.png").unlink()
    encode(model, catalogue, tmp_path / "out", views=views)
    change(catalogue, lambda products: products[5].update(title="Nordvik mug"))
    told = encode(model, catalogue, tmp_path / "out", views=views)
    assert (told["encoded"], told["unchanged"]) == (1, told["products"] - 1) and not told["kept"]


def table_rows(folder: Path) -> dict[str, list[float]]:
    table = pq.read_table(folder)
    return dict(zip(table["product_id"].to_pylist(), table["multimodal_vector"].to_pylist(), strict=True))


def test_a_run_that_finds_nothing_to_do_lists_the_errors_that_a_killed_one_did_not(model, catalogue, tmp_path):
    change(catalogue, lambda products: products[6]["images"].append({"bytes": b"no picture", "path": None}))
    encode(model, catalogue, tmp_path / "out")
    listed = (tmp_path / "out.errors.csv").read_bytes()
    (tmp_path / "out.errors.csv").unlink()  # as if killed before it was written
    message = encode(model, catalogue, tmp_path / "out")["message"]
    assert "nothing has changed: 24 products" in message and "0 products left out, 1 pictures left out" in message
    assert (tmp_path / "out.errors.csv").read_bytes() == listed


def test_the_folder_of_the_errors_is_made_and_a_place_that_can_be_none_refused_before_any_work(
    model, catalogue, tmp_path
):
    change(catalogue, lambda products: products[6]["images"].append({"bytes": b"no picture", "path": None}))
    message = encode(model, catalogue, tmp_path / "out", errors=str(tmp_path / "logs" / "day" / "e.csv"))["message"]
    assert "1 pictures left out" in message
    assert (tmp_path / "logs" / "day" / "e.csv").read_text().count("no known format") == 1
    for place in (tmp_path / "logs", catalogue / "e.csv", catalogue / "logs" / "e.csv"):
        with pytest.raises(ValueError, match="give a file in a folder"):
            encode(model, catalogue, tmp_path / "other", errors=str(place))
    assert not list(tmp_path.glob("other*"))


def test_damaged_vectors_are_made_again_though_the_catalogue_is_the_same(model, catalogue, tmp_path):
    encode(model, catalogue, tmp_path / "out")
    before = contents(tmp_path / "out")
    shard = tmp_path / "out" / "vectors-00001.parquet"
    damaged = bytearray(before[shard.name])
    damaged[len(damaged) // 2] ^= 4
    shard.write_bytes(damaged)
    told = encode(model, catalogue, tmp_path / "out")
    assert (told["encoded"], told["unchanged"]) == (10, 14)
    assert contents(tmp_path / "out") == before


def test_on_error_raise_stops_at_the_first_and_names_it(model, catalogue, tmp_path):
    broken_catalogue(catalogue, tmp_path)
    with pytest.raises(ValueError, match="^products.parquet row 3, product p3: neither title nor image"):
        encode(model, catalogue, tmp_path / "out", on_error="raise")
    change(catalogue, lambda products: products[4:])
    with pytest.raises(ValueError, match="^products.parquet row 2, product p6, image 1: unreadable image"):
        encode(model, catalogue, tmp_path / "out", on_error="raise")
    assert not (tmp_path / "out").exists()


def test_a_catalogue_of_which_nothing_can_be_encoded_is_an_error(model, catalogue, tmp_path):
    change(
        catalogue, lambda products: [p | {"title": "", "images": [{"bytes": b"x", "path": None}]} for p in products]
    )
    with pytest.raises(ValueError, match="no product of 24 can be encoded: products.parquet row 0, product p0, image"):
        encode(model, catalogue, tmp_path / "out")


def test_a_lance_table_is_made_and_brought_up_to_date_in_place(model, catalogue, tmp_path):
    out = tmp_path / "shop.lance"
    encode(model, catalogue, tmp_path / "folder")
    encode(model, catalogue, out)
    table = pq.read_table(tmp_path / "folder")
    before = rows(out)
    assert before == dict(zip(table["product_id"].to_pylist(), table["multimodal_vector"].to_pylist(), strict=True))
    assert "nothing has changed" in encode(model, catalogue, out)["message"]
    change(catalogue, lambda products: products[3].update(title="it's a mug") or products[1:])
    told = encode(model, catalogue, out)
    assert (told["products"], told["encoded"], told["unchanged"]) == (23, 1, 22)
    after = rows(out)
    assert set(after) == set(before) - {"p0"}
    assert [name for name in after if after[name] != before[name]] == ["p3"]
    assert not (tmp_path / "shop.lance.partial").exists()
    assert encode(model, catalogue, out, overwrite=True, truncate_dim=48)["encoded"] == 23
    assert set(rows(out)) == set(after)


def test_a_lance_table_that_changes_every_day_keeps_its_indexes_whole_and_no_old_files(
    model, catalogue, tmp_path, monkeypatch
):
    encode(model, catalogue, tmp_path / "shop.lance")
    table = lancedb.connect(tmp_path).open_table("shop")
    table.create_index("product_id", config=BTree())
    (index,) = table.list_indices()
    reader, before = lancedb.connect(tmp_path).open_table("shop"), rows(tmp_path / "shop.lance")

    def update(day: int) -> None:
        def edit(products):
            for product in products:
                product["title"] = f"mug of day {day}"

        change(catalogue, edit)
        assert encode(model, catalogue, tmp_path / "shop.lance")["encoded"] == 24 - day
        stats = lancedb.connect(tmp_path).open_table("shop").index_stats(index.name)
        assert (stats.num_indexed_rows, stats.num_unindexed_rows) == (24 - day, 0)

    update(0)
    found = reader.search().limit(None).to_arrow().to_pylist()  # of before, for whoever has it open
    assert {row["product_id"]: row["multimodal_vector"] for row in found} == before
    monkeypatch.setattr(lance_versions, "OLD_VERSIONS", timedelta(0))
    monkeypatch.setattr(lance_versions, "MARGIN", timedelta(0))
    for day in range(1, 4):
        change(catalogue, lambda products: products[1:])
        update(day)
        assert len(lancedb.connect(tmp_path).open_table("shop").list_versions()) == 1
        told = json.loads((tmp_path / "shop.lance.json").read_text())["files"]
        assert len(list((tmp_path / "shop.lance" / "data").iterdir())) == len(told) == 1
    assert "nothing has changed" in encode(model, catalogue, tmp_path / "shop.lance")["message"]


def test_a_lance_table_can_be_the_catalogue(model, catalogue, tmp_path):
    products = pq.read_table(catalogue)
    lancedb.connect(tmp_path).create_table("shop", data=products.replace_schema_metadata(None))
    encode(model, catalogue, tmp_path / "a")
    encode(model, tmp_path / "shop.lance", tmp_path / "b")
    assert pq.read_table(tmp_path / "a").equals(pq.read_table(tmp_path / "b"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": ["title"]}, "give one or some of text, image, multimodal"),
        ({"vector_dtype": "int8"}, "give one of float32, float16"),
        ({"on_error": "ignore"}, "give one of skip, raise"),
        ({"truncate_dim": 0}, "give 1 or more"),
        ({"quantization": "int8", "dtype": "bfloat16"}, "starts from float32"),
        ({"ray_workers": 2}, "for --engine ray"),
    ],
)
def test_arguments_without_a_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EncodeArguments("model", ["products"], "out", **options)


def test_too_large_a_dimension_and_a_missing_catalogue_are_refused(model, catalogue, tmp_path):
    with pytest.raises(ValueError, match="truncate_dim=49; the encoder's vectors have 48 numbers"):
        encode(model, catalogue, tmp_path / "out", truncate_dim=49)
    with pytest.raises(FileNotFoundError, match="no Parquet file there"):
        encode(model, tmp_path / "nowhere.parquet", tmp_path / "out")


def test_the_command_encodes_and_tells(model, catalogue, tmp_path, capsys):
    out = tmp_path / "vectors.parquet"
    assert main(["encode", "--model", model, "--products", str(catalogue), "--output", str(out)]) == 0
    captured = capsys.readouterr()
    assert "24 products in" in captured.out and "24 encoded" in captured.out
    assert "products/s" in captured.err and "24/24" in captured.err
    told = json.loads((tmp_path / "vectors.parquet.json").read_text())
    assert told["identity"]["views"] == ["multimodal"] and told["model"] == model
    assert main(["encode", "--model", model, "--products", "nowhere", "--output", str(out)]) == 1
    assert "moon2 encode: nowhere: no Parquet file there" in capsys.readouterr().err
