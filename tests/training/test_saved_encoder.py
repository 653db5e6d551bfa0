from __future__ import annotations

import copy

import pytest
import torch

from moon2_training.hub_folder import save_hub_folder
from moon2_training.saved_encoder import load_encoder


@pytest.fixture(scope="module")
def halved(tiny, tmp_path_factory):
    """Folder of an encoder with bfloat16 weights."""
    folder = tmp_path_factory.mktemp("model") / "halved"
    save_hub_folder(folder, copy.deepcopy(tiny[0]).bfloat16(), tiny[1])
    return folder


def test_on_a_cpu_weights_are_float32_unless_another_type_is_given(halved, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    for options, dtype in (({}, torch.float32), ({"dtype": "auto"}, torch.bfloat16)):
        model, _ = load_encoder(halved, **options)
        assert {weight.dtype for weight in model.parameters()} == {dtype}


def test_what_is_no_encoder_is_refused(tmp_path, tiny_dual_encoder):
    with pytest.raises(FileNotFoundError, match=r"no config\.json there; give the folder of a saved model"):
        load_encoder(tmp_path)
    tiny_dual_encoder("clip")[0].save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a clip model; give a MOON2.0 one"):
        load_encoder(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder, and no model of that name on the Hub"):
        load_encoder("nobody/nothing")
