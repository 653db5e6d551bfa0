from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from trainer_arguments import arguments
from transformers import AutoModel

from moon2_dataset import join, load_product_queries
from moon2_dataset.demo_catalogue import render_demo_catalogue, split_demo_catalogue
from moon2_training.collator import Moon2Collator
from moon2_training.losses import OBJECTIVES, VIEWS, DualLevelAlignmentLoss
from moon2_training.mini import MiniConfig, build_mini
from moon2_training.peer_encoders import DualEncoder
from moon2_training.push import check_folder
from moon2_training.sampler import LeafBatchSampler
from moon2_training.teacher_features import write_teacher_features
from moon2_training.train import product_texts
from moon2_training.trainer import KEYS, Moon2Trainer
from moon2_training.triplets import TripletDataset


@pytest.fixture
def fresh(tiny):
    """The tiny model, to be trained, and its processor."""
    return copy.deepcopy(tiny[0]), tiny[1]


@pytest.fixture(scope="module")
def teacher(tiny_dual_encoder, shop, tmp_path_factory):
    """A file of what a CLIP says of the shop's titles and pictures."""
    file = tmp_path_factory.mktemp("teacher") / "teacher.parquet"
    write_teacher_features(DualEncoder(*tiny_dual_encoder("clip")), shop.products, file, progress=False)
    return file


def test_what_a_launcher_has_set_up_stays(fresh, shop, tmp_path):
    options = arguments(tmp_path)
    options.distributed_state.device = torch.device("cpu", 0)
    Moon2Trainer(fresh[0], options, shop, processing_class=fresh[1])
    assert options.distributed_state.device == torch.device("cpu", 0)


@pytest.mark.parametrize("negatives", ["in_batch", "explicit"])
def test_everything_about_the_objectives_is_logged(fresh, shop, tmp_path, negatives):
    model, processor = fresh
    trainer = Moon2Trainer(
        model, arguments(tmp_path, max_steps=3, negatives=negatives), shop, processing_class=processor
    )
    trainer.train()
    active = OBJECTIVES if negatives == "explicit" else OBJECTIVES[:-1]
    expected = {f"{kind}/{name}" for kind in ("loss", "weight") for name in active}
    expected |= {"loss/aux", "loss/sparsity", "temperature/inter", "temperature/intra"}
    expected |= {f"expert_load/{view}/{z}" for view in VIEWS for z in range(4)}
    expected |= {f"routing_entropy/{view}" for view in VIEWS}
    for log in trainer.state.log_history[:3]:
        found = {key for key in log if "/" in key and not key.startswith(("unserved/", "filter/"))}
        assert {key for key in log if key.startswith("filter/")} == {
            f"filter/{n}" for n in ("kept_share", "mean_phi", "margin")
        }
        assert found == expected
        assert all(np.isfinite(value) for value in log.values())
        total = sum(log[f"loss/{name}"] * log[f"weight/{name}"] for name in active)
        total += 0.01 * (log["loss/aux"] + log["loss/sparsity"])
        assert log["loss"] == pytest.approx(total, abs=2e-4)
        for view in VIEWS:
            assert sum(log[f"expert_load/{view}/{z}"] for z in range(4)) == pytest.approx(1, abs=1e-5)


def test_the_log_averages_over_the_batches_since_the_last_line(fresh, shop, tmp_path):
    each, every_third = (
        Moon2Trainer(
            copy.deepcopy(fresh[0]), arguments(tmp_path, max_steps=3, logging_steps=n), shop, processing_class=fresh[1]
        )
        for n in (1, 3)
    )
    each.train()
    every_third.train()
    lines, (line, *_) = each.state.log_history[:3], every_third.state.log_history
    for key in ("loss/inter_multimodal", "weight/inter_text", "expert_load/image/0", "temperature/inter"):
        assert line[key] == pytest.approx(np.mean([one[key] for one in lines]), rel=1e-5)


def test_an_objective_without_rows_is_left_out_and_counted(fresh, shop, tmp_path):
    queries = shop.queries.map(lambda row: {"image": None})
    products = shop.products.map(lambda row: {"images": []})
    products = products.map(lambda row: {"title": row["title"] or "untitled"})
    data = join(products, queries.filter(lambda row: row["text"] is not None))
    trainer = Moon2Trainer(fresh[0], arguments(tmp_path, max_steps=2), data, processing_class=fresh[1])
    trainer.train()
    log = trainer.state.log_history[0]
    for name in OBJECTIVES[1:4]:
        assert log[f"unserved/{name}"] == 1 and f"loss/{name}" not in log
    assert log["loss/inter_text"] > 0 and np.isfinite(log["loss"])


def test_accumulation_averages_the_gradients_of_its_batches(fresh, shop, tmp_path):
    model, processor = fresh
    reference = copy.deepcopy(model)
    options = {"max_steps": 1, "optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant",
               "max_grad_norm": 0.0, "warmup_steps": 0}  # fmt: skip
    Moon2Trainer(
        model,
        arguments(tmp_path, gradient_accumulation_steps=4, objective_floor=0.0, **options),
        shop,
        processing_class=processor,
    ).train()

    dataset = TripletDataset(shop, seed=42)
    batches = list(LeafBatchSampler(shop.leaf[shop.positive_row], 6, seed=42))
    reference.train()
    for batch in batches[:4]:
        inputs = Moon2Collator(processor)([dataset[key] for key in batch])
        keys = [inputs.pop(name) for name in KEYS]
        (DualLevelAlignmentLoss()(reference.encode_views(**inputs), *keys).loss / 4).backward()
    start = {name: p.detach().clone() for name, p in reference.named_parameters()}
    moved = 0
    for name, parameter in model.named_parameters():
        gradient = reference.get_parameter(name).grad
        if gradient is not None:
            torch.testing.assert_close(start[name] - parameter, gradient, atol=1e-5, rtol=1e-4, msg=name)
            moved += 1
    assert moved > 40


def test_evaluation_during_training_gives_the_retrieval_metrics(fresh, shop, tmp_path):
    trainer = Moon2Trainer(
        fresh[0],
        arguments(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
                  load_best_model_at_end=True, metric_for_best_model="mean_recall@10"),
        shop,
        shop,
        processing_class=fresh[1],
    )  # fmt: skip
    trainer.train()
    lines = [log for log in trainer.state.log_history if "eval_mean_recall@10" in log]
    assert len(lines) == 2 and {"eval_t2mm_recall@10", "eval_i2t_mrr"} <= set(lines[0])
    assert trainer.state.best_metric == max(line["eval_mean_recall@10"] for line in lines)
    assert fresh[0].training is False or trainer.model.training


def test_the_saved_folder_is_whole(fresh, shop, tmp_path):
    trainer = Moon2Trainer(fresh[0], arguments(tmp_path, max_steps=1), shop, processing_class=fresh[1])
    trainer.train()
    trainer.save_model()
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors", "modeling_moon2.py", "processing_moon2.py",
            "configuration_moon2.py", "tokenizer.json", "processor_config.json"} <= names  # fmt: skip
    loaded = AutoModel.from_pretrained(tmp_path)
    for name, weight in fresh[0].state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def test_weight_decay_leaves_alone_what_has_a_meaningful_zero(fresh, shop, tmp_path):
    trainer = Moon2Trainer(fresh[0], arguments(tmp_path), shop, processing_class=fresh[1])
    names = trainer.get_decay_parameter_names(fresh[0])
    assert any("experts" in name for name in names)
    assert not [name for name in names if "temperature" in name or "dual_alignment" in name or "norm" in name]


def test_co_augmentation_is_trained_on_as_often_as_the_arguments_say(fresh, shop, tmp_path):
    products = shop.products.add_column("enriched_title", [f"in full {row}" for row in range(24)])
    data = join(products, shop.queries)
    for share in (0.0, 1.0):
        trainer = Moon2Trainer(
            fresh[0], arguments(tmp_path, enriched_title_share=share), data, processing_class=fresh[1]
        )
        titles = [trainer.train_dataset[index].positive.text for index in range(24)]
        assert {str(title).startswith("in full") for title in titles} == {share == 1.0}
        assert trainer.train_dataset.expanded_image_share == 0.15


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"negatives": "hard"}, "negatives='hard'; give one of in_batch, explicit"),
        ({"objectives": ["inter_audio"]}, "give one or more of inter_text, inter_image"),
        ({"objective_weighting": "best"}, "give one of learned, uniform, balanced"),
        ({"objective_floor": 2.0}, "objective_floor=2.0; give a share from 0 to 1"),
        ({"leaf_share": -1.0}, "leaf_share=-1.0; give a share from 0 to 1"),
        ({"item_text_fields": ["price"]}, "item_text_fields"),
        ({"max_images_per_item": 0}, "max_images_per_item=0; give 1 or more"),
        ({"per_device_train_batch_size": 99}, "24 queries do not fill one batch of 99"),
        ({"remove_unused_columns": True}, "leave it off"),
        ({"memory_size": 5}, "memory_size=5; give 0, or 6 or more"),
        ({"memory_size": 11, "negatives": "explicit"}, "memory_size=11; give 0, or 12 or more"),
        ({"cached_chunk_size": 7}, "cached_chunk_size=7; give 1 to per_device_train_batch_size=6, or 0"),
        ({"filter_threshold": 1.2}, "filter_threshold=1.2; give a number between 0 and 1"),
        ({"filter_margin_shape": "step"}, "give one of cosine, linear, constant"),
        ({"matryoshka_dims": [16, 48]}, "give dimensions under the embedding's 48"),
        ({"matryoshka_dims": [0]}, "give numbers of dimensions, 1 or more"),
        ({"inter_temperature": 0.001}, "inter_temperature=0.001; give 0.01 to 100"),
        ({"intra_temperature": float("nan")}, "intra_temperature=nan; give 0.01 to 100"),
        ({"mine_every_steps": 5}, "mine_every_steps=5 needs negatives=explicit; give both"),
        ({"on_bad_image": "ignore"}, "give one of raise, skip"),
        ({"distillation_coef": 0.0}, "distillation_coef=0.0; give a number over 0"),
        ({"distillation_temperature": -1.0}, "distillation_temperature=-1.0; give a number over 0"),
        ({"enriched_title_share": 1.5}, "enriched_title_share=1.5; give a probability from 0 to 1"),
        ({"expanded_image_share": -0.1}, "expanded_image_share=-0.1; give a probability from 0 to 1"),
        ({"freeze": ["vision"]}, "freeze: the model has no module 'vision'; its largest are visual, language_model"),
        ({"word_dropout": 2.0}, "word_dropout=2.0; give a probability from 0 to 1"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0; give a rate, 0 or more"),
        ({"router_learning_rate": -1.0}, "router_learning_rate=-1.0; give a rate, 0 or more"),
        ({"expert_learning_rate": float("nan")}, "expert_learning_rate=nan; give a rate, 0 or more"),
    ],
)
def test_wrong_arguments_fail_at_once_with_the_allowed_values(fresh, shop, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        Moon2Trainer(fresh[0], arguments(tmp_path, **change), shop, processing_class=fresh[1])
    needs_more = {
        "per_device_train_batch_size",
        "matryoshka_dims",
        "freeze",
    } & change.keys()  # of data or model
    if not needs_more:
        with pytest.raises(ValueError, match=message):
            arguments(tmp_path, **change)


def test_several_gpus_without_a_launcher_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="2 GPUs are visible.*`accelerate launch .* CUDA_VISIBLE_DEVICES=0"):
        arguments(tmp_path, use_cpu=False)
    assert arguments(tmp_path).n_gpu == 0


@pytest.mark.parametrize("muon", [False, True])
def test_what_is_frozen_stays_and_the_rest_learns(fresh, shop, tmp_path, muon):
    model, processor = fresh
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    options = arguments(tmp_path, max_steps=2, freeze=["visual", "layers.0.mlp.gate"], muon=muon)
    Moon2Trainer(model, options, shop, processing_class=processor).train()
    kept = {name for name, weight in model.named_parameters() if torch.equal(weight, before[name])}
    assert kept == {name for name in before if name.startswith("visual.") or ".layers.0.mlp.gate." in name}


@pytest.mark.parametrize(
    "options",
    [
        {"memory_size": 12, "memory_max_age": 2},
        {"cached_chunk_size": 4, "negatives": "explicit", "dataloader_num_workers": 1},
        {"negatives": "explicit", "mine_every_steps": 1, "mined_per_product": 4, "dataloader_num_workers": 1},
        {"gradient_accumulation_steps": 2, "memory_size": 24, "memory_warmup_steps": 3, "leaf_share": 0.5},
    ],
    ids=["memory", "cached", "mined", "accumulated"],
)
def test_a_resumed_run_goes_on_as_the_uninterrupted_one(tiny, shop, tmp_path, options):
    def run(folder, **changes):
        trainer = Moon2Trainer(
            copy.deepcopy(tiny[0]),
            arguments(folder, max_steps=7, save_strategy="steps", save_steps=1, filter_warmup=0.2, **options),
            shop,
            processing_class=tiny[1],
        )
        trainer.train(**changes)
        return trainer

    whole = run(tmp_path / "whole")
    for name in ("checkpoint-2", "checkpoint-5"):  # within the first epoch, and within a later one
        resumed = run(tmp_path / f"resumed-{name}", resume_from_checkpoint=str(tmp_path / "whole" / name))
        first = int(name.rpartition("-")[2])
        for line, expected in zip(resumed.state.log_history[first:7], whole.state.log_history[first:7], strict=True):
            for key in (key for key in expected if not key.startswith("train_")):
                assert line[key] == pytest.approx(expected[key], abs=1e-6), (expected["step"], key)
        for (key, weight), other in zip(
            whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True
        ):
            torch.testing.assert_close(other, weight, atol=1e-6, rtol=1e-5, msg=key)
        if whole.memory is not None:
            assert torch.equal(whole.memory.product_keys, resumed.memory.product_keys)
    assert check_folder(tmp_path / "whole" / "checkpoint-5") is None


def test_learning_rates_of_their_own(fresh, shop, tmp_path):
    rates = {"expert_learning_rate": 2e-3, "router_learning_rate": 3e-3, "temperature_learning_rate": 4e-3}
    trainer = Moon2Trainer(fresh[0], arguments(tmp_path, weight_decay=0.1, **rates), shop, processing_class=fresh[1])
    name_of = {weight: name for name, weight in fresh[0].named_parameters()}
    groups = trainer.create_optimizer().param_groups
    found = {name_of[weight]: (group["lr"], group["weight_decay"]) for group in groups for weight in group["params"]}
    assert found.keys() == set(name_of.values())
    layer = "language_model.layers.0"
    assert found[f"{layer}.mlp.experts.down_proj"] == (2e-3, 0.1)
    assert found[f"{layer}.mlp.gate.weight"] == (3e-3, 0.1)
    assert found[f"{layer}.mlp.dual_alignment.weight"] == (3e-3, 0.0)
    assert found["temperature.weight"] == (4e-3, 0.0)
    assert found[f"{layer}.self_attn.q_proj.weight"] == (1e-3, 0.1)


def test_a_model_from_scratch_learns_at_another_rate_than_a_trained_one(fresh, shop, tmp_path):
    def rates(model, **options) -> tuple[float, float]:
        trainer = Moon2Trainer(model, arguments(tmp_path, **options), shop, processing_class=fresh[1])
        (told,) = {group["lr"] for group in trainer.create_optimizer().param_groups}
        return told, trainer.provenance["training"]["learning_rate"]

    model = fresh[0]
    model.save_pretrained(tmp_path / "trained")
    trained = type(model).from_pretrained(tmp_path / "trained")
    assert rates(model, learning_rate=None) == (1e-3, 1e-3)
    assert rates(trained, learning_rate=None) == (1e-5, 1e-5)
    assert rates(model, learning_rate=1e-5) == rates(trained, learning_rate=1e-5) == (1e-5, 1e-5)


@pytest.mark.parametrize("muon", [False, True])
def test_a_rate_of_nought_keeps_what_it_is_for(fresh, shop, tmp_path, muon):
    model, processor = fresh
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    options = arguments(tmp_path, max_steps=2, router_learning_rate=0.0, muon=muon)
    Moon2Trainer(model, options, shop, processing_class=processor).train()
    kept = {name for name, weight in model.named_parameters() if torch.equal(weight, before[name])}
    assert kept == {name for name in before if ".mlp.gate." in name or ".dual_alignment." in name}


def test_a_fixed_temperature_stays_and_the_other_moves(fresh, shop, tmp_path):
    options = {"inter_temperature": 0.05, "intra_temperature": 0.1, "learn_inter_temperature": False}
    trainer = Moon2Trainer(fresh[0], arguments(tmp_path, max_steps=3, **options), shop, processing_class=fresh[1])
    trainer.train()
    inter, intra = fresh[0].temperature().tolist()
    assert inter == pytest.approx(0.05) and intra != pytest.approx(0.1, abs=1e-5)


def test_filtering_is_logged_and_can_be_off(fresh, shop, tmp_path):
    options = {"max_steps": 4, "filter_threshold": 0.4, "filter_margin_start": 0.3}
    trainer = Moon2Trainer(fresh[0], arguments(tmp_path, **options), shop, processing_class=fresh[1])
    trainer.train()
    lines = trainer.state.log_history[:4]
    assert [line["filter/margin"] for line in lines] == sorted((line["filter/margin"] for line in lines), reverse=True)
    assert all(0 <= line["filter/kept_share"] <= 1 and 0 < line["filter/mean_phi"] < 1 for line in lines)
    off = arguments(tmp_path, max_steps=1, sample_filtering=False)
    trainer = Moon2Trainer(fresh[0], off, shop, processing_class=fresh[1])
    trainer.train()
    assert not any(key.startswith("filter/") for key in trainer.state.log_history[0])


@pytest.mark.parametrize("cached_chunk_size", [0, 3])
def test_unreadable_pictures_are_left_out_and_named(fresh, shop, tmp_path, cached_chunk_size):
    broken = {"bytes": b"no image", "path": None}
    bad = {"p5", "p9", "p4"}  # p4 has no title: nothing of it is left
    products = shop.products.map(lambda row: {"images": [broken]} if row["product_id"] in bad else {})
    queries = shop.queries.map(lambda row: {"image": broken} if row["query_id"] == "q2" else {})  # nor of q2
    data = join(products, queries)
    options = {"max_steps": 4, "on_bad_image": "skip", "cached_chunk_size": cached_chunk_size, "negatives": "explicit",
               "mine_every_steps": 1}  # fmt: skip
    trainer = Moon2Trainer(fresh[0], arguments(tmp_path, **options), data, processing_class=fresh[1])
    trainer.train()
    assert trainer.unreadable == {"product p5, image 0", "product p9, image 0", "product p4, image 0", "query q2"}
    assert trainer.emptied == {"product p4", "query q2"}
    assert all(np.isfinite(line["loss"]) for line in trainer.state.log_history[:4])
    with pytest.raises(ValueError, match="unreadable image"):
        stop = arguments(tmp_path, max_steps=4, cached_chunk_size=cached_chunk_size)
        Moon2Trainer(fresh[0], stop, data, processing_class=fresh[1]).train()


@pytest.mark.parametrize("options", [{}, {"negatives": "explicit"}, {"cached_chunk_size": 4}])
def test_distillation_is_part_of_the_loss_and_logged(fresh, shop, teacher, tmp_path, options):
    taught = {"teacher_features": [str(teacher)], "distillation_coef": 2.0}
    lines, trainers = [], []
    for changes in ({}, taught):
        made = arguments(tmp_path, max_steps=1, max_grad_norm=0.0, **options, **changes)
        trainers.append(Moon2Trainer(copy.deepcopy(fresh[0]), made, shop, processing_class=fresh[1]))
        trainers[-1].train()
        lines.append(trainers[-1].state.log_history[0])
    views = [lines[1][f"loss/distillation_{view}"] for view in ("text", "image")]
    assert min(views) > 0.01 and "loss/distillation_text" not in lines[0]
    assert lines[1]["loss"] == pytest.approx(lines[0]["loss"] + 2 * sum(views), abs=1e-4)
    assert lines[1]["loss/inter_text"] == pytest.approx(lines[0]["loss/inter_text"], abs=1e-6)
    assert trainers[1].provenance["training"]["teacher_features"] == ["teacher.parquet"]


def test_notes_on_the_weights_that_training_starts_from_are_left_behind(fresh, shop, tmp_path):
    model = copy.deepcopy(fresh[0])
    model.config._name_or_path = str(tmp_path)
    (tmp_path / "provenance.json").write_text('{"base_model": "shop/base", "notes": "For demonstration."}')
    trainer = Moon2Trainer(model, arguments(tmp_path), shop, processing_class=fresh[1])
    assert trainer.provenance["base_model"] == "shop/base" and "notes" not in trainer.provenance


def test_cached_distillation_has_the_gradient_of_the_whole_batch(fresh, shop, teacher, tmp_path):
    gradients = []
    for changes in ({}, {"cached_chunk_size": 4}):
        model = copy.deepcopy(fresh[0])
        made = arguments(
            tmp_path, max_steps=1, optim="sgd", learning_rate=1.0, lr_scheduler_type="constant", max_grad_norm=0.0,
            negatives="explicit", objectives=["intra_positive"], teacher_features=[str(teacher)],
            distillation_coef=100.0, **changes,
        )  # fmt: skip
        Moon2Trainer(model, made, shop, processing_class=fresh[1]).train()
        start = dict(fresh[0].named_parameters())
        gradients.append({name: start[name].detach() - w.detach() for name, w in model.named_parameters()})
    largest = max(gradient.abs().max() for gradient in gradients[0].values())
    assert largest > 1
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=float(largest) * 1e-4, rtol=1e-3, msg=name)


def test_a_student_comes_to_see_products_as_its_teacher_does(fresh, shop, teacher, tmp_path):
    options = {"max_steps": 40, "teacher_features": str(teacher), "distillation_coef": 5.0, "logging_steps": 10}
    trainer = Moon2Trainer(fresh[0], arguments(tmp_path, **options), shop, processing_class=fresh[1])
    trainer.train()
    first, *_, last = [line["loss/distillation_text"] for line in trainer.state.log_history if "loss" in line]
    assert last < 0.5 * first


def test_products_that_no_teacher_knows_are_told_of_and_trained_on(fresh, shop, tiny_dual_encoder, tmp_path, capsys):
    encoder, file = DualEncoder(*tiny_dual_encoder("clip")), tmp_path / "teacher.parquet"
    write_teacher_features(encoder, shop.products.select(range(6)), file, progress=False)
    made = arguments(tmp_path, max_steps=4, teacher_features=[str(file)])
    trainer = Moon2Trainer(fresh[0], made, shop, processing_class=fresh[1])
    trainer.train()
    assert capsys.readouterr().out.count("18 of 24 products are missing, for example p6") == 1
    assert all(np.isfinite(line["loss"]) for line in trainer.state.log_history[:4])
    other = join(shop.products.select(range(6, 24)), shop.queries.select(range(8, 24)))
    with pytest.raises(ValueError, match="has none of the 18 products of the catalogue, whose first is p6"):
        Moon2Trainer(fresh[0], made, other, processing_class=fresh[1])


class CountWaits(TorchDispatchMode):
    """Counts what would make the host wait for a GPU: values read, and results whose shape depends on data."""

    SHAPED_BY_DATA = ("nonzero", "repeat_interleave.Tensor", "masked_select", "unique", "_local_scalar_dense")

    def __init__(self, monkeypatch):
        super().__init__()
        self.waits = []
        for name in ("tolist", "numpy"):
            original = getattr(torch.Tensor, name)
            monkeypatch.setattr(torch.Tensor, name, self.counting(name, original))

    def counting(self, name, original):
        def call(*args, **kwargs):
            self.waits.append(name)
            return original(*args, **kwargs)

        return call

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in self.SHAPED_BY_DATA):
            self.waits.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"negatives": "explicit", "memory_size": 24},
        {"teacher_features": ["teacher.parquet"]},
        {"optim": "sgd", "on_nan": "skip"},
        {"muon": True},
    ],
    ids=["plain", "with memory", "with a teacher", "not fused", "muon"],
)
def test_a_step_never_waits_for_the_device(fresh, shop, teacher, tmp_path, monkeypatch, options):
    monkeypatch.chdir(teacher.parent)
    trainer = Moon2Trainer(fresh[0], arguments(tmp_path, **options), shop, processing_class=fresh[1])
    trainer.state.max_steps = 10
    trainer.create_optimizer()
    batches = iter(trainer.get_train_dataloader())
    first, second = next(batches), next(batches)
    trainer.current_gradient_accumulation_steps = 1
    trainer.training_step(fresh[0], first)  # hooks are installed in the first step
    counter = CountWaits(monkeypatch)
    trainer.step_guard.at_once = False  # as on a GPU
    with counter:
        inputs = trainer._prepare_inputs(second)
        trainer.training_step(fresh[0], inputs)
        trainer._get_grad_norm(fresh[0])
        trainer.optimizer.step()
    assert not counter.waits
    with counter:
        fresh[0](**fresh[1](text=["mug"], images=[second["pixel_values"].new_zeros(32, 32, 3)]))
    assert counter.waits  # without the layout that the collator makes


@pytest.mark.parametrize(
    "options",
    [
        {"torch_compile": True, "torch_compile_backend": "eager"},
        {"bf16": True},
        {"bf16": True, "cached_chunk_size": 4},
    ],
    ids=["compiled", "bf16", "bf16 cached"],
)
def test_other_ways_to_compute_follow_the_same_path(tiny, shop, tmp_path, options):
    losses = []
    for changes in ({}, options):
        trainer = Moon2Trainer(
            copy.deepcopy(tiny[0]), arguments(tmp_path, max_steps=3, **changes), shop, processing_class=tiny[1]
        )
        trainer.train()
        assert not torch.is_autocast_enabled("cpu")  # nothing is left of it outside
        losses.append([line["loss"] for line in trainer.state.log_history[:3]])
    assert losses[1] == pytest.approx(losses[0], rel=0.02 if "bf16" in options else 1e-5)


def train_fifty_steps(data, evaluation, folder, times_chance):
    """Fifty steps of a small model; checks what must be true after them."""
    config = dataclasses.replace(
        MiniConfig(), hidden_size=96, num_hidden_layers=2, moe_intermediate_size=96, vision_hidden_size=64,
        vision_depth=2, image_size=48, vocab_size=2000,
    )  # fmt: skip
    torch.manual_seed(0)
    model, processor = build_mini(config, product_texts(data))
    before = copy.deepcopy(model)
    trainer = Moon2Trainer(
        model,
        arguments(folder, max_steps=50, per_device_train_batch_size=32, learning_rate=2e-3, logging_steps=10),
        data,
        evaluation,
        processing_class=processor,
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert logs[-1]["loss"] < 0.8 * logs[0]["loss"]
    for view in VIEWS:
        loads = [logs[-1][f"expert_load/{view}/{z}"] for z in range(4)]
        assert min(loads) > 0.02, (view, loads)
    for layer, old in zip(model.language_model.layers, before.language_model.layers, strict=True):
        assert (layer.mlp.gate.weight - old.mlp.gate.weight).abs().max() > 1e-3
        assert (layer.mlp.dual_alignment.weight - old.mlp.dual_alignment.weight).abs().max() > 1e-3
        experts = layer.mlp.experts.down_proj.flatten(1)
        similarity = torch.corrcoef(experts) - torch.eye(4)
        assert similarity.abs().max() < 0.9
    metrics = trainer.evaluate()
    chance = 10 / len(evaluation.products)
    for direction in ("t2mm", "i2mm", "mm2mm"):
        assert metrics[f"eval_{direction}_recall@10"] > times_chance * chance, metrics


def test_fifty_steps_on_real_products_learn(shared_data, tmp_path):
    folder = shared_data / "fashion"
    data = load_product_queries(folder / "products-train.parquet", folder / "queries-train.parquet")
    evaluation = load_product_queries(folder / "products-validation.parquet", folder / "queries-validation.parquet")
    train_fifty_steps(data, evaluation, tmp_path, times_chance=4)


def test_fifty_steps_on_drawn_products_learn(tmp_path):
    train_fifty_steps(*split_demo_catalogue(*render_demo_catalogue(240), held_out=0.4), tmp_path, times_chance=2)
