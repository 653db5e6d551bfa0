"""An encoder that has learnt something: the one the package carries, else one trained here on a drawn shop."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import moon2_space
from moon2_dataset.demo_catalogue import render_demo_catalogue
from moon2_dataset.reader import join
from moon2_training.encode import Encoder, load_encoder
from moon2_training.mini import MiniConfig, build_mini
from moon2_training.train import fit, product_texts
from moon2_training.trainer_config import Moon2TrainingArguments


@pytest.fixture(scope="session")
def trained_encoder(tmp_path_factory) -> Encoder:
    bundled = Path(moon2_space.__file__).parent / "moon2-mini"
    if bundled.is_dir():
        return Encoder(*load_encoder(bundled))
    data = join(*render_demo_catalogue(240, seed=5))
    torch.manual_seed(0)
    model, processor = build_mini(
        MiniConfig(
            hidden_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            moe_intermediate_size=96,
            vision_hidden_size=64,
            vision_depth=2,
            image_size=48,
            vocab_size=600,
        ),
        product_texts(data),
    )
    arguments = Moon2TrainingArguments(
        output_dir=str(tmp_path_factory.mktemp("trained")),
        num_train_epochs=6,
        per_device_train_batch_size=48,
        learning_rate=2e-3,
        warmup_steps=0.05,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    fit(model, processor, arguments, data)
    return Encoder(model.eval(), processor)


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
    pytest.importorskip("gradio", reason="the Space needs gradio; pip install 'moon2[space]'")
    from moon2_space.space import SpaceOptions, launch_space, open_catalogue

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
