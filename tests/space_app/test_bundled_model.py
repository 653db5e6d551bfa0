"""An index goes on with the bundled encoder wherever the package lies."""

import shutil

from moon2_space import bundled_model, catalogue_folder
from moon2_space.bundled_model import lasting_name, model_place
from moon2_space.catalogue_folder import CatalogueFolder
from moon2_space.index_command import open_with_model
from moon2_space.live_catalogue import LiveCatalogue
from moon2_training.hub_folder import save_hub_folder


def test_names_that_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert lasting_name("mine") == str(tmp_path / "mine") and lasting_name("owner/mine") == "owner/mine"
    assert lasting_name(str(bundled_model.BUNDLED_MODEL)) in ("moon2-mini", str(bundled_model.BUNDLED_MODEL))
    (tmp_path / "moon2-mini").mkdir()  # another of that name, the user's own
    assert lasting_name("moon2-mini") == str(tmp_path / "moon2-mini")
    assert model_place("moon2-mini") == str(bundled_model.BUNDLED_MODEL) and model_place("owner/m") == "owner/m"


def test_an_index_survives_the_package_moving(tmp_path, tiny, shop, monkeypatch):
    def install(place):
        folder = tmp_path / place / "moon2-mini"
        monkeypatch.setattr(bundled_model, "BUNDLED_MODEL", folder)
        monkeypatch.setattr("moon2_space.index_command.BUNDLED_MODEL", folder)
        return folder

    first = install("first")
    save_hub_folder(first, *tiny)
    data = CatalogueFolder(tmp_path / "data")
    index = open_with_model(data, None)  # a first index is made with it
    index.add(shop.products.to_list())
    assert index.manifest["model"] == "moon2-mini"
    second = install("second")
    shutil.move(first, second)
    assert catalogue_folder.CatalogueFolder(data.folder).model() == str(second)
    live = LiveCatalogue.open(data, str(second))
    assert live.models == ["moon2-mini"] and live.model == "moon2-mini"
    assert len(live.now.index) == len(index)
    assert len(open_with_model(data, None)) == len(index)
