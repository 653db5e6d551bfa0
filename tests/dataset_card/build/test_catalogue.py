from __future__ import annotations

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from moon2_dataset import load_products
from moon2_dataset.build import catalogue
from moon2_dataset.build.catalogue import (
    clean_catalogue,
    read_aliases,
    read_category_paths,
    read_ids,
    read_keys,
    read_products,
    write_products,
)
from moon2_dataset.build.duplicates import stable_key
from moon2_dataset.build.sources import open_source
from moon2_dataset.shards import written


@pytest.fixture
def shop(tmp_path, make_image):
    """A catalogue of 60 lines, two of them broken and one without a title, with two pictures for every fourth."""
    (tmp_path / "shop").mkdir()
    with open(tmp_path / "shop" / "shop.jsonl", "w", encoding="utf-8") as lines:
        for row in range(60):
            product = {"id": f"p{row}", "title": f"Mug {row}", "category": ["Kitchen", f"Mugs {row % 3}"], "image": []}
            if row % 4 == 0:
                for view in ("front", "back"):
                    make_image(row + len(view)).save(tmp_path / "shop" / f"{row}-{view}.png")
                    product["image"].append(f"{row}-{view}.png")
            if row == 20:
                product["image"][0] = "nowhere.png"
            if row == 30:
                product["title"] = ""
            lines.write('{"id": \n' if row in (7, 8) else json.dumps(product) + "\n")
    return tmp_path / "shop" / "shop.jsonl"


def cleaned(shop, work, workers=2):
    work.mkdir(exist_ok=True)
    return clean_catalogue(open_source(shop), work, None, 512, workers, progress=False)


def test_every_row_is_a_product_or_dropped_with_its_place(shop, tmp_path):
    counts = cleaned(shop, tmp_path / "work")
    assert (counts.rows, counts.cleaned) == (60, 57)
    dropped = counts.dropped.as_json()
    assert {reason: entry["rows"] for reason, entry in dropped.items()} == {
        "unreadable_row": 2,
        "no_title_no_image": 1,
    }
    assert dropped["unreadable_row"]["examples"][0].startswith("shop.jsonl line 8: ")
    assert counts.notes.as_json() == {"image_missing": {"rows": 1, "examples": ["shop.jsonl line 21: nowhere.png"]}}
    ids = read_ids(tmp_path / "work").to_pylist()
    assert ids == [f"p{row}" for row in range(60) if row not in (7, 8, 30)]


def test_keys_tell_what_is_compared(shop, tmp_path):
    cleaned(shop, tmp_path / "work")
    keys, num_images = read_keys(tmp_path / "work")
    assert num_images.tolist()[:6] == [2, 0, 0, 0, 2, 0]
    assert (keys.pictured == (num_images > 0)).all()
    assert len(set(keys.title.tolist())) == len(set(keys.text.tolist())) == 57
    assert len({bytes(look) for look in keys.look[keys.pictured]}) == 14
    paths = read_category_paths(tmp_path / "work")
    assert [paths[int(leaf)] for leaf in keys.leaf[:2]] == [("Kitchen", "Mugs 0"), ("Kitchen", "Mugs 1")]
    assert len(paths) == 3


@pytest.mark.parametrize("work_rows", [7, 20, 60, 61])
def test_the_size_of_work_files_and_the_threads_change_nothing(shop, tmp_path, monkeypatch, work_rows):
    whole = cleaned(shop, tmp_path / "whole", workers=1)
    monkeypatch.setattr(catalogue, "WORK_ROWS", work_rows)
    parts = cleaned(shop, tmp_path / "parts", workers=4)
    assert parts.as_json() == whole.as_json()
    assert len(written(tmp_path / "parts", "catalogue")) == 60 // work_rows + 1
    one, other = (pq.read_table(tmp_path / name).to_pylist() for name in ("whole", "parts"))
    assert one == other


def test_it_goes_on_after_the_last_whole_work_file(shop, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "WORK_ROWS", 16)
    whole = cleaned(shop, tmp_path / "work")
    files = written(tmp_path / "work", "catalogue")
    content = [path.read_bytes() for path in files]
    for path in files[2:]:
        path.unlink()
    seen = []
    clean_product = catalogue.clean_product
    monkeypatch.setattr(
        catalogue, "clean_product", lambda row, *rest: seen.append(row.number) or clean_product(row, *rest)
    )
    assert cleaned(shop, tmp_path / "work").as_json() == whole.as_json()
    assert sorted(seen) == list(range(32, 60))
    assert [path.read_bytes() for path in files] == content
    seen.clear()
    assert cleaned(shop, tmp_path / "work").as_json() == whole.as_json()
    assert not seen


VARIATIONS = """ID,Type,SKU,Name,Published,Categories,Parent
45,variable,hood,Hoodie,1,Clothing,
46,variation,hood-s,Hoodie - S,1,,id:45
47,simple,cup,Cup,1,Home,
48,variation,hood-m,Hoodie - M,1,,hood
49,variation,,Hoodie - L,1,,hood
"""


@pytest.mark.parametrize("work_rows", [2, 5, 100])
def test_other_names_of_products_are_kept_on_disk(tmp_path, monkeypatch, work_rows):
    monkeypatch.setattr(catalogue, "WORK_ROWS", work_rows)
    (tmp_path / "shop.csv").write_text(VARIATIONS)
    counts = cleaned(tmp_path / "shop.csv", tmp_path / "work")
    assert (counts.cleaned, counts.dropped.counts) == (2, {"variation": 3})
    pairs = [("hood", "45"), ("46", "45"), ("hood-s", "45"), ("cup", "47"), ("48", "hood"), ("hood-m", "hood"),
             ("49", "hood")]  # fmt: skip
    wanted = {tuple(stable_key("product", name) for name in pair) for pair in pairs}
    for path in written(tmp_path / "work", "catalogue")[1:] + [None]:
        keys, of = read_aliases(tmp_path / "work")
        assert keys.dtype == of.dtype == np.uint64
        assert sorted(zip(keys.tolist(), of.tolist(), strict=True)) == sorted(wanted)
        if path is not None:
            path.unlink()
            cleaned(tmp_path / "shop.csv", tmp_path / "work")


@pytest.mark.parametrize("shard_rows", [5, 100])
def test_products_are_written_split_by_split_and_read_as_the_schema_wants(shop, tmp_path, shard_rows, monkeypatch):
    monkeypatch.setattr(catalogue, "WORK_ROWS", 16)
    cleaned(shop, tmp_path / "work")
    (tmp_path / "out").mkdir()
    ids = np.array(read_ids(tmp_path / "work").to_pylist())
    split_of = np.arange(57) % 3 - 1
    write_products(tmp_path / "work", tmp_path / "out", split_of, ["train", "test"], shard_rows, progress=False)
    for number, split in enumerate(("train", "test")):
        products = load_products(str(tmp_path / "out" / f"products-{split}-*.parquet"))
        assert products["product_id"] == ids[split_of == number].tolist()
    assert len(list((tmp_path / "out").glob("products-train-*"))) == -(-19 // shard_rows)
    pictured = next(product for product in load_products(tmp_path / "out/products-*") if product["images"])
    picture = Image.open(io.BytesIO(pictured["images"][0]["bytes"]))
    assert picture.size == (60, 80)


def test_single_products_are_found_by_their_row(shop, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "WORK_ROWS", 16)
    cleaned(shop, tmp_path / "work")
    ids = read_ids(tmp_path / "work").to_pylist()
    found = read_products(tmp_path / "work", [40, 0, 56, 0])
    assert {row: product["product_id"] for row, product in found.items()} == {row: ids[row] for row in (0, 40, 56)}


def test_a_picture_that_cannot_be_compared_is_kept_but_not_compared(tmp_path, make_image):
    buffer = io.BytesIO()
    make_image(1).save(buffer, "PNG")
    assert catalogue._look({"bytes": buffer.getvalue()}) is not None
    assert catalogue._look({"bytes": buffer.getvalue()[:200]}) is None
