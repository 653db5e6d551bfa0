"""An index on disk: what is found, what is encoded again, cancels, restarts, and other encoders."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest

from moon2_space import ann_index, catalogue_index
from moon2_space.catalogue_index import CatalogueIndex, Changes
from moon2_space.filters import Filters
from moon2_training.encode import Encoder
from moon2_training.items import ProductItems


class CountingEncoder(Encoder):
    """Remembers which items it has encoded."""

    def __init__(self, model, processor) -> None:
        super().__init__(model, processor)
        self.encoded: list[str] = []

    def encode_views(self, items, progress=True):
        self.encoded += [item["name"].removeprefix("product ") for item in items]
        return super().encode_views(items, progress)


@pytest.fixture
def encoder(tiny):
    return CountingEncoder(*tiny)


@pytest.fixture
def products(shop):
    return shop.products.to_list()


@pytest.fixture
def index(encoder, products, tmp_path):
    index = CatalogueIndex.create(tmp_path / "index", encoder, "the model")
    index.add(products)
    encoder.encoded.clear()
    return index


def small_batches(monkeypatch, size=5):
    monkeypatch.setattr(catalogue_index, "BATCH_PRODUCTS", size)


def test_products_are_stored_with_all_their_views(index, encoder, shop):
    assert len(index) == 24 and sorted(index.ids()) == sorted(shop.product_index)
    views = encoder.encode_views(ProductItems(shop.products), progress=False)
    for view in ("text", "image", "multimodal"):
        ids, vectors = index.vectors(view)
        rows = [shop.product_index[product_id] for product_id in ids]
        np.testing.assert_allclose(vectors, getattr(views, view)[rows], atol=1e-5)
        has = {"text": views.has_text, "image": views.has_image}.get(view, np.ones(24, dtype=bool))
        assert sorted(rows) == np.flatnonzero(has).tolist()
    row = index.products(["p2", "nowhere"])["p2"]
    assert row["title"] == shop.products[2]["title"] and row["category_path"] == ["Shop", "handbag"]
    assert row["thumbnail"][:4] == b"RIFF" and index.products(["p3"])["p3"]["thumbnail"] is None
    assert {p["product_id"]: p for p in index.stored()}["p2"]["images"] == shop.products[2]["images"]


def test_the_nearest_are_those_of_an_exact_comparison(index):
    ids, vectors = index.vectors()
    for filters, allowed in ((None, set(ids)), (Filters(["Shop", "mug"]), {f"p{i}" for i in range(0, 24, 3)})):
        for row, found in enumerate(index.nearest(vectors[:6], 5, filters)):
            scores = dict(zip(ids, vectors @ vectors[row], strict=True))
            best = sorted((scores[product] for product in allowed), reverse=True)[:5]
            np.testing.assert_allclose([score for _, score in found], best, atol=1e-5)
            assert {product for product, _ in found} <= allowed


def test_words_find_titles_and_no_word_is_an_operator(index):
    assert [product for product, _ in index.with_words("handbag 5", 1)] == ["p5"]
    found = {product for product, _ in index.with_words("MUG", 24)}
    assert found == {"p0", "p1", "p3", "p6", "p9", "p12", "p15", "p18", "p21"}  # p1 has the title of p0
    assert {product for product, _ in index.with_words("mug", 24, Filters(attributes={"colour": "red"}))} == {
        "p1", "p3", "p9", "p15", "p21"}  # fmt: skip
    for text in ("", "  ", "()", '"', "* ~ ^ -", "xylophone", "\x00"):
        assert index.with_words(text) == []
    assert index.with_words('mug" OR title:* AND (', 3) and index.with_words("title:mug'); DROP TABLE products", 3)


def test_titles_in_any_script_are_found_by_their_words(index):
    titles = {"zh": "红色马克杯 大号", "ar": "كوب أحمر كبير", "fr": "Crème brûlée", "ru": "красная кружка"}
    index.add([{"product_id": name, "title": title} for name, title in titles.items()])
    for text, name in (("红色", "zh"), ("أحمر", "ar"), ("creme BRULEE", "fr"), ("кружка", "ru")):
        assert [product for product, _ in index.with_words(text)] == [name]


def test_only_what_changed_is_encoded_again(index, encoder, products, make_image):
    assert index.add(products) == Changes(unchanged=24) and encoder.encoded == []
    products[1]["title"] = "Something else"
    products[2]["images"] = products[2]["images"][:1]
    products[3]["description"] = "Now it is described."
    products[5]["attributes"] = [{"name": "colour", "value": "green"}]
    before = index.products(["p3", "p5"], ["multimodal_vector", "image_vector", "thumbnail"])
    assert index.add(products) == Changes(replaced=4, unchanged=20, encoded=2)
    assert sorted(encoder.encoded) == ["p1", "p2"] and len(index) == 24
    assert index.products(["p3", "p5"], ["multimodal_vector", "image_vector", "thumbnail"]) == before
    assert index.products(["p3"])["p3"]["description"] == "Now it is described."
    assert [
        product for product, _ in index.nearest(index.vectors()[1][:1], 24, Filters((), {"colour": "green"}))[0]
    ] == ["p5"]
    assert [product for product, _ in index.with_words("something else")] == ["p1"]


def test_products_are_added_and_deleted(index):
    assert index.add([{"product_id": "new", "title": "teapot", "images": []}]) == Changes(added=1, encoded=1)
    assert [product for product, _ in index.with_words("teapot")] == ["new"]
    assert index.delete(["new", "p0", "nowhere", "' OR 1=1 --"]) == 2
    assert len(index) == 23 and index.with_words("teapot") == []
    assert "p0" not in {product for product, _ in index.nearest(index.vectors()[1][:1], 24)[0]}


def test_of_several_with_one_id_the_last_stays(index, monkeypatch):
    index.add([{"product_id": "x", "title": f"teapot {i}"} for i in range(3)])
    small_batches(monkeypatch, 2)
    index.add([{"product_id": "y", "title": f"kettle {i}"} for i in range(5)])
    assert index.products(["x"])["x"]["title"] == "teapot 2" and index.products(["y"])["y"]["title"] == "kettle 4"
    assert len(index) == 26


def test_what_cannot_be_encoded_is_told_and_the_rest_added(index, make_image):
    good = {"product_id": "good", "title": "teapot", "images": []}
    bad = [{"product_id": "broken", "title": "kettle", "images": [{"bytes": b"<html>", "path": None}]},
           {"product_id": "path", "title": "kettle", "images": [{"bytes": None, "path": "/etc/passwd"}]},
           {"product_id": "nothing", "title": " ", "images": []},
           {"product_id": "", "title": "no id", "images": []}]  # fmt: skip
    changes = index.add([bad[0], good, *bad[1:]])
    assert (changes.added, len(index)) == (1, 25)
    assert {(error.row, error.product_id) for error in changes.errors} == {
        (0, "broken"),
        (2, "path"),
        (3, "nothing"),
        (4, ""),
    }
    told = {error.product_id: error.message for error in changes.errors}
    assert "unreadable image" in told["broken"] and "paths are not followed" in told["path"]


def test_a_cancelled_build_is_whole_and_goes_on(encoder, products, tmp_path, monkeypatch):
    small_batches(monkeypatch)
    stop, told = threading.Event(), []

    def progress(done, total):
        told.append((done, total))
        if done >= 10:
            stop.set()

    index = CatalogueIndex.create(tmp_path / "index", encoder)
    changes = index.add(products, progress, stop, total=24)
    assert changes == Changes(added=10, encoded=10, cancelled=True) and told == [(5, 24), (10, 24)]
    encoder.encoded.clear()
    again = CatalogueIndex.open(tmp_path / "index", encoder)
    assert len(again) == 10 and again.with_words("handbag")
    assert again.add(products, cancel=lambda: False) == Changes(added=14, unchanged=10, encoded=14)
    assert sorted(encoder.encoded) == sorted(f"p{i}" for i in range(10, 24))


def test_a_build_that_breaks_keeps_what_was_written(encoder, products, tmp_path, monkeypatch):
    small_batches(monkeypatch)

    def broken():
        yield from products[:12]
        raise OSError("the disk is gone")

    index = CatalogueIndex.create(tmp_path / "index", encoder)
    with pytest.raises(OSError, match="the disk is gone"):
        index.add(broken())
    again = CatalogueIndex.open(tmp_path / "index", encoder)
    assert len(again) == 10 and again.add(products).added == 14


def test_it_survives_a_restart(index, encoder, tmp_path):
    again = CatalogueIndex.open(tmp_path / "index", encoder)
    vectors = index.vectors()[1][:4]
    assert again.nearest(vectors, 5) == index.nearest(vectors, 5)
    assert again.with_words("red mug") == index.with_words("red mug") and again.facets() == index.facets()


def test_another_encoder_is_refused(index, tiny, tmp_path):
    model, processor = tiny
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        next(model.parameters()).data += 1e-3
        with pytest.raises(ValueError, match=r"made with the model \([0-9a-f]{12}\); this encoder is another one"):
            CatalogueIndex.open(tmp_path / "index", Encoder(model, processor))
    finally:
        model.load_state_dict(state)
    assert len(CatalogueIndex.open(tmp_path / "index", Encoder(model, processor))) == 24


def test_an_index_is_not_made_twice_and_not_opened_where_none_is(index, encoder, tmp_path):
    with pytest.raises(ValueError, match="an index is there"):
        CatalogueIndex.create(tmp_path / "index", encoder)
    with pytest.raises(FileNotFoundError, match="no index there; make one with `moon2 index`"):
        CatalogueIndex.open(tmp_path / "elsewhere", encoder)


def test_a_second_writer_is_refused_and_readers_are_not(index, products):
    refused, found = [], []

    def other():
        try:
            index.delete(["p0"])
        except ValueError as error:
            refused.append(str(error))
        found.append(index.with_words("mug", 1))

    def slowly():
        yield products[0] | {"title": "mug, another"}
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    assert index.add(slowly()).replaced == 1
    assert len(refused) == 1 and "another writer is at work" in refused[0] and found[0]
    assert index.delete(["p0"]) == 1


def test_facets_count_what_can_be_filtered_by(index):
    facets = index.facets()
    assert facets.categories == {("Shop",): 24, ("Shop", "handbag"): 8, ("Shop", "mug"): 8, ("Shop", "shoes"): 8}
    assert facets.attributes == {"colour": {"navy blue": 12, "red": 12}}
    index.delete(["p0"])
    assert index.facets().attributes == {"colour": {"red": 12, "navy blue": 11}}


def test_a_large_catalogue_is_searched_approximately_and_the_share_found_is_kept(encoder, products, tmp_path):
    index = CatalogueIndex.create(tmp_path / "index", encoder, ann_from=20)
    index.add(products[:20])
    assert index.manifest["ann"] is None
    index.add(products)
    ann = json.loads((tmp_path / "index" / "manifest.json").read_text())["ann"]
    assert ann["products"] == 24 and set(ann["recall@10"]) == {
        "text→multimodal", "image→multimodal", "multimodal→multimodal", "text→text", "image→image"}  # fmt: skip
    assert all(0.95 <= recall <= 1 for recall in ann["recall@10"].values())
    ids, vectors = index.vectors()
    assert all(found[0][0] == product for product, found in zip(ids, index.nearest(vectors, 3), strict=True))
    assert index.add([{"product_id": "new", "title": "teapot"}]).added == 1
    vector = np.array(index.products(["new"], ["multimodal_vector"])["new"]["multimodal_vector"], dtype=np.float32)
    assert index.nearest(vector[None], 1)[0][0][0] == "new"  # though it came after the partitions were made


def unindexed(index):
    return max(found.num_unindexed_rows for found in index._table.list_indices() if "Ivf" in found.index_type)


def test_all_that_pass_a_filter_are_found_in_whatever_partition_they_are(encoder, products, tmp_path, monkeypatch):
    monkeypatch.setattr(ann_index, "PARTITION_ROWS", 3)
    index = CatalogueIndex.create(tmp_path / "index", encoder, ann_from=20)
    index.add(products)
    assert index.manifest["ann"]["partitions"] == 8
    index.manifest["ann"]["nprobes"] = 1
    vectors = index.vectors()[1]
    for found in index.nearest(vectors, 8, Filters(["Shop", "mug"])):
        assert {product for product, _ in found} == {f"p{i}" for i in range(0, 24, 3)}


def test_partitions_take_in_additions_now_and_then_and_are_made_anew_of_twice_as_many(encoder, products, tmp_path):
    index = CatalogueIndex.create(tmp_path / "index", encoder, ann_from=20)
    index.add(products)
    waiting = []
    for number in range(24):
        index.add([{"product_id": f"new {number}", "title": f"teapot {number}"}])
        waiting.append(unindexed(index))
        assert index.with_words(f"teapot {number}", 1)[0][0] == f"new {number}"
    assert waiting[:3] == [1, 2, 3] and 0 in waiting and index.manifest["ann"]["products"] == 24
    index.add([{"product_id": "one more", "title": "kettle"}])
    assert index.manifest["ann"]["products"] == 49 and unindexed(index) == 0


def test_an_index_of_an_earlier_version_answers_and_is_made_anew_with_the_next_change(encoder, products, tmp_path):
    index = CatalogueIndex.create(tmp_path / "index", encoder, ann_from=20)
    index.add(products)
    path = tmp_path / "index" / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in ("kind", "refine_factor"):
        del manifest["ann"][name]
    path.write_text(json.dumps(manifest))
    index = CatalogueIndex.open(tmp_path / "index", encoder, ann_from=20)
    assert index.nearest(index.vectors()[1][:1], 1)[0][0][0] == index.vectors()[0][0]
    index.delete(["p1"])
    assert index.manifest["ann"]["kind"] == "IVF_SQ" and index.manifest["ann"]["products"] == 23


def test_wrong_vectors_and_views_are_refused(index):
    with pytest.raises(ValueError, match=r"vectors are \(2, 3\); give \(Q, 48\)"):
        index.nearest(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="view is 'both'; choose one of text, image, multimodal"):
        index.vectors("both")


def test_an_empty_index_finds_nothing(encoder, tmp_path):
    index = CatalogueIndex.create(tmp_path / "index", encoder)
    assert len(index) == 0 and index.ids() == [] and index.facets() == ({}, {})
    assert index.with_words("mug") == [] and index.nearest(np.ones((1, 48), dtype=np.float32)) == [[]]
    assert index.vectors()[1].shape == (0, 48) and index.delete(["p0"]) == 0


def test_what_a_killed_run_left_out_is_made_by_the_next(encoder, products, tmp_path, monkeypatch):
    """Killed behind the last product, before the words can be searched; then nothing is new for the next run."""
    index = CatalogueIndex.create(tmp_path / "index", encoder, ann_from=10)
    monkeypatch.setattr(index, "_refresh", lambda is_changed: None)
    index.add(products)
    again = CatalogueIndex.open(tmp_path / "index", encoder, ann_from=10)
    assert again.add(products) == Changes(unchanged=24)
    there = {column for made in again._table.list_indices() for column in made.columns}
    assert {"title", "product_id", "multimodal_vector"} <= there and again.manifest["ann"]["products"] == 24
    assert again.with_words("mug", k=50)
    version = again.version
    again.add(products)
    assert again.version == version  # and only once
