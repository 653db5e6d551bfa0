"""The folder of a run to hand on: what goes into it, what stays behind, how it is brought up to date."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

import modeling_moon2
from modeling_moon2.processing_moon2 import load_image
from moon2_dataset.demo_catalogue import render_demo_catalogue
from moon2_training.bundle import main, make_bundle, refresh_bundle
from moon2_training.evaluate import evaluate
from moon2_training.hub_folder import save_hub_folder
from moon2_training.mini import MiniConfig, build_mini
from moon2_training.saved_encoder import load_encoder


@pytest.fixture
def run(tmp_path):
    """A model that was never trained, saved as a run leaves it."""
    torch.manual_seed(0)
    shape = MiniConfig(32, 2, 2, moe_intermediate_size=16, vision_hidden_size=32, vision_depth=2, vocab_size=300)
    model, processor = build_mini(shape, ["red mug", "blue lamp"])
    folder = tmp_path / "run"
    save_hub_folder(folder, model, processor, {"training": {"max_steps": 3}})
    (folder / "training_args.bin").write_bytes(b"pickle")
    (folder / "checkpoint-3").mkdir()
    return folder


def test_a_bundle_holds_the_model_and_no_more(run, tmp_path):
    bundle = tmp_path / "mini"
    make_bundle(run, bundle)
    names = {path.name for path in bundle.iterdir()}
    assert {"model.safetensors", "config.json", "README.md", "modules.json", "tokenizer.json"} <= names
    assert not names & {"training_args.bin", "checkpoint-3"}
    weights, whole = load_file(bundle / "model.safetensors"), load_file(run / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert all(torch.equal(weights[name], whole[name].bfloat16()) for name in whole)
    model = AutoModel.from_pretrained(bundle, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(bundle, trust_remote_code=True)
    picture = load_image(render_demo_catalogue(1)[0][0]["images"][0])
    with torch.no_grad():
        embedding = model(**processor(text=["red mug"], images=[picture])).embeddings
    assert embedding.shape == (1, 32) and embedding.norm().item() == pytest.approx(1, abs=1e-3)


def test_a_refresh_renews_code_card_and_metadata_and_leaves_the_weights(run, tmp_path):
    bundle = tmp_path / "mini"
    main([str(run), str(bundle)])
    fresh = {path.name: path.read_bytes() for path in bundle.iterdir() if path.is_file()}
    stale = ("modeling_moon2.py", "modules.json", "sentence_bert_config.json")
    for name in stale:
        (bundle / name).write_text("{}")
    (bundle / "README.md").unlink()
    main([str(bundle)])
    assert {path.name: path.read_bytes() for path in bundle.iterdir() if path.is_file()} == fresh
    code = Path(modeling_moon2.__file__).parent
    assert (bundle / "modeling_moon2.py").read_bytes() == (code / "modeling_moon2.py").read_bytes()


def test_nothing_is_written_over(run, tmp_path):
    with pytest.raises(ValueError, match="is not empty"):
        make_bundle(tmp_path / "run", run)
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        refresh_bundle(tmp_path)


def test_notes_stand_in_the_card_and_outlive_a_refresh(run, tmp_path):
    bundle, notes = tmp_path / "mini", tmp_path / "notes.md"
    notes.write_text("Pictures: [a public set](https://example.org/set).\n", encoding="utf-8")
    main([str(run), str(bundle), "--notes", str(notes)])
    told = "## How it was made\n\nPictures: [a public set](https://example.org/set).\n\nArguments of the training:"
    assert told in (bundle / "README.md").read_text()
    main([str(bundle)])
    assert told in (bundle / "README.md").read_text()
    refresh_bundle(bundle, "Other words.")
    card = (bundle / "README.md").read_text()
    assert "## How it was made\n\nOther words.\n" in card and "a public set" not in card
    assert json.loads((bundle / "provenance.json").read_text())["training"] == {"max_steps": 3}


@pytest.mark.parametrize("newer", ["results", "evaluation"])
def test_the_newest_scores_are_handed_on_whatever_becomes_of_the_times_of_files(newer, run, shop, tmp_path):
    scores = evaluate(*load_encoder(run), shop.products, shop.queries, progress=False)
    scored = {
        "results": scores | {"num_queries": 111, "training": {"steps": 3, "triplets": 6, "seconds": 1.0}},
        "evaluation": scores | {"num_queries": 222, "model": "/home/alice/run", "products": "/home/alice/held.parquet",
                                "queries": ["/home/alice/asked.parquet"]},
    }  # fmt: skip
    for name, content in scored.items():
        (run / f"{name}.json").write_text(json.dumps(content))
        os.utime(run / f"{name}.json", (2, 2) if name == newer else (1, 1))
    bundle = tmp_path / "mini"
    make_bundle(run, bundle)
    assert not (bundle / "evaluation.json").exists() and "alice" not in (bundle / "results.json").read_text()
    card = (bundle / "README.md").read_text()
    assert f": {scored[newer]['num_queries']} queries," in card and "3 steps, 6 triplets, 1 s." in card
    assert ("Scored on held and asked:" in card) == (newer == "evaluation")
    os.utime(bundle / "results.json", (1, 1))
    refresh_bundle(bundle)
    assert (bundle / "README.md").read_text() == card


def test_later_scores_take_the_place_of_earlier_ones(run, shop, tmp_path):
    scores = evaluate(*load_encoder(run), shop.products, shop.queries, progress=False)
    told = {"steps": 3, "triplets": 6, "seconds": 1.0}
    (run / "results.json").write_text(json.dumps(scores | {"num_queries": 111, "training": told}))
    bundle, later = tmp_path / "mini", tmp_path / "evaluation.json"
    make_bundle(run, bundle)
    weights = (bundle / "model.safetensors").read_bytes()
    later.write_text(
        json.dumps(scores | {"num_queries": 222, "model": "/home/alice", "products": "/home/alice/t.parquet"})
    )
    main([str(bundle), "--scores", str(later)])
    results = json.loads((bundle / "results.json").read_text())
    assert (results["num_queries"], results["products"], results["training"]) == (222, "t", told)
    assert "alice" not in json.dumps(results) and ": 222 queries," in (bundle / "README.md").read_text()
    assert (bundle / "model.safetensors").read_bytes() == weights
    with pytest.raises(SystemExit):
        main([str(run), str(bundle), "--scores", str(later)])
