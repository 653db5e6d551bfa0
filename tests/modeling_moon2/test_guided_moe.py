"""Guided MoE: tokens of an item's category and attributes go to experts of their own."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import AutoModel

from modeling_moon2 import Moon2TextConfig
from modeling_moon2.modeling_moon2 import Moon2SparseMoeBlock
from moon2_training.mini import build_mini

FIELDS = {"title": "red mug", "category": ["Kitchen", "mug"], "attributes": {"colour": "navy blue", "for": "shoes"}}
JOINED = "red mug. Kitchen > mug. colour: navy blue, for: shoes"


@pytest.fixture(scope="module")
def guided(tiny_config):
    torch.manual_seed(1)
    config = dataclasses.replace(tiny_config, guided_fields=["category", "attributes"])
    model, processor = build_mini(config, ["red mug navy blue shoes kitchen colour for"] * 20)
    return model.eval(), processor


def blocks(model) -> list[Moon2SparseMoeBlock]:
    return [layer.mlp for layer in model.language_model.layers]


def text_of(processor, inputs, row, field) -> str:
    tokens = inputs["input_ids"][row][(inputs["field_ids"][row] == field) & inputs["attention_mask"][row].bool()]
    return processor.tokenizer.decode(tokens).strip(" .")


def test_the_processor_marks_the_fields_of_an_item(guided, make_image):
    _, processor = guided
    inputs = processor(
        text=["shoes", FIELDS, {"category": "mug"}], images=[None, [make_image(1), make_image(2)], None]
    )
    assert [text_of(processor, inputs, 1, field) for field in (1, 2)] == [
        "kitchen > mug",
        "colour: navy blue, for: shoes",
    ]
    assert text_of(processor, inputs, 2, 1) == "mug" and not inputs["field_ids"][0].any()
    images = inputs["mm_token_type_ids"][1].bool()
    assert images.any() and not inputs["field_ids"][1][images].any()
    assert not inputs["field_ids"][inputs["attention_mask"] == 0].any()


def test_fields_are_read_as_the_joined_text(guided):
    _, processor = guided
    for attributes in ({"colour": "navy blue", "for": "shoes"}, "colour: navy blue, for: shoes",
                       [{"name": "colour", "value": "navy blue"}, {"name": "for", "value": "shoes"}]):  # fmt: skip
        inputs = processor(text=FIELDS | {"attributes": attributes})
        assert inputs["input_ids"].tolist() == processor(text=JOINED)["input_ids"].tolist()
    assert "field_ids" not in processor(text=[JOINED, {"title": "mug", "category": [], "attributes": None}])


def test_marks_are_cut_and_padded_with_their_tokens(guided):
    _, processor = guided
    whole = processor(text=FIELDS)["field_ids"][0]
    cut = processor(text=FIELDS, max_length=len(whole) - 3)["field_ids"][0]
    assert cut.tolist() == whole[:-3].tolist()
    left = processor(text=[FIELDS, JOINED + " mug mug"], padding_side="left")["field_ids"][0]
    assert left.tolist() == [0] * (len(left) - len(whole)) + whole.tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"titel": "mug"}, r"item 1: text has a field 'titel'; give title, category, attributes"),
        ({"title": 3}, "item 1: the title is int, not str"),
        (["mug"], "item 1: text is list"),
    ],
)
def test_wrong_fields_are_refused(guided, text, message):
    with pytest.raises(ValueError, match=message):
        guided[1](text=["mug", text])
    with pytest.raises(ValueError, match="guided_fields=.* give none or some of category, attributes"):
        Moon2TextConfig(guided_fields=("title",))


@torch.no_grad()
def test_a_marked_token_gets_the_mean_of_its_fields_experts_and_the_others_the_gates(guided):
    model, _ = guided
    block = blocks(model)[0]
    z, k = block.gate.num_experts, block.gate.num_experts_per_tok
    assert block.experts.num_experts == z + 2 * k
    hidden = torch.randn(2, 5, model.config.text_config.hidden_size)
    fields = torch.tensor([[0, 1, 1, 2, 0], [2, 2, 0, 1, 0]])
    output, logits, gates, _ = block(hidden, fields)
    plain, plain_logits, plain_gates, _ = block(hidden)
    assert torch.equal(logits, plain_logits) and logits.shape[-1] == z
    routed = fields == 0
    torch.testing.assert_close(output[routed], plain[routed])
    assert torch.equal(gates[routed], plain_gates[routed]) and not gates[~routed].any()

    def expert(index, x):
        gate, up = (x @ block.experts.gate_up_proj[index].T).chunk(2, -1)
        return (block.experts.act_fn(gate) * up) @ block.experts.down_proj[index].T

    for field in (1, 2):
        x = hidden[fields == field]
        own = [z + (field - 1) * k + i for i in range(k)]
        torch.testing.assert_close(output[fields == field], sum(expert(i, x) for i in own) / k, atol=1e-6, rtol=1e-5)


def test_weights_and_balance_are_taken_over_routed_tokens_only(guided, make_image):
    model, processor = guided
    inputs = processor(text=[FIELDS, {"category": "mug"}], images=[make_image(1), None])
    views = model.encode_views(**inputs)
    marked = (inputs["field_ids"] != 0).sum(-1)
    images = int(inputs["mm_token_type_ids"][0].sum()) + 2
    texts = inputs["attention_mask"].sum(-1) - torch.tensor([images, 0])
    assert views.routing.token_counts[0].tolist() == (texts - marked).tolist() and texts[1] == marked[1]
    assert views.routing.token_counts[1].tolist() == [images, 0]
    assert views.has_text.tolist() == [True, True]
    for sums in (views.routing.gate_sums, views.routing.prob_sums):
        torch.testing.assert_close(sums.sum(-1), views.routing.token_counts[:, None].expand(-1, 2, -1))

    model.zero_grad()
    model.encode_views(**processor(text={"category": "mug"})).text_embeddings[0, 0].backward()
    experts = blocks(model)[0].experts.gate_up_proj.grad.flatten(1).abs().sum(-1)
    assert (experts > 0).tolist() == [False] * 4 + [True, True, False, False]
    assert not blocks(model)[0].gate.weight.grad.any()
    model.zero_grad()


@torch.no_grad()
@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
def test_views_equal_separate_forwards_alone_and_in_a_batch(guided, make_image, experts):
    model, processor = guided
    model.set_experts_implementation(experts)
    texts, images = [FIELDS, "mug", {"attributes": "navy"}], [[make_image(1), make_image(2)], None, make_image(3)]
    views = model.encode_views(**processor(text=texts, images=images))
    for row, (text, image) in enumerate(zip(texts, images, strict=True)):
        alone = model(**processor(text=[text], images=[image])).embeddings[0]
        torch.testing.assert_close(views.multimodal_embeddings[row], alone, atol=1e-6, rtol=1e-5)
        text_alone = model(**processor(text=[text])).embeddings[0]
        torch.testing.assert_close(views.text_embeddings[row], text_alone, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_without_marks_and_without_guided_experts_nothing_changes(guided, tiny):
    model, processor = guided
    marked, joined = processor(text=[FIELDS]), processor(text=[JOINED])
    assert (model(**marked).embeddings - model(**joined).embeddings).abs().max() > 1e-4
    tiny_model, tiny_processor = tiny
    marked, joined = tiny_processor(text=[FIELDS]), tiny_processor(text=[JOINED])
    assert torch.equal(tiny_model(**marked).embeddings, tiny_model(**joined).embeddings)


@torch.no_grad()
def test_a_guided_model_is_saved_and_loaded(guided, tmp_path):
    model, processor = guided
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, trust_remote_code=True).eval()
    assert list(loaded.config.text_config.guided_fields) == ["category", "attributes"]
    inputs = processor(text=[FIELDS])
    assert torch.equal(loaded(**inputs).embeddings, model(**inputs).embeddings)
