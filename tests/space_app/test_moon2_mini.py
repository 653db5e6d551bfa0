"""The encoder that comes with the package: its folder is up to date and safe to load, and it has learnt something."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel, AutoProcessor

import modeling_moon2
from modeling_moon2.processing_moon2 import load_image
from moon2_dataset.demo_catalogue import render_demo_catalogue
from moon2_space.bundled_model import BUNDLED_MODEL as MINI
from moon2_training.bundle import CODE, refresh_bundle
from moon2_training.encode import Encoder
from moon2_training.evaluate import evaluate_encoder
from moon2_training.saved_encoder import load_encoder

MAX_BYTES = 20_000_000
VERSIONED = "config_sentence_transformers.json"  # names versions of libraries, which differ by environment
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib"}
REFRESH = "; bring it up to date: python -m moon2_training.bundle space_app/moon2-mini"


@pytest.fixture(scope="module")
def refreshed(tmp_path_factory) -> Path:
    """A copy of the folder, brought up to date."""
    folder = tmp_path_factory.mktemp("refreshed") / MINI.name  # the card is named after it
    shutil.copytree(MINI, folder)
    refresh_bundle(folder)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_its_code_is_the_package_s():
    code = {path.name: path.read_text() for path in Path(modeling_moon2.__file__).parent.glob(CODE)}
    assert len(code) > 1
    assert {path.name: path.read_text() for path in MINI.glob("*.py")} == code, REFRESH


def test_card_and_metadata_are_what_a_refresh_writes(refreshed):
    here, there = files(MINI), files(refreshed)
    assert here.keys() == there.keys(), REFRESH
    versioned = [json.loads(content.pop(VERSIONED)) for content in (here, there)]
    for settings in versioned:
        settings.pop("__version__")
    assert versioned[0] == versioned[1], REFRESH
    assert not [name for name in here if here[name] != there[name]], REFRESH
    assert {"README.md", "modules.json", "sentence_bert_config.json"} <= here.keys()


def test_its_weights_are_one_small_file_and_nothing_in_it_is_a_pickle():
    held = files(MINI)
    assert [name for name in held if ".safetensors" in name] == ["model.safetensors"]
    assert len(held["model.safetensors"]) <= MAX_BYTES
    with safe_open(MINI / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}
    assert not [name for name in held if Path(name).suffix in PICKLES]
    # pickles begin with their protocol, archives of torch.save with that of a ZIP
    assert not [name for name, content in held.items() if content.startswith((b"\x80", b"PK\x03\x04"))]


def test_it_names_no_place_on_the_machine_that_made_it():
    texts = {name: content for name, content in files(MINI).items() if not name.endswith(".safetensors")}
    assert not [name for name, text in texts.items() if re.search(rb"/(home|root|tmp|Users)/", text)]


def test_it_loads_by_its_own_code_and_encodes_text_picture_and_both():
    model = AutoModel.from_pretrained(MINI, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(MINI, trust_remote_code=True)
    picture = load_image(render_demo_catalogue(1)[0][0]["images"][0])
    inputs = processor(text=["red mug", None, "red mug"], images=[None, picture, picture])
    with torch.no_grad():
        embeddings = model(**inputs).embeddings
    assert embeddings.shape == (3, model.config.get_text_config().hidden_size)
    assert torch.isfinite(embeddings).all()
    assert embeddings.norm(dim=1).tolist() == pytest.approx([1, 1, 1], abs=1e-3)
    assert (embeddings @ embeddings.T).fill_diagonal_(0).max() < 0.999  # they are three


def test_it_finds_products_that_it_has_never_seen():
    products, queries = render_demo_catalogue(150, seed=1)
    results = evaluate_encoder(Encoder(*load_encoder(MINI)), products, queries, progress=False)
    for key in ("t2mm", "i2mm", "mm2mm"):
        result = results["retrieval"][key]
        recall, chance = result["recall@10"]["value"], result["chance_recall@10"]
        assert recall > 4 * chance, f"{result['name']}: {recall:.3f}, by chance {chance:.3f}"
