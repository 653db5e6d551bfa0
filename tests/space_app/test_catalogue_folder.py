"""The data folder: one catalogue that stays, and another model that takes over while the old index answers."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch

from moon2_space import catalogue_index
from moon2_space.catalogue_folder import CatalogueFolder, data_folder
from moon2_space.product_table import ProductTable
from moon2_training.encode import Encoder
from moon2_training.mini import build_mini


@pytest.fixture
def folder(tmp_path):
    return CatalogueFolder(tmp_path / "data")


@pytest.fixture
def index(folder, tiny, shop):
    index = folder.open_or_create(Encoder(*tiny), "first")
    index.add(shop.products.to_list())
    return index


@pytest.fixture(scope="module")
def other_encoder(tiny_config):
    torch.manual_seed(1)
    model, processor = build_mini(tiny_config, ["navy blue mug", "red shoes and a handbag"] * 20)
    return Encoder(model.eval(), processor)


def test_where_data_go(monkeypatch, tmp_path):
    monkeypatch.delenv("MOON2_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert data_folder() == tmp_path / "moon2"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert data_folder() == Path.home() / ".local" / "share" / "moon2"
    monkeypatch.setenv("MOON2_DATA_DIR", "there")
    assert data_folder() == Path("there") and data_folder("here") == Path("here")


def test_the_first_index_is_made_and_found_again(folder, index, tiny):
    again = CatalogueFolder(folder.folder)
    assert again.current() == index.folder and again.model() == "first"
    assert len(again.open(Encoder(*tiny))) == 24 and len(again.open_or_create(Encoder(*tiny))) == 24


def test_before_the_first_index(folder, tiny):
    assert folder.current() is None and folder.model() is None
    with pytest.raises(FileNotFoundError, match="no index there; make one with `moon2 index`"):
        folder.open(Encoder(*tiny))


def test_another_encoder_takes_over_while_the_old_index_answers(folder, index, other_encoder, shop, monkeypatch):
    monkeypatch.setattr(catalogue_index, "BATCH_PRODUCTS", 5)
    vector, answers, current = index.vectors()[1][:1], [], []

    def progress(done, total):
        answers.append(index.nearest(vector, 3))
        current.append(folder.current())
        if done == 10:  # what changes meanwhile comes along
            index.delete(["p0"])
            index.add([{"product_id": "p1", "title": "teapot"}, {"product_id": "new", "title": "kettle"}])

    new = folder.reindex(index, other_encoder, "second", progress=progress)
    assert len(answers) == 5 and all(len(found[0]) == 3 for found in answers)
    assert set(current) == {index.folder} and folder.current() == new.folder != index.folder
    assert folder.model() == "second" and sorted(new.ids()) == sorted(index.ids()) and "p0" not in new.ids()
    assert {product for product, _ in new.with_words("teapot kettle")} == {"p1", "new"}
    assert new.products(["p1"])["p1"]["title"] == "teapot"
    assert new.products(["p2"], ["images"])["p2"]["images"] == shop.products[2]["images"]
    assert len(index.nearest(vector, 3)[0]) == 3  # the old one still answers who holds it
    assert len(folder.open(other_encoder)) == 24
    with pytest.raises(ValueError, match="made with second"):
        folder.open(index.encoder)


def test_a_cancelled_reindex_changes_nothing_and_goes_on(folder, index, other_encoder, monkeypatch):
    monkeypatch.setattr(catalogue_index, "BATCH_PRODUCTS", 5)
    stop = threading.Event()
    assert folder.reindex(index, other_encoder, progress=lambda done, total: stop.set(), cancel=stop) is None
    assert folder.current() == index.folder
    begun = [path for path in folder.folder.glob("index-*") if path != index.folder]
    assert len(begun) == 1 and len(ProductTable(begun[0])) == 5
    told = []
    new = folder.reindex(
        ProductTable(index.folder), other_encoder, progress=lambda done, total: told.append((done, total))
    )
    assert new.folder == begun[0] and len(new) == 24 and told[-1] == (24, 24)


def test_only_the_index_before_is_kept(folder, index, tiny, other_encoder):
    new = folder.reindex(index, other_encoder)
    assert index.folder.exists()
    again = folder.reindex(new, Encoder(*tiny))
    assert again.folder == index.folder and new.folder.exists()
    (folder.folder / "index-0123456789ab").mkdir()
    (folder.folder / "index-of-mine").mkdir()
    folder.reindex(again, other_encoder)
    assert not (folder.folder / "index-0123456789ab").exists() and (folder.folder / "index-of-mine").exists()


def test_the_same_encoder_is_refused(folder, index):
    with pytest.raises(ValueError, match="made with this encoder already"):
        folder.reindex(index, index.encoder)


@pytest.mark.parametrize("content", ["", "{}", '{"index": "../../etc"}', '{"index": 3}', '{"index": "index-../x"}'])
def test_a_damaged_pointer_is_told_and_opens_nothing_else(folder, content):
    (folder.folder / "catalogue.json").write_text(content)
    with pytest.raises(ValueError, match=r"catalogue.json: damaged"):
        folder.current()


def test_the_pointer_is_replaced_as_a_whole(folder, index):
    assert json.loads((folder.folder / "catalogue.json").read_text()) == {"index": index.folder.name}
    assert not [path for path in folder.folder.iterdir() if path.name.startswith(".")]
