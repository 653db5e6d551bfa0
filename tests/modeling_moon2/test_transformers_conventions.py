"""What transformers expects of every model: the subjects of its common model tests that matter for an encoder."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from modeling_moon2 import Moon2Model, Moon2TextConfig

PARALLEL = """
import sys
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from transformers.distributed import DistributedConfig
from modeling_moon2 import Moon2Model

folder, inputs, output, ep_size = sys.argv[1:]
dist.init_process_group("gloo")
parallel = DistributedConfig(tp_size=2, ep_size=int(ep_size))
model = Moon2Model.from_pretrained(folder, distributed_config=parallel).eval()
assert model.language_model.layers[0].mlp.experts.num_experts == 4 // int(ep_size)
sharded = [name for name, weight in model.named_parameters() if hasattr(weight, "to_local")]
assert any("q_proj" in name for name in sharded), sharded
with torch.no_grad():
    embeddings = model(**load_file(inputs)).embeddings
if dist.get_rank() == 0:
    save_file({"embeddings": embeddings.contiguous()}, output)
dist.destroy_process_group()
"""


@pytest.fixture
def inputs(tiny_processor, mixed_items):
    return tiny_processor(text=mixed_items[0], images=mixed_items[1])


@pytest.fixture
def model(tiny_model):
    return copy.deepcopy(tiny_model)


@torch.no_grad()
def test_shards_are_written_and_read(tiny_model, inputs, tmp_path):
    tiny_model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    loaded, report = Moon2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(loaded.eval()(**inputs).embeddings, tiny_model(**inputs).embeddings)


def test_buffers_are_right_after_loading(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    loaded = Moon2Model.from_pretrained(tmp_path)
    expected = dict(tiny_model.named_buffers())
    assert expected and dict(loaded.named_buffers()).keys() == expected.keys()
    for name, buffer in loaded.named_buffers():
        assert torch.equal(buffer, expected[name]), name
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == dict(tiny_model.named_parameters()).keys()


@torch.no_grad()
def test_device_map_auto_and_the_meta_device(tiny_model, inputs, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, device_map="auto", trust_remote_code=True).eval()
    assert torch.equal(loaded(**inputs).embeddings.cpu(), tiny_model(**inputs).embeddings)
    with torch.device("meta"):
        empty = Moon2Model(tiny_model.config)
    assert all(parameter.is_meta for parameter in empty.parameters())
    empty.load_state_dict(tiny_model.state_dict(), assign=True)
    assert not any(parameter.is_meta for parameter in empty.parameters())


@torch.no_grad()
@pytest.mark.parametrize("away", [["layers.1", "norm"], ["layers.1"], ["layers.0", "layers.1"]])
def test_layers_on_another_device_give_their_outputs_where_the_inputs_are(model, inputs, away, monkeypatch):
    # The meta device stands for a second accelerator: it mixes with the CPU as little. What comes back has no values.
    to, autocast = torch.Tensor.to, torch.autocast

    def fetched(tensor, *given, **named):
        target = named.get("device", given[0] if given else None)
        if tensor.is_meta and isinstance(target, str | torch.device) and torch.device(target).type == "cpu":
            return torch.zeros(tensor.shape, dtype=tensor.dtype)
        return to(tensor, *given, **named)

    monkeypatch.setattr(torch.Tensor, "to", fetched)
    monkeypatch.setattr(torch, "autocast", lambda kind, **o: nullcontext() if kind == "meta" else autocast(kind, **o))
    model.set_experts_implementation("batched_mm")
    for name in ("embed_tokens", "rotary_emb", "layers.0", "layers.1", "norm"):
        device = "meta" if name in away else "cpu"
        part = model.language_model.get_submodule(name).to(device)
        add_hook_to_module(part, AlignDevicesHook(execution_device=device))
    output, views = model(**inputs), model.encode_views(**inputs)
    for tensor in (output.last_hidden_state, output.embeddings, *views.routing, views.alignment_logits):
        assert tensor.device.type == "cpu"
    for tensor in (views.text_embeddings, views.image_embeddings, views.multimodal_embeddings, views.temperatures):
        assert tensor.device.type == "cpu"


@torch.no_grad()
def test_the_vocabulary_can_grow_and_shrink(model, tiny_processor):
    inputs = tiny_processor(text=["red mug"])
    before, size = model(**inputs).embeddings, model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(size + 16)
    assert model.config.text_config.vocab_size == model.get_input_embeddings().num_embeddings == size + 16
    assert torch.equal(model(**inputs).embeddings, before)
    model(input_ids=torch.tensor([[size + 3, 5]]))
    model.resize_token_embeddings(size)
    assert torch.equal(model(**inputs).embeddings, before)


@torch.no_grad()
def test_router_logits_on_request_are_those_of_every_output(tiny_model, inputs):
    always, asked = tiny_model(**inputs), tiny_model(**inputs, output_router_logits=True)
    assert len(always.router_logits) == len(asked.router_logits) == tiny_model.config.text_config.num_hidden_layers
    for one, other in zip(always.router_logits, asked.router_logits, strict=True):
        assert torch.equal(one, other)


@torch.no_grad()
def test_image_features_are_an_output_of_the_usual_form(tiny_model, inputs):
    images = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
    features = tiny_model.get_image_features(**images)
    tokens = int(inputs["mm_token_type_ids"].sum())
    assert features.pooler_output.shape == (tokens, tiny_model.config.text_config.hidden_size)
    assert features.last_hidden_state.shape[0] == inputs["pixel_values"].shape[0]
    as_tuple = tiny_model.get_image_features(**images, return_dict=False)
    assert torch.equal(as_tuple[1], features.pooler_output)
    states = tiny_model.get_image_features(**images, output_hidden_states=True).hidden_states
    assert len(states) == tiny_model.config.vision_config.depth + 1


@pytest.mark.parametrize("kind", ["tp_plan", "ep_plan"])
def test_every_key_of_the_parallel_plans_is_in_the_model(tiny_model, kind):
    names = [name for name, _ in (*tiny_model.named_parameters(), *tiny_model.named_modules())]
    plan = getattr(tiny_model, kind)
    assert {f"language_model.{key}" for key in getattr(Moon2TextConfig, f"base_model_{kind}")} <= plan.keys()
    for key in plan:
        pattern = re.compile(re.escape(key).replace(r"\*", r"\d+") + r"(\.weight)?")
        assert any(pattern.fullmatch(name) for name in names), key


@torch.no_grad()
@pytest.mark.parametrize("ep_size", [1, 2], ids=["tensors shared out", "experts shared out"])
def test_two_parallel_processes_embed_as_one(tiny_model, inputs, tmp_path, ep_size):
    tiny_model.save_pretrained(tmp_path / "model")
    save_file(dict(inputs), tmp_path / "inputs.safetensors")
    (tmp_path / "parallel.py").write_text(PARALLEL)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               tmp_path / "parallel.py", tmp_path / "model", tmp_path / "inputs.safetensors",
               tmp_path / "out.safetensors", str(ep_size)]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    embeddings = load_file(tmp_path / "out.safetensors")["embeddings"]
    torch.testing.assert_close(embeddings, tiny_model(**inputs).embeddings, atol=1e-5, rtol=1e-5)
