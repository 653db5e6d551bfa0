"""Encoders, drawn products and a Space that runs."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from moon2_dataset.demo_catalogue import render_demo_catalogue
from moon2_space.bundled_model import BUNDLED_MODEL
from moon2_space.space import SpaceOptions, launch_space, open_catalogue
from moon2_training.encode import Encoder
from moon2_training.mini import build_mini
from moon2_training.saved_encoder import load_encoder


@pytest.fixture(scope="session")
def trained_encoder() -> Encoder:
    """The encoder that comes with the package."""
    return Encoder(*load_encoder(BUNDLED_MODEL))


@pytest.fixture(scope="session")
def drawn_products() -> list[dict]:
    """Thirty drawn products."""
    return render_demo_catalogue(30, seed=3)[0].to_list()


@pytest.fixture(scope="session")
def models(tiny, tiny_config, tmp_path_factory) -> list[str]:
    """Folders of two encoders with random weights."""
    torch.manual_seed(1)
    other, other_processor = build_mini(tiny_config, ["navy blue mug", "red shoes and a handbag"] * 20)
    root = tmp_path_factory.mktemp("models")
    folders = []
    for name, model, processor in (("first", *tiny), ("second", other.eval(), other_processor)):
        model.save_pretrained(root / name)
        processor.save_pretrained(root / name)
        folders.append(str(root / name))
    return folders


@pytest.fixture(scope="session")
def running_space(models):
    """A context with a Space that runs: its address, catalogue and data folder."""

    @contextmanager
    def run(data_dir: Path, token: str | None, products: list[dict] | None = None):
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setenv("GRADIO_TEMP_DIR", str(data_dir / "served"))
            options = SpaceOptions(data_dir, models[0], models[1:], token)
            catalogue = open_catalogue(options)
            if products:
                catalogue.put(products)
            app, url = launch_space(options, catalogue=catalogue, block=False)
            yield SimpleNamespace(url=url, catalogue=catalogue, data_dir=data_dir)
            app.get_blocks().close(verbose=False)

    return run
