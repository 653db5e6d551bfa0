"""A pickle in place of weights or of a state is refused with a message, and never run."""

from __future__ import annotations

import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors import SafetensorError

from moon2_dataset.augment.consistency import Scorer
from moon2_training.adapt import load_base
from moon2_training.bundle import make_bundle
from moon2_training.convert import ConvertArguments, convert
from moon2_training.hub_folder import save_hub_folder
from moon2_training.peer_encoders import load_any_encoder
from moon2_training.plain_files import plain_checkpoint, plain_weights
from moon2_training.push import check_folder
from moon2_training.saved_encoder import load_encoder
from moon2_training.train import main as train

PICKLES = ("pytorch_model.bin", "model.pt", "adapter_model.bin", "training_args.bin", "optimizer.pt")


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path):
    """What must not be there at the end; that the pickle would make it is tried first."""
    marker = tmp_path / "it-ran"
    pickle.loads(pickle.dumps(Hostile(marker)))
    marker.rmdir()
    yield marker
    assert not marker.exists()


@pytest.fixture
def folder(tiny, tmp_path, marker):
    """A whole folder of a model whose weights are a pickle."""
    folder = tmp_path / "hostile"
    save_hub_folder(folder, *tiny)
    (folder / "model.safetensors").unlink()
    for name in PICKLES:
        torch.save({"weight": Hostile(marker)}, folder / name)
    return folder


LOADERS = {
    "load_encoder": load_encoder,
    "load_any_encoder": load_any_encoder,
    "bundle": lambda folder: make_bundle(folder, folder.parent / "bundle"),
    "scorer": lambda folder: Scorer(str(folder), device="cpu"),
    "push": check_folder,
}


@pytest.mark.parametrize("loader", LOADERS)
def test_weights_that_are_a_pickle_are_refused(loader, folder):
    with pytest.raises(ValueError, match="safetensors"):
        LOADERS[loader](folder)


@pytest.mark.parametrize("loader", LOADERS)
def test_an_index_that_names_a_pickle_is_refused(loader, folder):
    index = {"metadata": {}, "weight_map": {"language_model.norm.weight": "pytorch_model.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="safetensors|damaged"):
        LOADERS[loader](folder)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_pickle_that_is_called_safetensors_is_refused(loader, folder):
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    with pytest.raises(ValueError, match="safetensors|damaged"):
        LOADERS[loader](folder)


def test_pickles_beside_the_weights_are_not_looked_at(saved_model, folder):
    shutil.copy(saved_model / "model.safetensors", folder)
    (folder / "adapter_config.json").unlink(missing_ok=True)
    load_encoder(folder)


def test_a_pickle_as_a_dense_source_is_refused(tmp_path, marker):
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps({"model_type": "qwen3_vl"}))
    for name in PICKLES:
        torch.save({"weight": Hostile(marker)}, source / name)
    with pytest.raises(ValueError, match="Pickles .* could run code and are not read"):
        convert(ConvertArguments(str(source), str(tmp_path / "out")), progress=False)
    with pytest.raises(ValueError, match="Pickles .* could run code and are not read"):
        load_base(source)
    assert not (tmp_path / "out").exists()


def test_the_messages_name_the_place_and_the_way_out():
    for error in (OSError("no file"), SafetensorError("header"), pickle.UnpicklingError("posix.mkdir")):
        with pytest.raises(ValueError, match=r"^x: its weights cannot be read \(.*\); give a model saved in safe"):
            with plain_weights("x"):
                raise error
    with pytest.raises(ValueError, match="^run/checkpoint-1: a file of this checkpoint holds more than tensors"):
        with plain_checkpoint("run/checkpoint-1"):
            raise pickle.UnpicklingError("posix.mkdir")


@pytest.fixture(scope="module")
def stopped(saved_shop, tmp_path_factory):
    """Arguments of a run that stopped after its first step, and its checkpoint."""
    out = tmp_path_factory.mktemp("run") / "out"
    arguments = ["--products", str(saved_shop / "products-train-*.parquet"),
                 "--queries", str(saved_shop / "queries-train.parquet"), "--output_dir", str(out),
                 "--per_device_train_batch_size", "2", "--save_steps", "1", "--disable_tqdm", "true",
                 "--use_cpu", "true",
                 "--hidden_size", "32", "--num_hidden_layers", "1", "--num_attention_heads", "2",
                 "--vision_depth", "2", "--moe_intermediate_size", "16",
                 "--vision_hidden_size", "32", "--image_size", "32"]  # fmt: skip
    train([*arguments, "--max_steps", "1"])
    return arguments, out / "checkpoint-1"


@pytest.mark.parametrize("write", [torch.save, lambda value, file: file.write_bytes(pickle.dumps(value))],
                         ids=["of torch", "plain"])  # fmt: skip
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin"])
def test_a_checkpoint_with_a_hostile_pickle_is_not_resumed(name, write, stopped, marker, tmp_path):
    arguments, checkpoint = stopped
    hostile = shutil.copytree(checkpoint, tmp_path / "checkpoint-1")
    if name == "pytorch_model.bin":
        (hostile / "model.safetensors").unlink()
        (hostile / "SHA256SUMS").unlink()
    write(Hostile(marker), hostile / name)
    with pytest.raises(ValueError, match="checkpoint-1: a file of this checkpoint holds more than tensors"):
        train([*arguments, "--max_steps", "2", "--resume_from_checkpoint", str(hostile)])


def test_training_arguments_in_a_checkpoint_are_not_read(stopped, marker, tmp_path):
    arguments, checkpoint = stopped
    hostile = shutil.copytree(checkpoint, tmp_path / "checkpoint-1")
    (hostile / "training_args.bin").write_bytes(pickle.dumps(Hostile(marker)))
    train([*arguments, "--max_steps", "2", "--resume_from_checkpoint", str(hostile)])
