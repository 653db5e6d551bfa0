"""A catalogue that answers while it is changed: adding, replacing, cancelling, another model."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from moon2_space import live_catalogue
from moon2_space.catalogue_folder import CatalogueFolder
from moon2_space.catalogue_source import Limits
from moon2_space.live_catalogue import LiveCatalogue, model_name


@pytest.fixture
def catalogue(models, shop, tmp_path):
    catalogue = LiveCatalogue.open(CatalogueFolder(tmp_path / "data"), models[0], models[1:])
    catalogue.put(shop.products.to_list())
    return catalogue


def csv(folder, *titles):
    file = folder / "more.csv"
    rows = [f"n{row},{title}" for row, title in enumerate(titles)]
    file.write_text("product_id,title\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return file


def test_add_and_replace(catalogue, tmp_path):
    job = catalogue.start_add(csv(tmp_path, "Green kettle", ""))
    assert job.wait(60) and job.state == "done" and (job.done, job.changes.added) == (1, 1)
    assert job.message == "1 added, 0 replaced, 0 as before; 1 encoded" and len(job.errors) == 1
    job = catalogue.start_add(csv(tmp_path, "Green kettle", "Grey kettle"), replace_all=True)
    assert job.wait(60) and job.message.endswith("24 deleted") and len(catalogue.now.index) == 2


def test_what_cannot_be_read_deletes_nothing(catalogue, tmp_path):
    job = catalogue.start_add(csv(tmp_path, ""), replace_all=True)
    assert job.wait(60) and len(catalogue.now.index) == 24
    job = catalogue.start_add(tmp_path / "absent.csv", replace_all=True)
    assert job.wait(60) and job.state == "failed" and "no such file" in job.message and len(catalogue.now.index) == 24


def test_a_catalogue_that_is_over_the_limit_of_rows_deletes_nothing(models, shop, tmp_path):
    folder = CatalogueFolder(tmp_path / "data")
    catalogue = LiveCatalogue.open(folder, models[0], limits=Limits(rows=1))
    catalogue.put(shop.products.select(range(2)).to_list())
    job = catalogue.start_add(csv(tmp_path, "Green kettle", "Grey kettle"), replace_all=True)
    cut = "1 encoded; not all was read, for the catalogue has over 1 rows"
    assert job.wait(60) and job.message.endswith(f"{cut}; nothing deleted")
    assert len(catalogue.now.index) == 3 and "over 1 rows" in job.errors[0].message
    job = catalogue.start_add(csv(tmp_path, "Green cup", "Grey kettle"))
    assert job.wait(60) and job.message.endswith(cut)


def test_a_cancelled_addition_deletes_nothing(catalogue, tmp_path, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    real = live_catalogue.CatalogueSource

    class Slow(real):
        def __iter__(self):
            begun.set()
            go_on.wait(30)
            return super().__iter__()

    monkeypatch.setattr(live_catalogue, "CatalogueSource", Slow)
    monkeypatch.setattr("moon2_space.catalogue_index.BATCH_PRODUCTS", 1)
    job = catalogue.start_add(csv(tmp_path, "Green kettle", "Grey kettle"), replace_all=True)
    assert begun.wait(30)
    with pytest.raises(ValueError, match="another change of the catalogue is under way"):
        catalogue.start_swap("second")
    job.cancel()
    go_on.set()
    assert job.wait(60) and job.state == "cancelled" and len(catalogue.now.index) in (24, 25)


def test_what_is_derived_follows_the_catalogue(catalogue, shop):
    labels, average = catalogue.labels(), catalogue.average()
    assert catalogue.labels() is labels and catalogue.average() is average
    np.testing.assert_allclose(average, catalogue.now.index.vectors()[1].mean(0), atol=1e-6)
    product = shop.products[0]
    catalogue.put([product | {"product_id": "new", "category_path": ["Shop", "kettle"], "title": "kettle"}])
    found = catalogue.labels().understand({"text": "kettle", "images": []}, lambda vector, count: [])
    assert "kettle" in {label for level in found.categories for label, _ in level.choices}
    assert not np.array_equal(catalogue.average(), average)
    catalogue.delete(catalogue.now.index.ids())
    assert not catalogue.average().any()


def test_another_model(catalogue, models):
    assert catalogue.models == ["first", "second"] and catalogue.model == "first"
    before, average = catalogue.now, catalogue.average()
    assert catalogue.labels().encoder is before.encoder
    job = catalogue.start_swap("second")
    assert before.hybrid.by_text("red mug", 3)  # who has begun with the old one ends with it
    assert job.wait(60) and job.state == "done" and catalogue.model == "second"
    assert catalogue.now is not before and len(catalogue.now.index) == 24
    assert catalogue.labels().encoder is catalogue.now.encoder and not np.array_equal(catalogue.average(), average)
    again = LiveCatalogue.open(catalogue.folder, models[0], models)
    assert again.model == "second"
    for wrong, told in (("second", "answers already"), (models[0], "is not allowed here"), ("", "is not allowed")):
        with pytest.raises(ValueError, match=told):
            catalogue.start_swap(wrong)


def test_two_models_of_one_name_are_refused(models, tmp_path):
    with pytest.raises(ValueError, match="two models are called 'first'"):
        LiveCatalogue.open(CatalogueFolder(tmp_path / "data"), models[0], [str(tmp_path / "first")])


def test_models_are_called_without_their_place():
    assert model_name("/somewhere/secret/mini") == "mini" and model_name("owner/mini") == "owner/mini"
