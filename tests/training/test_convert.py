from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import (
    AutoModel,
    AutoProcessor,
    LlamaConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLModel,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from modeling_moon2.processing_moon2 import CHAT_TEMPLATE
from moon2_training.convert import PLAN, ConvertArguments, convert, main
from moon2_training.push import check_folder
from moon2_training.source_checkpoint import INDEX, SourceWeights


@pytest.fixture(scope="module")
def source(save_dense):
    return save_dense()


def run(source, out, **options):
    return convert(ConvertArguments(str(source), str(out), **options), progress=False)


def dense_embeddings(model, inputs):
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


@pytest.mark.parametrize("options", [{}, {"expert_init": "split"}, {"expert_init": "split", "num_experts": 6,
                         "num_experts_per_tok": 2}, {"num_experts": 3, "num_experts_per_tok": 3}, {"moe_layers": [1]},
                         {"guided_fields": ["category", "attributes"]},
                         {"guided_fields": ["attributes"], "expert_init": "split"}], ids=str)  # fmt: skip
def test_the_converted_model_answers_as_its_source(source, tmp_path, mixed_items, options):
    folder, dense = source
    out = run(folder, tmp_path / "out", **options)
    model = AutoModel.from_pretrained(out).eval()
    processor = AutoProcessor.from_pretrained(out)
    inputs = processor(text=mixed_items[0], images=mixed_items[1])
    expected = dense_embeddings(dense, inputs)
    with torch.no_grad():
        got = model(**inputs).embeddings
    assert ((got - expected).norm(dim=-1) <= 1e-5).all()
    layers = options.get("moe_layers") or [0, 1]
    assert [hasattr(layer.mlp, "experts") for layer in model.language_model.layers] == [i in layers for i in range(2)]
    views = model.encode_views(**inputs)
    assert views.alignment_logits.shape[0] == views.routing.gate_sums.shape[1] == len(layers)


@torch.no_grad()
@pytest.mark.parametrize("expert_init", ["copy", "split"])
def test_guided_experts_answer_as_the_source_too(source, tmp_path, make_image, expert_init):
    folder, dense = source
    out = run(folder, tmp_path / "out", guided_fields=["category", "attributes"], expert_init=expert_init)
    model, processor = AutoModel.from_pretrained(out).eval(), AutoProcessor.from_pretrained(out)
    item = {"title": "red mug", "category": ["Kitchen", "Mugs"], "attributes": {"colour": "red"}}
    inputs = processor(text=[item, item, "mug"], images=[None, make_image(1), None])
    got = model(**inputs).embeddings
    assert inputs.pop("field_ids").unique().tolist() == [0, 1, 2]
    assert ((got - dense_embeddings(dense, inputs)).norm(dim=-1) <= 1e-5).all()


@pytest.mark.parametrize(("kind", "tied"), [(Qwen3VLForConditionalGeneration, True), (Qwen3VLModel, False)])
def test_with_a_tied_head_or_without_any(save_dense, tmp_path, mixed_items, kind, tied):
    folder, dense = save_dense(kind, tied)
    out = run(folder, tmp_path / "out")
    inputs = AutoProcessor.from_pretrained(out)(text=mixed_items[0], images=mixed_items[1])
    with torch.no_grad():
        got = AutoModel.from_pretrained(out).eval()(**inputs).embeddings
    assert ((got - dense_embeddings(dense, inputs)).norm(dim=-1) <= 1e-5).all()


def test_a_large_photo_is_shrunk_to_512_x_512_unless_more_is_asked_for(source, tmp_path, make_image):
    folder = copy_of(source[0], tmp_path / "source")
    image_processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
    image_processor.size = {"shortest_edge": 65_536, "longest_edge": 16_777_216}  # as a Qwen3-VL brings it
    image_processor.save_pretrained(folder)
    photo = make_image(0, 700, 700)
    for name, options, pixels in (("out", {}, 262_144), ("dear", {"max_pixels": 400_000}, 400_000)):
        processor = AutoProcessor.from_pretrained(run(folder, tmp_path / name, **options))
        size, side = processor.image_processor.size, processor.image_processor.patch_size * 2
        assert (size["shortest_edge"], size["longest_edge"]) == (65_536, pixels)
        seen = int(processor(images=[photo], max_length=9999)["mm_token_type_ids"].sum())
        assert 0.9 * pixels < seen * side**2 <= pixels


def test_split_keeps_the_dense_cost_and_copy_multiplies_the_parameters(source, tmp_path):
    dense = source[1].language_model.layers[0].mlp
    width = dense.gate_proj.out_features
    split, copied = (
        AutoModel.from_pretrained(run(source[0], tmp_path / init, expert_init=init)).language_model.layers[0].mlp
        for init in ("split", "copy")
    )
    assert split.experts.down_proj.shape == (4, 48, width // 2)
    assert copied.experts.down_proj.shape == (4, 48, width)


def test_noise_makes_experts_differ_and_the_gate_learns_either_way(source, tmp_path, mixed_items):
    out = run(source[0], tmp_path / "out", expert_noise=0.1)
    model = AutoModel.from_pretrained(out)
    experts = model.language_model.layers[0].mlp.experts.down_proj
    assert (experts[0] - experts[1]).abs().max() > 0
    inputs = AutoProcessor.from_pretrained(out)(text=mixed_items[0], images=mixed_items[1])
    model(**inputs).embeddings[:, 0].sum().backward()
    assert model.language_model.layers[0].mlp.gate.weight.grad.abs().max() > 0


def in_half(source, folder, dtype):
    """A copy of a source with weights in bfloat16, whose config gives its whole the `dtype`, or none."""
    from safetensors.torch import save_file

    folder = copy_of(source, folder)
    for file in folder.glob("*.safetensors"):
        save_file({name: weight.bfloat16() for name, weight in load_file(file).items()}, file, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"dtype": dtype}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("given", "expected"), [(None, torch.bfloat16), ("float32", torch.float32)])
def test_all_weights_are_of_the_one_precision_in_which_the_source_loads(source, tmp_path, given, expected):
    folder = in_half(source[0], tmp_path / "source", given)
    assert Qwen3VLForConditionalGeneration.from_pretrained(folder).dtype == expected
    out = run(folder, tmp_path / "out", expert_noise=0.1)
    weights = [weight for file in out.glob("*.safetensors") for weight in load_file(file).values()]
    assert {weight.dtype for weight in weights} == {expected}
    total = json.loads((out / INDEX).read_text())["metadata"]["total_size"]
    assert total == sum(weight.numel() * weight.element_size() for weight in weights)
    assert AutoModel.from_pretrained(out).dtype == expected


def test_every_tensor_is_read_once(source, tmp_path, monkeypatch):
    read = []

    def counting(self, name):
        read.append(name)
        return original(self, name)

    original = SourceWeights.__getitem__
    monkeypatch.setattr(SourceWeights, "__getitem__", counting)
    run(source[0], tmp_path / "out")
    assert sorted(read) == sorted(SourceWeights(source[0]).names)


def test_an_interrupted_conversion_goes_on_and_ends_in_the_same_bytes(source, tmp_path, monkeypatch):
    from moon2_training import convert as module

    options = {"max_shard_gb": 1e-4, "expert_noise": 0.1}
    whole = run(source[0], tmp_path / "whole" / "out", **options)
    written = []

    def interrupted(tensors, path, **kwargs):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        original(tensors, path, **kwargs)

    original = module.save_file
    monkeypatch.setattr(module, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(source[0], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "out.partial").glob("*.safetensors")}
    assert len(times) == 2
    with pytest.raises(FileExistsError, match="holds an unfinished conversion of something else"):
        run(source[0], tmp_path / "out", **options | {"seed": 5})
    monkeypatch.setattr(module, "save_file", original)
    out = run(source[0], tmp_path / "out", **options)
    assert not (tmp_path / "out.partial").exists()
    names, again = ({file.relative_to(made) for file in made.rglob("*") if file.is_file()} for made in (whole, out))
    assert again == names and {Path(INDEX), Path("modeling_moon2.py"), Path("sentence_bert_config.json")} <= names
    for name in names:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    for file, time in times.items():
        assert (out / file.name).stat().st_mtime_ns == time


def test_a_conversion_killed_at_its_beginning_or_its_end_goes_on(source, tmp_path):
    whole = run(source[0], tmp_path / "out")
    files = {path.name: path.read_bytes() for path in whole.iterdir() if path.is_file()}
    shutil.rmtree(whole)
    (tmp_path / "out.partial").mkdir()  # killed before the plan was there
    (tmp_path / "out.partial" / f".{PLAN}.part").write_text('{"argu')
    run(source[0], tmp_path / "out")
    assert {path.name: path.read_bytes() for path in whole.iterdir() if path.is_file()} == files
    unfinished = tmp_path / "plan.partial"
    unfinished.mkdir()
    (unfinished / "holiday.jpg").touch()
    with pytest.raises(FileExistsError, match="plan.partial holds an unfinished conversion of something else"):
        run(source[0], tmp_path / "plan")


def test_a_conversion_killed_before_its_plan_was_removed_is_whole(source, tmp_path, monkeypatch):
    from moon2_training import convert as module

    def killed(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            run(source[0], tmp_path / "out")
    assert (tmp_path / "out" / PLAN).is_file()
    with pytest.raises(FileExistsError, match="something else"):
        run(source[0], tmp_path / "out", seed=5)
    check_folder(run(source[0], tmp_path / "out"))
    assert not (tmp_path / "out" / PLAN).exists()
    with pytest.raises(FileExistsError, match="give another folder"):
        run(source[0], tmp_path / "out")


def test_an_existing_folder_is_refused(source, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="give another folder"):
        run(source[0], tmp_path / "out")


def copy_of(source, folder):
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def damage_missing_shard(folder):
    sorted(folder.glob("model-*.safetensors"))[1].unlink()
    return "cannot be read as safetensors"


def damage_truncated_shard(folder):
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    return f"{shard.name}: cannot be read as safetensors"


def damage_missing_tensor(folder):
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"]["model.language_model.norm.weight"]
    (folder / INDEX).write_text(json.dumps(index))
    return "no tensor language_model.norm.weight"


def damage_no_tensors(folder):
    (folder / INDEX).write_text(json.dumps({"weight_map": {}}))
    return "holds no tensors"


def damage_other_tensor(folder):
    index = json.loads((folder / INDEX).read_text())
    name, file = next(iter(index["weight_map"].items()))
    tensors = load_file(folder / file)
    from safetensors.torch import save_file

    save_file(tensors | {"model.audio.weight": torch.zeros(3)}, folder / file, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps(index | {"weight_map": index["weight_map"] | {"model.audio.weight": file}}))
    return "audio.weight has no place in the model"


def damage_one_number(folder):
    from safetensors.torch import save_file

    file = sorted(folder.glob("model-*.safetensors"))[1]
    tensors = load_file(file)
    name = next(iter(tensors))
    tensors[name].view(-1)[-1] = torch.inf
    save_file(tensors, file, metadata={"format": "pt"})
    return f"{file.name}: {name} holds NaN or infinity; download it again, or give another source"


def damage_mlp_width(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 32
    (folder / "config.json").write_text(json.dumps(config))
    return r"layers.0.mlp.gate_proj.weight is \(64, 48\), its config says \(32, 48\)"


def damage_down_proj(folder):
    from safetensors.torch import save_file

    name = "model.language_model.layers.1.mlp.down_proj.weight"
    file = folder / json.loads((folder / INDEX).read_text())["weight_map"][name]
    tensors = load_file(file)
    save_file(tensors | {name: tensors[name].T.contiguous()}, file, metadata={"format": "pt"})
    return r"layers.1.mlp.down_proj.weight is \(64, 48\), its config says \(48, 64\)"


def damage_head_width(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["head_dim"] *= 2
    (folder / "config.json").write_text(json.dumps(config))
    return "self_attn.* is .*, its config says "


def damage_text_only(folder):
    LlamaConfig().save_pretrained(folder)
    return "holds a llama model; give a dense Qwen3-VL"


def damage_no_config(folder):
    (folder / "config.json").unlink()
    return "no readable config.json"


@pytest.mark.parametrize("damage", [damage_missing_shard, damage_truncated_shard, damage_missing_tensor,
                                    damage_no_tensors, damage_other_tensor, damage_one_number, damage_mlp_width,
                                    damage_down_proj, damage_head_width, damage_text_only,
                                    damage_no_config])  # fmt: skip
def test_a_wrong_source_gets_one_clear_error_and_leaves_nothing(source, tmp_path, damage):
    folder = copy_of(source[0], tmp_path / "source")
    message = damage(folder)
    with pytest.raises(ValueError, match=message):
        run(folder, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expert_init": "random"}, "give one of copy, split"),
        ({"num_experts_per_tok": 1}, "give 2 to num_experts=4"),
        ({"num_experts_per_tok": 5}, "give 2 to num_experts=4"),
        ({"expert_init": "split", "num_experts": 5}, "give a multiple of num_experts_per_tok=2"),
        ({"guided_fields": ["title"]}, "give none or some of category, attributes"),
        ({"expert_noise": -1.0}, "expert_noise is 0 or more"),
        ({"max_pixels": 0}, "max_pixels=0; give 1 or more"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run("source", tmp_path / "out", **options)


def test_the_result_is_a_repository_that_says_where_it_comes_from(source, tmp_path, mixed_items):
    folder = copy_of(source[0], tmp_path / "source")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A dense model\n")
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"chat_template": "{{ 'a chat' }}"}))
    out = run(folder, tmp_path / "out", base_model="Qwen/Qwen3-VL-2B-Instruct", expert_init="split")
    check_folder(out)
    card = ModelCard.load(out / "README.md")
    assert (card.data.base_model, card.data.license) == ("Qwen/Qwen3-VL-2B-Instruct", "apache-2.0")
    assert "Converted, not trained" in card.text and str(tmp_path) not in card.content
    assert AutoProcessor.from_pretrained(out).chat_template == CHAT_TEMPLATE

    processor = AutoProcessor.from_pretrained(out)
    with torch.no_grad():
        expected = AutoModel.from_pretrained(out).eval()(**processor(text=["red mug", "navy"])).embeddings
    vectors = SentenceTransformer(str(out), trust_remote_code=True, device="cpu").encode(["red mug", "navy"])
    assert abs(vectors - expected.numpy()).max() < 1e-5


def test_the_command_takes_source_and_out(source, tmp_path, capsys):
    main([str(source[0]), str(tmp_path / "out"), "--expert_init", "split", "--num-experts", "4"])
    assert f"converted to {tmp_path / 'out'}" in capsys.readouterr().out
    assert AutoModel.from_pretrained(tmp_path / "out").config.text_config.moe_intermediate_size == 32
