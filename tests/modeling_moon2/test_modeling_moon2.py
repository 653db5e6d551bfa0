from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from transformers import AutoModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from modeling_moon2 import Moon2Config, Moon2Model
from modeling_moon2.layout_moon2 import multimodal_position_ids
from modeling_moon2.modeling_moon2 import Moon2Temperature, Moon2TopKGate, mean_pool, routing_sums
from moon2_training.losses import DualLevelAlignmentLoss
from moon2_training.mini import build_mini

VIEWS = ("text", "image", "multimodal")


def embed(model, processor, texts, images, **kwargs):
    return model(**processor(text=texts, images=images, **kwargs)).embeddings


def with_implementation(model, attention="sdpa", experts="grouped_mm"):
    clone = copy.deepcopy(model)
    clone.set_attn_implementation(attention)
    clone.set_experts_implementation(experts)
    return clone


@torch.no_grad()
def test_one_item_alone_is_the_same_item_in_any_batch_and_padding(tiny, mixed_items):
    model, processor = tiny
    texts, images = mixed_items
    right = embed(model, processor, texts, images)
    left = embed(model, processor, texts, images, padding_side="left")
    alone = torch.cat([embed(model, processor, [t], [i]) for t, i in zip(texts, images, strict=True)])
    torch.testing.assert_close(right, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(left, alone, atol=1e-5, rtol=0)
    order = [3, 0, 5, 1, 4, 2]
    shuffled = embed(model, processor, [texts[i] for i in order], [images[i] for i in order])
    torch.testing.assert_close(shuffled, right[order], atol=1e-5, rtol=0)


@torch.no_grad()
def test_embeddings_are_the_normalised_float32_mean_over_real_tokens(tiny, mixed_items):
    model, processor = tiny
    inputs = processor(text=mixed_items[0], images=mixed_items[1])
    output = model(**inputs)
    for row in range(len(mixed_items[0])):
        mean = output.last_hidden_state[row][inputs["attention_mask"][row] == 1].mean(0)
        torch.testing.assert_close(output.embeddings[row], mean / mean.norm())
    assert output.embeddings.dtype == torch.float32
    assert model.to(torch.float32)(**inputs).embeddings.unique(dim=0).shape[0] == len(mixed_items[0])


@torch.no_grad()
@pytest.mark.parametrize("experts", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_and_expert_implementations_agree(tiny, mixed_items, attention, experts):
    model, processor = tiny
    reference = with_implementation(model, "eager", "eager")
    other = with_implementation(model, attention, experts)
    assert other.config.text_config._experts_implementation == experts
    assert other.visual.config._attn_implementation == attention
    torch.testing.assert_close(
        embed(other, processor, *mixed_items), embed(reference, processor, *mixed_items), atol=1e-5, rtol=0
    )


def attention_by_bounds(module, query, key, value, attention_mask=None, scaling=None, is_causal=None, **options):
    """Flash attention as PyTorch writes it: of packed sequences by their bounds, without a mask."""
    causal = module.is_causal if is_causal is None else is_causal
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    bounds = options.get("cu_seq_lens_q")
    if bounds is None:
        assert attention_mask is None or attention_mask.all()
        bounds = torch.tensor([0, query.shape[2]])
    else:
        assert torch.equal(bounds, options["cu_seq_lens_k"]) and bounds.dtype == torch.int32
        assert bounds[-1] == query.shape[2] and bounds.diff().max() <= options["max_length_q"]
    lengths = bounds.diff().tolist()
    parts = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    attend = torch.nn.functional.scaled_dot_product_attention
    return torch.cat([attend(*part, scale=scaling, is_causal=causal) for part in parts], dim=2).transpose(1, 2), None


@torch.no_grad()
def test_packed_sequences_under_flash_attention(tiny, mixed_items, monkeypatch):
    model, processor = tiny
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", attention_by_bounds)
    flash = copy.deepcopy(model)
    for part in (flash, flash.visual, flash.language_model):
        part.config._attn_implementation_internal = "flash_attention_2"  # the setter asks for the package
    inputs = processor(text=mixed_items[0], images=mixed_items[1])
    expected, views = model.encode_views(**inputs), flash.encode_views(**inputs)
    for name in ("text_embeddings", "image_embeddings", "multimodal_embeddings"):
        torch.testing.assert_close(views[name], expected[name], atol=1e-5, rtol=0)
    for sums, wanted in zip(views.routing, expected.routing, strict=True):
        torch.testing.assert_close(sums, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
def test_encode_views_equals_three_separate_forwards(tiny, complete_items, experts):
    """In value, in every parameter's gradient, in ω and in L_aux."""
    model, processor = tiny
    texts, images = complete_items
    torch.manual_seed(1)
    directions = torch.randn(3, len(texts), model.config.text_config.hidden_size)
    batch = len(texts) // 2  # the loss reads rows as B queries and B positives

    def loss_of(model, embeddings, routing, alignment_logits, temperatures):
        total = sum((e * d).sum() for e, d in zip(embeddings, directions, strict=True))
        views = Views(embeddings, routing, alignment_logits, temperatures)
        dual = DualLevelAlignmentLoss()(
            views.rows(2 * batch), torch.arange(1, batch + 1), torch.arange(1, batch + 1),
            torch.arange(1, batch + 1)[:, None],
        )  # fmt: skip
        return total + dual.loss, dual

    class Views:
        """The six tensors of a Moon2ViewsOutput, for the first rows."""

        def __init__(self, embeddings, routing, alignment_logits, temperatures):
            self.text_embeddings, self.image_embeddings, self.multimodal_embeddings = embeddings
            self.routing, self.alignment_logits, self.temperatures = routing, alignment_logits, temperatures
            self.has_text = self.has_image = torch.ones(len(texts), dtype=torch.bool)

        def rows(self, count):
            for name in ("text_embeddings", "image_embeddings", "multimodal_embeddings", "has_text", "has_image"):
                setattr(self, name, getattr(self, name)[:count])
            gate, prob, load, tokens = self.routing
            self.routing = type(self.routing)(gate[:, :, :count], prob[:, :, :count], load[:, :, :count],
                                              tokens[:, :count])  # fmt: skip
            return self

    shared = with_implementation(model, "sdpa", experts)
    views = shared(**processor(text=texts, images=images), return_views=True)
    embeddings = (views.text_embeddings, views.image_embeddings, views.multimodal_embeddings)
    loss, dual = loss_of(shared, embeddings, views.routing, views.alignment_logits, views.temperatures)
    loss.backward()

    separate = with_implementation(model, "sdpa", experts)
    outputs, sums = [], []
    for text, image in ((texts, None), (None, images), (texts, images)):
        inputs = processor(text=text, images=image)
        output = separate(**inputs)
        outputs.append(output.embeddings)
        layers = (torch.stack(of_layers) for of_layers in (output.router_logits, output.expert_weights))
        sums.append(routing_sums(*layers, inputs["attention_mask"]))
    routing = type(views.routing)(*(torch.stack(s) for s in zip(*sums, strict=True)))
    alignment_logits = torch.stack([layer.mlp.dual_alignment.weight for layer in separate.language_model.layers])
    expected_loss, expected_dual = loss_of(separate, outputs, routing, alignment_logits, separate.temperature())
    expected_loss.backward()

    for got, expected in zip(embeddings, outputs, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    for name in ("objective_weights", "aux_loss", "objective_losses"):
        torch.testing.assert_close(getattr(dual, name), getattr(expected_dual, name), atol=1e-5, rtol=1e-5)
    for got, expected in zip(views.routing, routing, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    expected_gradients = {name: p.grad for name, p in separate.named_parameters()}
    for name, parameter in shared.named_parameters():
        expected = expected_gradients[name]
        if expected is None:
            assert parameter.grad is None, name
            continue
        assert expected.norm() > 0, f"{name} gets no gradient at all"
        assert (parameter.grad - expected).norm() <= 1e-4 * expected.norm(), name


@torch.no_grad()
def test_encode_views_of_incomplete_items(tiny, mixed_items):
    model, processor = tiny
    texts, images = mixed_items
    for side in ("right", "left"):
        inputs = processor(text=texts, images=images, padding_side=side)
        views = model.encode_views(**inputs)
        torch.testing.assert_close(views.multimodal_embeddings, model(**inputs).embeddings, atol=1e-5, rtol=0)
        assert views.has_text.tolist() == [t is not None for t in texts]
        assert views.has_image.tolist() == [i is not None for i in images]
        for row, (text, image) in enumerate(zip(texts, images, strict=True)):
            expected = torch.zeros(1, 48) if text is None else embed(model, processor, [text], None)
            torch.testing.assert_close(views.text_embeddings[row], expected[0], atol=1e-5, rtol=0)
            expected = torch.zeros(1, 48) if image is None else embed(model, processor, None, [image])
            torch.testing.assert_close(views.image_embeddings[row], expected[0], atol=1e-5, rtol=0)
        gates, probs, loads, tokens = views.routing
        assert (tokens > 0).T.tolist() == [
            [t is not None, i is not None, t is not None and i is not None] for t, i in zip(texts, images, strict=True)
        ]
        per_token = tokens[:, None].expand(-1, gates.shape[1], -1)
        for sums, total in ((gates, 1), (probs, 1), (loads, 2)):
            torch.testing.assert_close(sums.sum(-1), total * per_token)


@torch.no_grad()
def test_encode_views_without_any_image_or_any_text(tiny, make_image):
    model, processor = tiny
    views = model.encode_views(**processor(text=["red mug", "navy shoes for men"]))
    assert not views.has_image.any() and not views.image_embeddings.any()
    torch.testing.assert_close(views.text_embeddings, views.multimodal_embeddings)
    pictures = processor(images=[make_image(1), [make_image(2), make_image(3, 90, 50)]])
    views = model.encode_views(**pictures)
    assert not views.has_text.any() and not views.text_embeddings.any()
    torch.testing.assert_close(views.image_embeddings, views.multimodal_embeddings)
    torch.testing.assert_close(views.image_embeddings, model(**pictures).embeddings, atol=1e-5, rtol=0)


def test_gradients_stay_finite_where_a_view_is_missing(tiny, mixed_items):
    model = copy.deepcopy(tiny[0])
    views = model(**tiny[1](text=mixed_items[0], images=mixed_items[1]), return_views=True)
    total = (
        views.text_embeddings[:, 1].sum() + views.image_embeddings[:, 0].sum() + views.routing.gate_sums[..., 0].sum()
    )
    total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_positions_equal_qwen3_vl(tiny, mixed_items):
    model, processor = tiny
    stock = Qwen3VLModel.__new__(Qwen3VLModel)
    torch.nn.Module.__init__(stock)
    stock.config = model.config
    for side in ("right", "left"):
        inputs = processor(text=mixed_items[0], images=mixed_items[1], padding_side=side)
        expected, _ = stock.get_rope_index(
            inputs["input_ids"], inputs["mm_token_type_ids"], inputs["image_grid_thw"],
            attention_mask=inputs["attention_mask"],
        )  # fmt: skip
        images = inputs["input_ids"] == processor.image_token_id
        got = multimodal_position_ids(inputs["attention_mask"], images, inputs["image_grid_thw"], 2)
        assert torch.equal(got, expected)
        assert got.max() > 5 and got[1].ne(got[0]).any()


def test_a_dense_model_of_the_same_weights_answers_as_stock_qwen3_vl(tiny, tiny_config, mixed_items):
    """num_experts=0 is Qwen3-VL: same state dict, same hidden states, DeepStack and positions included."""
    from transformers import Qwen3VLConfig

    torch.manual_seed(2)
    model, processor = build_mini(dataclasses.replace(tiny_config, num_experts=0), ["red mug"] * 9)
    model.eval()
    text, vision = model.config.text_config.to_dict(), model.config.vision_config.to_dict()
    for sub_config in (text, vision):
        sub_config.pop("model_type")
    stock = Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision,
                                       image_token_id=processor.image_token_id)).eval()  # fmt: skip
    weights = {name: w for name, w in model.state_dict().items() if not name.startswith("temperature")}
    stock.load_state_dict(weights)
    inputs = processor(text=mixed_items[0], images=mixed_items[1])
    with torch.no_grad():
        expected, got = stock(**inputs).last_hidden_state, model(**inputs).last_hidden_state
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(got[real], expected[real], atol=1e-5, rtol=1e-5)
    views = model(**inputs, return_views=True)
    assert views.routing is None and views.alignment_logits is None


def test_renormalised_weights_sum_to_one_and_k1_keeps_a_gradient(tiny, tiny_config, mixed_items):
    model, processor = tiny
    output = model(**processor(text=mixed_items[0], images=mixed_items[1]))
    for weights in output.expert_weights:
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
        assert ((weights > 0).sum(-1) == 2).all()
    single, its_processor = build_mini(dataclasses.replace(tiny_config, num_experts_per_tok=1), ["red mug"] * 9)
    output = single(**its_processor(text=["red mug"]))
    output.embeddings[0, 0].backward()
    for layer in single.language_model.layers:
        assert layer.mlp.gate.weight.grad.abs().sum() > 0
    assert (output.expert_weights[0].sum(-1) < 1).all()


def test_gradient_checkpointing_keeps_every_gradient(tiny, complete_items):
    def gradients(checkpointing):
        model = copy.deepcopy(tiny[0]).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        views = model(**tiny[1](text=complete_items[0], images=complete_items[1]), return_views=True)
        weights = torch.linspace(-1, 1, views.routing.gate_sums.numel()).view_as(views.routing.gate_sums)
        (views.multimodal_embeddings[:, 0].sum() + (weights * views.routing.gate_sums).sum()).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    for name in plain:
        torch.testing.assert_close(plain[name], checkpointed[name], msg=name)


def test_initialisation_reaches_every_parameter(tiny_config):
    model, _ = build_mini(tiny_config, ["red mug"] * 9)
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all() and parameter.abs().max() < 5, name
        if "experts" in name or "gate" in name or "dual_alignment" in name:
            assert 0.01 < parameter.std() < 0.03, name
    torch.testing.assert_close(model.temperature(), torch.full((2,), 0.07))


def test_weights_missing_in_a_checkpoint_are_initialised(tiny, tmp_path):
    model, _ = tiny
    new = ("temperature", "gate.weight", "dual_alignment")
    state = {name: w for name, w in model.state_dict().items() if not any(part in name for part in new)}
    missing = set(model.state_dict()) - set(state)
    model.save_pretrained(tmp_path, state_dict=state)
    loaded, info = Moon2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == missing and len(missing) == 5
    for name in info["missing_keys"]:
        weight = loaded.state_dict()[name]
        assert weight.isfinite().all() and 0 < weight.abs().max() < 5, name
    torch.testing.assert_close(loaded.temperature(), torch.full((2,), 0.07))


def test_the_auto_classes_know_the_model(tiny, tmp_path, mixed_items):
    model, processor = tiny
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is Moon2Model and type(loaded.config) is Moon2Config
    with torch.no_grad():
        torch.testing.assert_close(embed(loaded, processor, *mixed_items), embed(model, processor, *mixed_items))


def test_wrong_inputs_are_refused(tiny, make_image):
    model, processor = tiny
    inputs = processor(text=["mug"], images=[make_image(0)])
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()
    inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == processor.image_token_id, 5)
    with pytest.raises(RuntimeError, match="another number of"):
        model(**inputs)


@torch.no_grad()
def test_given_choices_send_every_token_to_its_experts_again(tiny, mixed_items):
    model, processor = tiny
    inputs = processor(text=mixed_items[0], images=mixed_items[1])
    first = model.encode_views(**inputs, return_expert_choices=True)
    other = copy.deepcopy(model)
    for layer in other.language_model.layers:
        layer.mlp.gate.weight.neg_()  # of its own accord it would choose others
    free = other.encode_views(**inputs, return_expert_choices=True)
    replayed = other.encode_views(**inputs, expert_choices=first.expert_choices, return_expert_choices=True)
    outputs = (output.expert_choices for output in (first, replayed, free))
    for chosen, again, by_itself in zip(*outputs, strict=True):
        assert (chosen.sum(-1) == 2).all() and torch.equal(chosen, again) and not torch.equal(chosen, by_itself)
    assert torch.equal(replayed.routing.expert_counts, first.routing.expert_counts)
    same = model.encode_views(**inputs, expert_choices=first.expert_choices)
    assert torch.equal(same.multimodal_embeddings, first.multimodal_embeddings)


def test_a_batch_of_texts_gives_every_weight_a_gradient_in_training(tiny):
    model, processor = copy.deepcopy(tiny[0]).train(), tiny[1]
    inputs = processor(text=["red mug", "navy shoes"])
    outputs = model(**inputs, return_views=True)
    with torch.no_grad():
        torch.testing.assert_close(outputs.text_embeddings, model.eval()(**inputs).embeddings, atol=1e-6, rtol=1e-5)
    (outputs.text_embeddings[:, 0].sum() + outputs.alignment_logits.sum() + outputs.temperatures.sum()).backward()
    assert not [name for name, weight in model.named_parameters() if weight.grad is None]


@torch.no_grad()
def test_embedded_tokens_stand_for_their_ids(tiny, mixed_items):
    model, processor = tiny
    inputs = processor(text=mixed_items[0], images=mixed_items[1])
    expected = model(**inputs).embeddings
    embedded = model.get_input_embeddings()(inputs.pop("input_ids"))
    torch.testing.assert_close(model(**inputs, inputs_embeds=embedded).embeddings, expected, atol=1e-6, rtol=1e-5)


def test_mean_pool_of_an_empty_row_is_zero_with_finite_gradient():
    hidden = torch.randn(2, 3, 4, requires_grad=True)
    pooled = mean_pool(hidden, torch.tensor([[1, 1, 0], [0, 0, 0]]))
    assert not pooled[1].any()
    pooled.sum().backward()
    assert hidden.grad.isfinite().all()


@pytest.mark.parametrize("scale", [1e4, 1e20, 1e37])
@pytest.mark.parametrize("k", [1, 2])
def test_the_gate_of_huge_bfloat16_states_is_finite_and_sums_to_one(tiny_config, scale, k):
    config = build_mini(dataclasses.replace(tiny_config, num_experts_per_tok=k), ["red mug"] * 9)[0].config.text_config
    gate = Moon2TopKGate(config)
    torch.manual_seed(0)
    torch.nn.init.normal_(gate.weight, std=0.02)
    hidden = (torch.randn(50, config.hidden_size) * scale).bfloat16().requires_grad_()
    logits, weights, index = gate.bfloat16()(hidden)
    assert logits.dtype == weights.dtype == torch.float32
    assert logits.abs().max() > 100 and logits.isfinite().all() and weights.isfinite().all()
    probs = logits.softmax(-1)
    torch.testing.assert_close(probs.sum(-1), torch.ones(50))
    torch.testing.assert_close(weights.sum(-1), probs.gather(-1, index).sum(-1) if k == 1 else torch.ones(50))
    (weights * torch.arange(1.0, k + 1)).sum().backward()
    assert hidden.grad.isfinite().all() and gate.weight.grad.isfinite().all()


@pytest.mark.parametrize("experts", ["eager", "grouped_mm", "batched_mm"])
def test_experts_that_no_token_visits_have_no_gradient_and_spoil_none(tiny, complete_items, experts):
    model = with_implementation(tiny[0], experts=experts).train()
    with torch.no_grad():  # every token, whatever it is, goes to experts 1 and 3
        for layer in model.language_model.layers:
            layer.post_attention_layernorm.weight.zero_()
            layer.post_attention_layernorm.weight[0] = 1.0
            layer.mlp.gate.weight.zero_()
            layer.mlp.gate.register_forward_pre_hook(lambda gate, inputs: (inputs[0].abs(), *inputs[1:]))
            layer.mlp.gate.weight[:, 0] = torch.tensor([-9.0, 9.0, -9.0, 5.0])
    count = len(complete_items[0])
    views = model(**tiny[1](text=complete_items[0] * 2, images=complete_items[1] * 2), return_views=True)
    keys = torch.arange(1, count + 1)
    result = DualLevelAlignmentLoss()(views, keys, keys, keys[:, None])
    result.loss.backward()
    assert result.loss.isfinite() and result.aux_loss.isfinite() and result.aux_loss > 1
    assert not result.expert_load[:, [0, 2]].any()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    for layer in model.language_model.layers:
        for weight in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
            assert not weight.grad[[0, 2]].any()
        assert layer.mlp.experts.down_proj.grad[[1, 3]].flatten(1).any(dim=1).all()


@pytest.mark.parametrize("logarithm", [-1000.0, -5.0, 5.0, 88.0, 89.0, 1000.0])
def test_temperatures_stay_in_their_bounds_with_finite_gradients(tiny, complete_items, logarithm):
    model = copy.deepcopy(tiny[0]).train()
    with torch.no_grad():
        model.temperature.weight.fill_(logarithm)
    bound = 0.01 if logarithm < 0 else 100.0
    torch.testing.assert_close(model.temperature(), torch.full((2,), bound))
    assert model.temperature().min() >= 0.01 - 1e-9
    count = len(complete_items[0])
    views = model(**tiny[1](text=complete_items[0] * 2, images=complete_items[1] * 2), return_views=True)
    keys = torch.arange(1, count + 1)
    result = DualLevelAlignmentLoss()(views, keys, keys, keys[:, None])
    result.loss.backward()
    assert result.loss.isfinite() and result.objective_losses.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(("start", "wanted"), [(0.0099, 0.2), (0.001, 0.2), (101.0, 20.0), (1e9, 20.0)])
def test_a_temperature_that_crossed_a_bound_comes_back_and_goes_no_further(start, wanted):
    temperature = Moon2Temperature()
    with torch.no_grad():
        temperature.weight.fill_(math.log(start))
    bound = 0.01 if start < 1 else 100.0
    for target, moves in ((bound**2, False), (wanted, True)):  # beyond the bound, and within
        (gradient,) = torch.autograd.grad((temperature().log() - math.log(target)).square().sum(), temperature.weight)
        assert bool(gradient.any()) == moves
    optimizer = torch.optim.AdamW([temperature.weight], lr=0.05, weight_decay=0.0)
    for _ in range(700):
        optimizer.zero_grad()
        (temperature().log() - math.log(wanted)).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(temperature().detach(), torch.full((2,), wanted), rtol=1e-2, atol=0)


def test_hidden_states_of_zero_are_a_vector_of_zero_with_a_finite_gradient(tiny, complete_items):
    model = copy.deepcopy(tiny[0]).train()
    with torch.no_grad():
        model.language_model.norm.weight.zero_()
    inputs = tiny[1](text=complete_items[0] * 2, images=complete_items[1] * 2)
    assert not model(**inputs).embeddings.any()
    views = model(**inputs, return_views=True)
    count = len(complete_items[0])
    keys = torch.arange(1, count + 1)
    result = DualLevelAlignmentLoss(matryoshka_dims=[16])(views, keys, keys, keys[:, None])
    result.loss.backward()
    log_count = torch.full((4,), float(count)).log()  # all candidates are alike
    torch.testing.assert_close(result.objective_losses, log_count)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_hidden_states_and_attentions_on_request(tiny, mixed_items):
    model, processor = tiny
    inputs = processor(text=mixed_items[0], images=mixed_items[1])
    eager = with_implementation(model, "eager")
    output = eager(**inputs, output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 3 and len(output.attentions) == 2
    assert output.hidden_states[1].shape == output.last_hidden_state.shape
    length = inputs["input_ids"].shape[1]
    assert output.attentions[0].shape == (6, 2, length, length)


def test_routing_stays_in_float32_under_autocast_and_in_bfloat16(tiny, complete_items):
    model, processor = tiny
    inputs = processor(text=complete_items[0], images=complete_items[1])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mixed = model.encode_views(**inputs)
    half = copy.deepcopy(model).to(torch.bfloat16)
    with torch.no_grad():
        exact, rounded = model.encode_views(**inputs), half.encode_views(**inputs)
    for views in (mixed, rounded):
        gates, probs, counts, tokens = views.routing
        assert gates.dtype == probs.dtype == views.multimodal_embeddings.dtype == torch.float32
        for sums in (gates, probs):  # sums of weights that add up to one, so a token count to float32 precision
            torch.testing.assert_close(sums.sum(-1), tokens[:, None].expand(-1, 2, -1), atol=1e-4, rtol=0)
        cosine = (views.multimodal_embeddings * exact.multimodal_embeddings).sum(-1)
        assert cosine.min() > 0.98
