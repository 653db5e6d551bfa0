from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from transformers import AutoModel

from moon2_dataset import join, load_product_queries
from moon2_dataset.demo_catalogue import render_demo_catalogue, split_demo_catalogue
from moon2_training.collator import Moon2Collator
from moon2_training.losses import OBJECTIVES, VIEWS, DualLevelAlignmentLoss
from moon2_training.mini import MiniConfig, build_mini
from moon2_training.sampler import LeafBatchSampler
from moon2_training.train import product_texts
from moon2_training.trainer import KEYS, Moon2Trainer
from moon2_training.trainer_config import Moon2TrainingArguments
from moon2_training.triplets import TripletDataset


def arguments(folder, **changes) -> Moon2TrainingArguments:
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 6,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return Moon2TrainingArguments(**defaults | changes)


@pytest.fixture
def fresh(tiny):
    """The tiny model, to be trained, and its processor."""
    return copy.deepcopy(tiny[0]), tiny[1]


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
        found = {key for key in log if "/" in key and not key.startswith("unserved/")}
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
        model, arguments(tmp_path, gradient_accumulation_steps=4, **options), shop, processing_class=processor
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"negatives": "hard"}, "negatives='hard'; give one of in_batch, explicit"),
        ({"objectives": ["inter_audio"]}, "give one or more of inter_text, inter_image"),
        ({"objective_weighting": "best"}, "give one of learned, uniform"),
        ({"objective_floor": 2.0}, "objective_floor=2.0; give a share from 0 to 1"),
        ({"leaf_share": -1.0}, "leaf_share=-1.0; give a share from 0 to 1"),
        ({"item_text_fields": ["price"]}, "item_text_fields"),
        ({"max_images_per_item": 0}, "max_images_per_item=0; give 1 or more"),
        ({"per_device_train_batch_size": 99}, "24 queries do not fill one batch of 99"),
        ({"remove_unused_columns": True}, "leave it off"),
    ],
)
def test_wrong_arguments_fail_at_once_with_the_allowed_values(fresh, shop, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        Moon2Trainer(fresh[0], arguments(tmp_path, **change), shop, processing_class=fresh[1])


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
