"""The cached loss gives every parameter the gradient of the whole batch."""

from __future__ import annotations

import copy

import pytest
import torch

from modeling_moon2 import Moon2Routing, Moon2ViewsOutput
from moon2_training.cached_loss import KEYS, ChunkReader, RandomState, cached_backward
from moon2_training.collator import Moon2Collator
from moon2_training.filtering import SampleFilter
from moon2_training.losses import DualLevelAlignmentLoss
from moon2_training.trainer import Moon2Trainer
from moon2_training.trainer_config import Moon2TrainingArguments
from moon2_training.triplets import TripletDataset

BATCH = 7
LOSSES = {
    "learned": {"aux_coef": 0.5},
    "filtered": {"sample_filter": SampleFilter(warmup=0.0), "matryoshka_dims": [16]},
}


@pytest.fixture(scope="module")
def triplets(shop):
    """Seven triplets with explicit negatives, some with several images, some without an image or a text."""
    dataset = TripletDataset(shop, negatives="explicit", max_images_per_item=3)
    return [dataset[index] for index in (0, 1, 2, 3, 4, 6, 9)]


@pytest.fixture
def model(tiny_model):
    return copy.deepcopy(tiny_model).train()


def chunked(triplets, collator, size):
    chunks = [triplets[start : start + size] for start in range(0, len(triplets), size)]
    return lambda: (collator(chunk) for chunk in chunks), [len(chunk) for chunk in chunks]


def gradients_of(model):
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def assert_gradients_close(model, expected, tolerance=1e-5):
    got = gradients_of(model)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        error = (got[name] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert error < tolerance, f"{name}: {error}"


def whole_batch(model, triplets, collator, loss):
    inputs = collator(triplets)
    keys = {name: inputs.pop(name) for name in KEYS}
    result = loss(model(**inputs, return_views=True), **keys)
    result.loss.backward()
    return result


def join_rows(outputs, order):
    names = ("text_embeddings", "image_embeddings", "multimodal_embeddings", "has_text", "has_image")
    dims = (2, 2, 2, 1)
    sums = [torch.cat([o.routing[i] for o in outputs], dim).index_select(dim, order) for i, dim in enumerate(dims)]
    return Moon2ViewsOutput(
        **{name: torch.cat([o[name] for o in outputs])[order] for name in names},
        routing=Moon2Routing(*sums),
        alignment_logits=outputs[0].alignment_logits,
        temperatures=outputs[0].temperatures,
    )


@pytest.mark.parametrize("options", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("size", [1, 2, 3, BATCH])
def test_every_gradient_is_that_of_the_whole_batch(model, tiny_processor, triplets, size, options):
    collator, loss = Moon2Collator(tiny_processor), DualLevelAlignmentLoss(**options)
    reference = copy.deepcopy(model)
    expected = whole_batch(reference, triplets, collator, loss)
    chunks, sizes = chunked(triplets, collator, size)
    result, temperatures = cached_backward(model, chunks, sizes, lambda views, keys: loss(views, **keys))
    torch.testing.assert_close(result.loss, expected.loss.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(result.objective_weights, expected.objective_weights, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(temperatures, reference.temperature().detach())
    assert_gradients_close(model, gradients_of(reference))
    for part in ("visual", "gate", "dual_alignment", "experts", "temperature"):
        assert any(part in name and gradient.any() for name, gradient in gradients_of(model).items()), part


def test_with_dropout_both_passes_drop_the_same(model, tiny_processor, triplets):
    for layer in model.language_model.layers:
        layer.self_attn.attention_dropout = 0.3
    model.set_attn_implementation("eager")
    collator, loss = Moon2Collator(tiny_processor), DualLevelAlignmentLoss()
    reference = copy.deepcopy(model)
    chunks, sizes = chunked(triplets, collator, 3)

    torch.manual_seed(5)
    outputs = []
    for inputs in chunks():  # the same chunks, their graphs kept
        outputs.append(reference(**{n: v for n, v in inputs.items() if n not in KEYS}, return_views=True))
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    rows = [torch.arange(start, start + size) + role * BATCH
            for start, size in zip(starts, sizes, strict=True) for role in range(3)]  # fmt: skip
    keys = {name: collator(triplets)[name] for name in KEYS}
    result = loss(join_rows(outputs, torch.cat(rows).argsort()), **keys)
    result.loss.backward()

    torch.manual_seed(5)
    cached, _ = cached_backward(model, chunks, sizes, lambda views, keys: loss(views, **keys))
    torch.testing.assert_close(cached.loss, result.loss.detach(), atol=1e-5, rtol=1e-5)
    assert_gradients_close(model, gradients_of(reference))
    torch.manual_seed(6)
    other, _ = cached_backward(model, chunks, sizes, lambda views, keys: loss(views, **keys))
    assert abs(other.loss - cached.loss) > 1e-3


def test_pass_two_replays_the_choices_of_pass_one(model, tiny_processor, triplets):
    collator, loss = Moon2Collator(tiny_processor), DualLevelAlignmentLoss()
    chunks, sizes = chunked(triplets, collator, 3)
    seen = []

    def watched(**inputs):
        outputs = model(**inputs | {"return_expert_choices": True})
        seen.append(outputs.expert_choices)
        if len(seen) == len(sizes):  # between the passes the gate changes its mind
            with torch.no_grad():
                for layer in model.language_model.layers:
                    layer.mlp.gate.weight.neg_()
        return outputs

    cached_backward(watched, chunks, sizes, lambda views, keys: loss(views, **keys))
    for one, two in zip(seen[: len(sizes)], seen[len(sizes) :], strict=True):
        assert torch.equal(one, two)


def test_chunks_are_read_ahead_in_order_and_not_all_at_once():
    read = []

    def collate(examples):
        return list(examples)

    reader = ChunkReader(lambda key: read.append(key) or key * 10, collate, num_threads=2)
    chunks = [[1, 2], [3], [4, 5], [6], [7]]
    iterator = reader(chunks)
    assert next(iterator) == [10, 20] and len(read) <= 5
    assert list(iterator) == [[30], [40, 50], [60], [70]]


def test_random_state_comes_back():
    state = RandomState(torch.device("cpu"))
    first = torch.rand(3)
    state.restore()
    assert torch.equal(torch.rand(3), first)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_trainer_takes_the_same_step_with_and_without(tiny, shop, tmp_path, accumulation):
    models = []
    for size in (0, 4):
        model = copy.deepcopy(tiny[0])
        model.gradient_checkpointing_enable()
        arguments = Moon2TrainingArguments(
            tmp_path,
            per_device_train_batch_size=6,
            gradient_accumulation_steps=accumulation,
            cached_chunk_size=size,
            max_steps=2,
            learning_rate=1e-2,
            optim="sgd",
            max_grad_norm=0.0,
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
        )
        trainer = Moon2Trainer(model, arguments, train_dataset=shop, processing_class=tiny[1])
        trainer.train()
        models.append((model, trainer.state.log_history))
    (plain, plain_log), (cached, cached_log) = models
    for (name, one), (_, other) in zip(plain.named_parameters(), cached.named_parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4, msg=name)
    assert plain_log[-1]["train_loss"] == pytest.approx(cached_log[-1]["train_loss"], rel=1e-4)


def test_bfloat16_gradients_point_the_same_way(model, tiny_processor, triplets):
    collator, loss = Moon2Collator(tiny_processor), DualLevelAlignmentLoss()
    reference = copy.deepcopy(model)

    def autocast(module):
        def encode(**inputs):
            with torch.autocast("cpu", torch.bfloat16):
                return module(**inputs)

        return encode

    whole_batch(reference, triplets, collator, loss)
    chunks, sizes = chunked(triplets, collator, 2)
    cached_backward(autocast(model), chunks, sizes, lambda views, keys: loss(views, **keys))
    flat = [torch.cat([g.flatten() for g in gradients_of(m).values()]) for m in (model, reference)]
    assert torch.nn.functional.cosine_similarity(*flat, dim=0) > 0.98
