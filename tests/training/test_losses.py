from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_batches import IMAGE, MULTIMODAL, TEXT, Batch, assert_close, make_batch, sum_tokens
from reference_loss import reference
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_moon2 import ALIGNMENT_OBJECTIVES, Moon2ViewsOutput
from moon2_training import similarity_blocks
from moon2_training.contrastive import inter_product_loss, intra_product_loss, negative_mask
from moon2_training.filtering import MarginSchedule, SampleFilter
from moon2_training.losses import (
    OBJECTIVES,
    DualLevelAlignmentLoss,
    split_roles,
)
from moon2_training.memory_queue import MemoryQueue
from moon2_training.router_losses import load_balancing_loss, objective_weights, sparsity_loss

SEEDS = (2, 4, 13)  # of the batches compared with the reference
WAYS_TO_WEIGH = {
    "as published": {},
    "balanced": {"objective_weighting": "balanced"},
    "filtered": {"sample_filter": SampleFilter(warmup=0.0)},
    "dropped": {"sample_filter": SampleFilter(threshold=0.999, warmup=0.0, weighting="drop"), "matryoshka_dims": [3]},
}


@pytest.mark.parametrize("explicit", [False, True], ids=["in_batch", "explicit"])
@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (SEEDS[0], {}),
        (SEEDS[1], {"objective_floor": 0.3, "aux_coef": 0.5, "sparsity_coef": 0.25}),
        (SEEDS[2], {"objective_weighting": "uniform"}),
    ],
)
def test_value_and_gradients_equal_the_reference(seed: int, options: dict, explicit: bool) -> None:
    batch = make_batch(seed, explicit=explicit)
    output = DualLevelAlignmentLoss(**options)(batch.views(), *batch.keys)
    loss, objective_losses, weights, served, aux, sparsity = reference(
        batch,
        learned=options.get("objective_weighting") != "uniform",
        floor=options.get("objective_floor", 0.0),
        aux=options.get("aux_coef", 0.01),
        sparsity=options.get("sparsity_coef", 0.01),
    )
    assert output.objectives == (OBJECTIVES if explicit else OBJECTIVES[:4])
    assert output.served.tolist() == served == [True] * len(output.objectives)
    assert_close(output.objective_losses, objective_losses)
    assert_close(output.objective_weights, weights)
    assert_close(output.aux_loss, aux)
    assert_close(output.sparsity_loss, sparsity)
    assert_close(output.loss, loss)
    gradients = torch.autograd.grad(output.loss, batch.leaves, allow_unused=True)
    expected = torch.autograd.grad(loss, batch.leaves, allow_unused=True)
    for gradient, wanted, leaf in zip(gradients, expected, batch.leaves, strict=True):
        zeros = torch.zeros_like(leaf)
        assert_close(zeros if gradient is None else gradient, zeros if wanted is None else wanted)


def test_of_a_large_batch_no_more_than_a_block_of_similarities_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_batch(1, batch_size=64, explicit=False, num_products=90)
    loss = DualLevelAlignmentLoss(sample_filter=SampleFilter(warmup=0.0), matryoshka_dims=[3])

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            for tensor in made if isinstance(made, tuple | list) else [made]:
                if isinstance(tensor, Tensor) and tensor.is_floating_point():
                    self.numbers = max(self.numbers, tensor.numel())
            return made

    largest, found = [], []
    for at_once in (1 << 22, 9 * 64):
        monkeypatch.setattr(similarity_blocks, "SIMILARITIES_AT_ONCE", at_once)
        with Largest() as largest_of_all:
            output = loss(batch.views(dense=True), *batch.keys, progress=0.5)
            gradient = torch.autograd.grad(output.loss, batch.embeddings)[0]
        largest.append(largest_of_all.numbers)
        found.append((output.filtering.phi, output.loss, gradient))
    assert largest == [64 * 64, batch.embeddings.numel()]
    for whole, blocks in zip(*found, strict=True):
        assert_close(blocks, whole)


@pytest.mark.parametrize("explicit", [False, True], ids=["in_batch", "explicit"])
@pytest.mark.parametrize("weighting", ["linear", "drop"])
def test_filtered_triplets_weigh_as_in_the_reference(explicit: bool, weighting: str) -> None:
    batch = make_batch(SEEDS[0], batch_size=6, explicit=explicit)
    kappa, threshold, margin = 5.0, 0.6 if explicit else 0.45, MarginSchedule(0.1, -0.3, "linear")
    sample_filter = SampleFilter(threshold, kappa, margin, warmup=0.0, weighting=weighting)
    output = DualLevelAlignmentLoss(sample_filter=sample_filter)(batch.views(), *batch.keys, progress=0.25)

    r, triplet_weights = batch.views().multimodal_embeddings.detach(), []
    for b in range(6):
        wrong = [6 + b] if explicit else [
            n for n in range(6)
            if batch.product_keys[n] not in batch.positive_keys[b] and batch.title_keys[n] != batch.title_keys[b]
        ]  # fmt: skip
        against = sum(float(r[b] @ r[6 + n]) for n in wrong) / len(wrong)
        phi = 1 / (1 + math.exp(-kappa * (float(r[b] @ r[6 + b]) - against - 0.0)))  # m̄ is 0 a quarter of the way
        assert float(output.filtering.phi[b]) == pytest.approx(phi, abs=1e-9)
        assert bool(output.filtering.kept[b]) == (phi >= threshold)
        triplet_weights.append(1.0 if phi >= threshold else phi / threshold if weighting == "linear" else 0.0)
    assert 0 < sum(weight == 1 for weight in triplet_weights) < 6
    loss, objective_losses, *_ = reference(batch, triplet_weights=triplet_weights)
    assert_close(output.objective_losses, objective_losses)
    assert_close(output.loss, loss)
    gradients = torch.autograd.grad(output.loss, batch.leaves)
    for gradient, wanted in zip(gradients, torch.autograd.grad(loss, batch.leaves), strict=True):
        assert_close(gradient, wanted)


def test_the_filter_can_leave_the_intra_product_terms_alone() -> None:
    batch = make_batch(SEEDS[0], batch_size=6, explicit=True)
    options = {"sample_filter": SampleFilter(warmup=0.0, kappa=5.0)}
    unfiltered, everywhere, inter = (
        DualLevelAlignmentLoss(**given)(batch.views(), *batch.keys).objective_losses
        for given in ({}, options, options | {"filter_scope": "inter"})
    )
    assert_close(inter[:3], everywhere[:3])
    assert_close(inter[3:], unfiltered[3:])
    assert (everywhere - unfiltered).abs().min() > 1e-3
    with pytest.raises(ValueError, match="filter_scope='text'; give one of all, inter"):
        DualLevelAlignmentLoss(filter_scope="text")


@pytest.mark.parametrize("explicit", [False, True], ids=["in_batch", "explicit"])
def test_a_photo_made_from_the_product_is_no_evidence_for_the_click(explicit: bool) -> None:
    batch = make_batch(SEEDS[0], batch_size=6, explicit=explicit)
    made = batch.has[IMAGE, :6].clone()
    made[0] = False  # a photo of the shopper's own
    loss = DualLevelAlignmentLoss(sample_filter=SampleFilter(warmup=0.0, kappa=3.0))
    by_all, by_evidence = (
        loss(batch.views(), *batch.keys, made_photos=photos).filtering.phi for photos in (None, made)
    )
    text_of_query = batch.embeddings[TEXT, :6].detach()
    by_text = batch._replace(embeddings=batch.embeddings.detach().clone())
    by_text.embeddings[MULTIMODAL, :6] = text_of_query  # the filter's multimodal view is the text, for all
    by_text = loss(by_text.views(), *batch.keys).filtering.phi
    judged_by_text = made & batch.has[TEXT, :6]
    assert 0 < judged_by_text.sum() < 6
    assert_close(by_evidence, torch.where(judged_by_text, by_text, by_all))


@pytest.mark.parametrize("explicit", [False, True], ids=["in_batch", "explicit"])
def test_earlier_items_are_negatives_as_in_the_reference(explicit: bool) -> None:
    batch = make_batch(SEEDS[1], explicit=explicit)
    memory = MemoryQueue(size=9, width=6, max_age=3).double()
    old = torch.nn.functional.normalize(torch.randn(8, 6, generator=torch.Generator().manual_seed(1)).double(), dim=-1)
    products = torch.tensor([50, int(batch.product_keys[0]), 51, 52, 53, int(batch.product_keys[2]), 54, 55])
    titles = torch.tensor([90, 91, int(batch.title_keys[1]), 93, 94, 95, 96, 97])
    has_text = torch.tensor([True, True, True, False, True, True, True, True])
    memory.push(old[:2], old[:2].flip(1), has_text[:2], products[:2], titles[:2], step=1)  # too old at step 5
    memory.push(old[2:], old[2:].flip(1), has_text[2:], products[2:], titles[2:], step=2)
    output = DualLevelAlignmentLoss()(batch.views(), *batch.keys, memory=memory, step=5)
    earlier = list(zip(old, old.flip(1), has_text.tolist(), products.tolist(), titles.tolist(), strict=True))[2:]
    loss, objective_losses, *_ = reference(batch, earlier=earlier)
    assert_close(output.objective_losses, objective_losses)
    gradients = torch.autograd.grad(output.loss, batch.leaves)
    for gradient, wanted in zip(gradients, torch.autograd.grad(loss, batch.leaves), strict=True):
        assert_close(gradient, wanted)
    assert output.loss > DualLevelAlignmentLoss()(batch.views(), *batch.keys).loss
    assert len(output.items.multimodal) == len(batch.product_keys) and not output.items.multimodal.requires_grad


def test_balanced_weights_follow_the_losses_without_a_gradient() -> None:
    batch = make_batch(SEEDS[0])
    output = DualLevelAlignmentLoss(objective_weighting="balanced", aux_coef=0, sparsity_coef=0)(
        batch.views(), *batch.keys
    )
    losses = output.objective_losses
    assert_close(output.objective_weights, 5 * losses / losses.sum())
    (gradient,) = torch.autograd.grad(output.loss, batch.alignment_logits, allow_unused=True)
    assert gradient is None or not gradient.any()
    half = DualLevelAlignmentLoss(objective_weighting="balanced", objective_floor=0.5)(batch.views(), *batch.keys)
    assert_close(half.objective_weights, 0.5 + 2.5 * losses / losses.sum())


def test_matryoshka_takes_the_mean_over_the_dimensions() -> None:
    batch = make_batch(SEEDS[0])
    nested = DualLevelAlignmentLoss(matryoshka_dims=[2, 4])(batch.views(), *batch.keys)
    of_each = []
    for dim in (2, 4, 6):
        cut = torch.nn.functional.normalize(batch.embeddings[..., :dim], dim=-1)
        shorter = batch._replace(embeddings=cut)
        of_each.append(DualLevelAlignmentLoss()(shorter.views(), *batch.keys).objective_losses)
    assert_close(nested.objective_losses, torch.stack(of_each).mean(0))


@pytest.mark.parametrize("explicit", [False, True], ids=["in_batch", "explicit"])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_compared_batches_hold_the_hard_cases(seed: int, explicit: bool) -> None:
    batch = make_batch(seed, explicit=explicit)
    size, products, titles = len(batch.positive_keys), batch.product_keys.tolist(), batch.title_keys.tolist()
    pairs = [(a, b) for a in range(len(products)) for b in range(a)]
    assert any(products[a] == products[b] for a, b in pairs)
    assert any(products[a] != products[b] and titles[a] == titles[b] for a, b in pairs)
    further = [set(keys) - {0, products[b]} for b, keys in enumerate(batch.positive_keys.tolist())]
    assert any(keys & set(products) for keys in further)
    for missing in (~batch.has[:, :size], ~batch.has[:, size:]):  # of queries, of items
        assert missing[TEXT].any() and missing[IMAGE].any()


def test_float32_stays_close_to_the_float64_reference() -> None:
    batch = make_batch(3, dtype=torch.float32)
    output = DualLevelAlignmentLoss()(batch.views(), *batch.keys)
    assert output.loss.dtype == output.objective_weights.dtype == torch.float32
    assert_close(output.loss, reference(make_batch(3))[0], 1e-5)


def test_omega_worked_out_by_hand() -> None:
    # B = 2 rows [q_1, q_2, p_1, p_2], L = 2, Z = 2, 4 token slots. Given is G̃ of expert 1; expert 2 has the rest.
    # Slots after a row's length are padding and hold 0.77.
    #                    layer 1             layer 2
    # q_1 text           1.0 0.5             0.2 0.3
    # q_2 text           0.9                 0.4
    # q_2 image          0.6 0.2             0.0 0.5
    # p_1 text           0.2                 1.0
    # p_1 image          0.6 0.5 0.7         0.4 0.2 0.0
    # p_2 text           0.9 0.9             0.9 0.9           no image, so p_2 is no token of intra_positive
    first = torch.full((3, 2, 4, 4), 0.77)  # (view, layer, row, token)
    lengths = torch.zeros(3, 4, dtype=torch.long)
    for view, row, per_layer in [
        (TEXT, 0, [[1.0, 0.5], [0.2, 0.3]]),
        (TEXT, 1, [[0.9], [0.4]]),
        (IMAGE, 1, [[0.6, 0.2], [0.0, 0.5]]),
        (TEXT, 2, [[0.2], [1.0]]),
        (IMAGE, 2, [[0.6, 0.5, 0.7], [0.4, 0.2, 0.0]]),
        (TEXT, 3, [[0.9, 0.9], [0.9, 0.9]]),
    ]:
        lengths[view, row] = len(per_layer[0])
        first[view, :, row, : lengths[view, row]] = torch.tensor(per_layer)
    gates = torch.stack([first, 1 - first], dim=-1)
    # p over (inter_text, inter_image, intra_positive); the other two columns are not active and must not matter.
    preferences = torch.tensor([[[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]], [[0.4, 0.4, 0.2], [0.1, 0.5, 0.4]]])
    alignment_logits = torch.full((2, 2, 5), 50.0)
    alignment_logits[..., [0, 1, 3]] = preferences.log()
    outputs = Moon2ViewsOutput(
        *torch.nn.functional.normalize(torch.randn(3, 4, 3), dim=-1),
        has_text=torch.tensor([True, True, True, True]),
        has_image=torch.tensor([False, True, True, False]),
        routing=sum_tokens(gates, gates, lengths),
        alignment_logits=alignment_logits,
        temperatures=torch.tensor([0.1, 0.1]),
    )
    loss = DualLevelAlignmentLoss(objectives=("inter_text", "inter_image", "intra_positive"))
    output = loss(outputs, torch.tensor([1, 2]), torch.tensor([1, 2]), torch.tensor([[1], [2]]))
    # text:  mean G̃ = (1.0+0.5+0.9)/3 = 0.8 and (0.2+0.3+0.4)/3 = 0.3
    #        ω = ½[(0.8·0.5 + 0.2·0.2) + (0.3·0.4 + 0.7·0.1)]    = ½[0.44 + 0.19]  = 0.315
    # image: mean G̃ = (0.6+0.2)/2 = 0.4 and (0.0+0.5)/2 = 0.25
    #        ω = ½[(0.4·0.3 + 0.6·0.2) + (0.25·0.4 + 0.75·0.5)]  = ½[0.24 + 0.475] = 0.3575
    # intra: mean G̃ = (0.2+0.6+0.5+0.7)/4 = 0.5 and (1.0+0.4+0.2+0.0)/4 = 0.4
    #        ω = ½[(0.5·0.2 + 0.5·0.6) + (0.4·0.2 + 0.6·0.4)]    = ½[0.40 + 0.32]  = 0.36
    assert_close(output.objective_weights, torch.tensor([3 * 0.315, 3 * 0.3575, 3 * 0.36]), 1e-6)


def test_expert_load_and_routing_entropy_by_hand() -> None:
    # q has text (2 tokens) alone, p an image (1 token) alone. Load counts choices, entropy takes the mean of G.
    gates = torch.zeros(3, 2, 2, 2, 2)
    probs = torch.zeros(3, 2, 2, 2, 2)
    gates[TEXT, :, 0] = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]])  # both, then the first only
    probs[TEXT, :, 0] = torch.tensor([[[0.6, 0.4], [0.4, 0.6]], [[0.8, 0.2], [0.7, 0.3]]])  # means ½ ½ and ¾ ¼
    gates[IMAGE, :, 1, 0] = torch.tensor([0.0, 1.0])
    probs[IMAGE, :, 1, 0] = torch.tensor([0.0, 1.0])
    outputs = Moon2ViewsOutput(
        *torch.nn.functional.normalize(torch.randn(3, 2, 3), dim=-1),
        has_text=torch.tensor([True, False]),
        has_image=torch.tensor([False, True]),
        routing=sum_tokens(gates, probs, torch.tensor([[2, 0], [0, 1], [0, 0]])),
        alignment_logits=torch.zeros(2, 2, 5),
        temperatures=torch.tensor([0.1, 0.1]),
    )
    output = DualLevelAlignmentLoss()(outputs, torch.tensor([1]), torch.tensor([1]), torch.tensor([[1]]))
    assert_close(output.expert_load, torch.tensor([[0.75, 0.25], [0.0, 1.0], [0.0, 0.0]]), 1e-6)
    quarter = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert_close(output.routing_entropy, torch.tensor([(math.log(2) + quarter) / 2, 0.0, 0.0]), 1e-6)


def test_the_objectives_are_the_columns_of_w() -> None:
    assert tuple(ALIGNMENT_OBJECTIVES) == OBJECTIVES


def test_pure_functions_pass_gradcheck() -> None:
    batch = make_batch(4)
    query, items = split_roles(batch.views(), 5)[0], batch.embeddings[:, 5:]
    negatives = negative_mask(*batch.keys, batch.title_keys[:5])
    epsilon = batch.temperatures[0]
    routing = batch.views().routing
    shape = (5, 2, 4)  # (M, L, Z)
    sums = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    counts = torch.tensor([3.0, 0.0, 5.0, 1.0, 2.0], dtype=torch.float64)
    logits = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    for function, inputs in [
        (lambda q, c, e: inter_product_loss(q, c, negatives, e), (query.text, items[MULTIMODAL], epsilon)),
        (lambda i, t, e: intra_product_loss(i, t, 5, negatives, e), (items[IMAGE, 5:], items[TEXT], epsilon)),
        (lambda g, w: objective_weights(g, counts, w), (sums, logits)),
        (lambda p: load_balancing_loss(routing.expert_counts, p, routing.token_counts), (routing.prob_sums,)),
        (sparsity_loss, (logits,)),
    ]:
        assert torch.autograd.gradcheck(function, [x.detach().requires_grad_() for x in inputs])


def test_split_roles_gives_every_tensor_its_rows() -> None:
    outputs = make_batch(0, batch_size=2).views()
    for i, role in enumerate(split_roles(outputs, 2)):
        rows = slice(2 * i, 2 * i + 2)
        for got, whole in [
            (role.text, outputs.text_embeddings),
            (role.image, outputs.image_embeddings),
            (role.multimodal, outputs.multimodal_embeddings),
            (role.has_text, outputs.has_text),
            (role.has_image, outputs.has_image),
        ]:
            assert torch.equal(got, whole[rows])
        for got, whole in zip(role.routing[:3], outputs.routing[:3], strict=True):
            assert torch.equal(got, whole[:, :, rows])
        assert torch.equal(role.routing.token_counts, outputs.routing.token_counts[:, rows])
    assert split_roles(make_batch(0, batch_size=2, explicit=False).views(), 2)[2] is None


def test_an_objective_nobody_serves_is_left_out() -> None:
    has = torch.ones(2, 15, dtype=torch.bool)
    has[IMAGE, :5] = False  # text queries only
    batch = make_batch(0, has=has)
    output = DualLevelAlignmentLoss(aux_coef=0, sparsity_coef=0)(batch.views(), *batch.keys)
    assert output.served.tolist() == [True, False, False, True, True]
    assert output.objective_losses[1:3].tolist() == [0, 0]
    assert_close(output.objective_weights[1:3], torch.ones(2))
    served = output.served
    assert_close(output.loss, (output.objective_losses * output.objective_weights)[served].sum())
    gradients = torch.autograd.grad(output.loss, [batch.embeddings, batch.gates, batch.alignment_logits])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[0][[IMAGE, MULTIMODAL], :5].any() and gradients[0][TEXT, :5].any()


def test_without_negatives_their_column_of_w_is_out_of_the_softmax() -> None:
    batch = make_batch(0, explicit=False)
    with torch.no_grad():
        batch.alignment_logits[..., 4] = 30.0  # in the softmax it would take nearly all of the weight
    output = DualLevelAlignmentLoss()(batch.views(), *batch.keys)
    assert output.objectives == OBJECTIVES[:4]
    assert 0.5 < output.objective_weights.mean() < 2
    gradient = torch.autograd.grad(output.loss, batch.alignment_logits)[0]
    assert not gradient[..., 4].any() and gradient[..., :4].all()


def test_chosen_objectives_alone_are_served_in_the_usual_order() -> None:
    batch = make_batch(0)
    whole = DualLevelAlignmentLoss(objective_weighting="uniform")(batch.views(), *batch.keys)
    some = DualLevelAlignmentLoss(objectives=["intra_negative", "inter_image"], objective_weighting="uniform")(
        batch.views(), *batch.keys
    )
    assert some.objectives == ("inter_image", "intra_negative")
    assert_close(some.objective_losses, whole.objective_losses[[1, 4]])


@pytest.mark.parametrize("explicit", [False, True])
def test_batch_of_one(explicit: bool) -> None:
    has = torch.ones(2, 3 if explicit else 2, dtype=torch.bool)
    batch = make_batch(0, batch_size=1, explicit=explicit, has=has)
    keys = torch.tensor([1, 2])[: len(has[0]) - 1]
    output = DualLevelAlignmentLoss()(batch.views(), keys, keys, torch.tensor([[1]]))
    if not explicit:
        assert output.objective_losses.tolist() == [0.0] * 4  # no negatives at all
        return
    query, positive, negative = batch.embeddings.unbind(1)  # (3, D) each
    epsilon, intra_epsilon = batch.temperatures
    difference = negative[MULTIMODAL] - positive[MULTIMODAL]
    expected = [torch.log1p(torch.exp(view @ difference / epsilon)) for view in query]
    for own, wrong in ((positive, negative), (negative, positive)):
        expected.append(torch.log1p(torch.exp(own[IMAGE] @ (wrong[TEXT] - own[TEXT]) / intra_epsilon)))
    assert_close(output.objective_losses, expected)


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("same", ["product", "title"])
def test_a_batch_of_one_product_or_one_title_has_no_negatives(same: str, explicit: bool) -> None:
    batch = make_batch(0, explicit=explicit)
    different = torch.arange(1, len(batch.product_keys) + 1)
    alike = torch.ones_like(different)
    products, titles = (alike, different) if same == "product" else (different, alike)
    output = DualLevelAlignmentLoss()(batch.views(), products, titles, products[:5, None])
    assert output.served.all()
    assert not output.objective_losses.any()
    gradients = torch.autograd.grad(output.loss, batch.leaves, allow_unused=True)
    assert not gradients[0].any()  # embeddings
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


def test_uniform_weights_are_one_and_the_floor_goes_there() -> None:
    batch = make_batch(0)

    def run(**options: object):
        return DualLevelAlignmentLoss(**options)(batch.views(), *batch.keys)

    uniform, learned = run(objective_weighting="uniform"), run()
    assert uniform.objective_weights.tolist() == [1.0] * 5
    expected = uniform.objective_losses.sum() + 0.01 * uniform.aux_loss + 0.01 * uniform.sparsity_loss
    assert_close(uniform.loss, expected)
    assert (learned.objective_weights - 1).abs().max() > 0.1
    assert_close(run(objective_floor=0.4).objective_weights, 0.4 + 0.6 * learned.objective_weights)
    assert_close(run(objective_floor=1.0).loss, uniform.loss)


def test_a_dense_model_has_uniform_weights_and_no_routing_terms() -> None:
    batch = make_batch(0)
    output = DualLevelAlignmentLoss()(batch.views(dense=True), *batch.keys)
    uniform = DualLevelAlignmentLoss(objective_weighting="uniform")(batch.views(), *batch.keys)
    assert output.objective_weights.tolist() == [1.0] * 5
    assert output.aux_loss == output.sparsity_loss == 0
    assert output.expert_load is None and output.routing_entropy is None
    assert_close(output.loss, uniform.objective_losses.sum())


@pytest.mark.parametrize("explicit", [False, True])
def test_the_order_of_the_triplets_does_not_matter(explicit: bool) -> None:
    batch = make_batch(0, explicit=explicit)
    order = torch.tensor([3, 0, 4, 2, 1])
    rows = torch.cat([order + 5 * i for i in range(3 if explicit else 2)])
    items = rows[5:] - 5
    shuffled = batch._replace(
        embeddings=batch.embeddings[:, rows],
        has=batch.has[:, rows],
        gates=batch.gates[:, :, rows],
        probs=batch.probs[:, :, rows],
        lengths=batch.lengths[:, rows],
        product_keys=batch.product_keys[items],
        title_keys=batch.title_keys[items],
        positive_keys=batch.positive_keys[order],
    )
    loss = DualLevelAlignmentLoss()
    before, after = loss(batch.views(), *batch.keys), loss(shuffled.views(), *shuffled.keys)
    for field in ("loss", "objective_losses", "objective_weights", "aux_loss", "expert_load", "routing_entropy"):
        assert_close(getattr(after, field), getattr(before, field))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    batch_size=st.integers(1, 6),
    explicit=st.booleans(),
    missing=st.sampled_from([0.0, 0.5, 1.0]),
    temperature=st.sampled_from([0.015, 0.07, 1.0]),
    num_products=st.integers(1, 20),
    alike=st.sampled_from(["no", "yes", "zero"]),
    spread=st.sampled_from([0.0, 1.0, 1000.0]),
    options=st.sampled_from(list(WAYS_TO_WEIGH)),
)
def test_loss_and_gradients_are_finite(
    seed: int,
    batch_size: int,
    explicit: bool,
    missing: float,
    temperature: float,
    num_products: int,
    alike: str,
    spread: float,
    options: str,
) -> None:
    batch = make_batch(
        seed,
        batch_size,
        explicit=explicit,
        missing=missing,
        temperature=temperature,
        num_products=num_products,
        dtype=torch.float32,
    )
    with torch.no_grad():
        batch.alignment_logits.mul_(spread)
        if alike == "yes":
            batch.embeddings.copy_(batch.embeddings[0, 0].expand_as(batch.embeddings))
        if alike == "zero":
            batch.embeddings.zero_()
    output = DualLevelAlignmentLoss(**WAYS_TO_WEIGH[options])(batch.views(), *batch.keys)
    output.loss.backward()
    assert output.loss.isfinite()
    assert output.objective_losses.isfinite().all() and (output.objective_losses >= 0).all()
    assert (output.objective_weights >= 0).all() and output.objective_weights.isfinite().all()
    assert all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in batch.leaves)
    absent = torch.stack([*~batch.has, torch.zeros_like(batch.has[0])])
    assert not batch.embeddings.grad[absent].any()


def test_nothing_depends_on_the_host_seeing_a_value() -> None:
    # Fake tensors hold no data: .item(), bool(tensor) and boolean indexing raise.
    batch = make_batch(0, dtype=torch.float32)
    with FakeTensorMode() as mode:
        fake = Batch(*(mode.from_tensor(tensor) for tensor in batch))
        output = DualLevelAlignmentLoss()(fake.views(), *fake.keys)
        gradients = torch.autograd.grad(output.loss, fake.leaves)
        assert [gradient.shape for gradient in gradients] == [leaf.shape for leaf in batch.leaves]


def test_autocast_does_not_lower_the_precision() -> None:
    batch = make_batch(0, dtype=torch.float32, temperature=0.02)
    loss = DualLevelAlignmentLoss()
    expected = loss(batch.views(), *batch.keys).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = loss(batch.views(), *batch.keys).loss
    assert actual.dtype == torch.float32
    assert actual.item() == expected.item()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objectives": ("inter_text", "intra")}, "one or more of inter_text, inter_image, .*, intra_negative"),
        ({"objectives": ()}, "one or more of inter_text"),
        ({"objectives": "inter_text"}, "one or more of inter_text"),
        ({"objective_weighting": "fixed"}, "'fixed'; give one of learned, uniform"),
        ({"objective_floor": 1.1}, "objective_floor=1.1; give a share from 0 to 1"),
        ({"objective_floor": math.nan}, "objective_floor=nan"),
        ({"aux_coef": -0.1}, "aux_coef=-0.1; give a finite number, 0 or more"),
        ({"sparsity_coef": math.inf}, "sparsity_coef=inf"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DualLevelAlignmentLoss(**options)


def test_a_batch_that_does_not_fit_together_is_refused() -> None:
    batch, loss = make_batch(0), DualLevelAlignmentLoss()
    products, titles, positives = batch.keys
    with pytest.raises(ValueError, match="15 rows for 4 triplets; give .*2B rows.* or .*3B rows"):
        loss(batch.views(), products, titles, positives[:4])
    with pytest.raises(ValueError, match=r"product_keys \(9,\) and title_keys \(10,\) for 10 items"):
        loss(batch.views(), products[:9], titles, positives)
    batch = make_batch(0, explicit=False)
    with pytest.raises(ValueError, match="intra_negative is the only objective and the batch has no n"):
        DualLevelAlignmentLoss(objectives=["intra_negative"])(batch.views(), *batch.keys)
