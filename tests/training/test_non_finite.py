"""NaN and infinity are found and named, and never reach weights, optimizer state, memory or checkpoints."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from trainer_arguments import arguments
from trl import TrlParser

from moon2_dataset import join
from moon2_training.cli import main
from moon2_training.collator import Moon2Collator
from moon2_training.encode import Encoder
from moon2_training.evaluate import evaluate
from moon2_training.losses import OBJECTIVES
from moon2_training.muon import MuonAdamW
from moon2_training.non_finite import (
    MOST_IN_A_ROW,
    StepGuard,
    check_vectors,
    holds_non_finite,
    non_finite_weight,
    withhold_step,
)
from moon2_training.saved_encoder import load_encoder
from moon2_training.trainer import Moon2Trainer
from moon2_training.trainer_config import Moon2TrainingArguments

POISONED = "p5"  # asked for by one query: one batch of an epoch has it as a right product
EPOCH = 4  # steps of six triplets


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_number_that_is_not_finite_is_found(value, dtype):
    tensor = torch.full((3, 5), torch.finfo(dtype).max, dtype=dtype)
    assert not holds_non_finite(tensor)
    tensor[1, 2] = value
    assert holds_non_finite(tensor)


def test_what_holds_no_such_numbers():
    for tensor in (torch.tensor([1]), torch.empty(0), torch.empty(2, device="meta"), torch.tensor(True)):
        assert not holds_non_finite(tensor)


def test_the_first_weight_is_named_and_a_buffer_too(tiny_model):
    model = copy.deepcopy(tiny_model)
    assert non_finite_weight(model) is None
    name, buffer = next((name, buffer) for name, buffer in model.named_buffers() if buffer.is_floating_point())
    buffer.view(-1)[0] = torch.nan
    assert non_finite_weight(model) == name
    with torch.no_grad():
        model.language_model.norm.weight[3] = torch.inf
        model.temperature.weight[0] = torch.nan
    assert non_finite_weight(model) == "language_model.norm.weight"


def test_vectors_that_are_not_finite_are_told_by_item_and_cause():
    items, vectors = [{"name": "product p0"}, {}, {}], np.ones((2, 4), dtype=np.float32)
    model = nn.Linear(2, 2).half()
    assert check_vectors(vectors, np.array([2, 1]), items, model) is vectors
    vectors[1, 3] = np.inf
    with pytest.raises(ValueError, match="item 1: its vector is not finite; all weights are finite, so float16"):
        check_vectors(vectors, np.array([2, 1]), items, model)
    with torch.no_grad():
        model.bias[0] = torch.nan
    with pytest.raises(ValueError, match="product p0: its vector is not finite; the weight bias holds NaN"):
        check_vectors(vectors, np.array([2, 0]), items, model)


class Result:
    """A loss of two objectives, as far as the guard looks at it."""

    objectives = ("inter_text", "intra_positive")
    objective_weights = torch.ones(2)
    aux_loss = sparsity_loss = torch.zeros(())

    def __init__(self, *losses: float, distillation: float = 0.0):
        self.objective_losses = torch.tensor(losses)
        self.distillation = {"text": torch.tensor(distillation)}


def test_the_guard_names_the_first_step_and_its_terms():
    guard, model = StepGuard(skip=False, at_once=False), nn.Linear(1, 1)
    assert guard.check(model) == 0
    for step, losses in enumerate([(1.0, 1.0), (1.0, torch.nan), (torch.inf, 1.0)], start=1):
        guard.look(Result(1.0, 1.0))  # another batch of the same step
        guard.look(Result(*losses, distillation=torch.nan if step == 2 else 0.0))
        assert guard.judge(torch.tensor(1.0), step) == (step > 1)
    with pytest.raises(ValueError, match="step 2: the loss is not finite in intra_positive, distillation_text;"):
        guard.check(model)


@pytest.mark.parametrize("norm", [torch.tensor(torch.nan), torch.tensor(torch.inf), torch.inf])
def test_a_gradient_alone_is_enough(norm):
    guard = StepGuard(skip=False, at_once=False)
    guard.look(Result(1.0, 1.0))
    assert guard.judge(norm, 7)
    with pytest.raises(ValueError, match="step 7: the gradient is not finite, though the loss is; all weights"):
        guard.check(nn.Linear(1, 1))
    guard.look(Result(1.0, 1.0))
    assert not guard.judge(None, 8)


def test_skipped_steps_are_counted_from_log_to_log_and_the_mean_is_of_the_others():
    guard, model = StepGuard(skip=True, at_once=False), nn.Linear(1, 1)
    for step in range(1, 7):
        guard.look(Result(1.0, torch.nan if step in (2, 5) else 1.0))
        guard.judge(torch.tensor(1.0), step)
    logs = {"loss": 2.0, "grad_norm": torch.nan, "learning_rate": 0.1}
    with pytest.warns(UserWarning, match="step 2: the loss is not finite in intra_positive; 2 since the last log"):
        guard.tell(model, logs, finite=4 / 6)
    assert logs == {"loss": 3.0, "learning_rate": 0.1, "skipped_steps": 2}
    guard.look(Result(1.0, 1.0))
    guard.judge(torch.tensor(1.0), 7)
    logs = {"loss": 2.0}
    guard.tell(model, logs)
    assert logs == {"loss": 2.0}
    with torch.no_grad():
        model.bias.fill_(torch.nan)
    guard.tell(model, logs)  # nothing asks the weights while all is well
    guard.look(Result(torch.nan, 1.0))
    guard.judge(torch.tensor(1.0), 8)
    with pytest.raises(ValueError, match="step 8: the loss is not finite in inter_text, and so is the weight bias"):
        guard.tell(model, logs)


def test_skipping_comes_to_an_end_where_no_step_is_left():
    guard, model = StepGuard(skip=True, at_once=False), nn.Linear(1, 1)
    for step in range(1, MOST_IN_A_ROW + 1):
        guard.look(Result(torch.nan, 1.0))
        guard.judge(torch.tensor(1.0), step)
        if step < MOST_IN_A_ROW:
            assert guard.check(model) == step
    with pytest.raises(ValueError, match=f"nor is any of the last {MOST_IN_A_ROW}: leaving out does not help"):
        guard.check(model)


def muon(parameters, fused):
    groups = [{"params": parameters[:1], "muon": True}, {"params": parameters[1:]}]
    return MuonAdamW(groups, lr=0.1, weight_decay=0.1, fused=fused)


def adamw(parameters, fused):
    return torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1, fused=fused)


def sgd(parameters, fused):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1, fused=fused)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("make", [adamw, sgd, muon])
def test_a_step_that_is_withheld_leaves_weights_and_state(make, fused):
    torch.manual_seed(0)
    start = [torch.randn(4, 6), torch.randn(3)]
    gradients = [[torch.randn_like(weight) for weight in start] for _ in range(3)]

    def run(poisoned):
        parameters = [nn.Parameter(weight.clone()) for weight in start]
        optimizer = make(parameters, fused)
        for step, of_step in enumerate(gradients):
            bad = step in poisoned
            if bad and poisoned[step] is None:  # as if there had been no such step
                continue
            for parameter, gradient in zip(parameters, of_step, strict=True):
                parameter.grad = torch.full_like(gradient, poisoned[step]) if bad else gradient.clone()
            withhold_step(optimizer, torch.tensor(bad))
            optimizer.step()
        return parameters, optimizer

    for value in (torch.nan, torch.inf):
        for step in range(3):  # also the first one, which makes the state
            weights, optimizer = run({step: value})
            state = [v for of_weight in optimizer.state.values() for v in of_weight.values() if v is not None]
            assert all(tensor.isfinite().all() for tensor in (*weights, *state))
            expected, _ = run({step: None})
            same = all(torch.equal(weight, wanted) for weight, wanted in zip(weights, expected, strict=True))
            assert same or not fused or make is sgd  # others go on by momentum and weight decay


class PoisonedCollator(Moon2Collator):
    """Pictures of a batch become NaN where one product is the right one."""

    def __init__(self, collator: Moon2Collator, product_key: int) -> None:
        super().__init__(collator.processor, collator.vision_config)
        self.product_key = product_key

    def __call__(self, triplets):
        batch = super().__call__(triplets)
        if any(triplet.positive.product_key == self.product_key for triplet in triplets):
            batch["pixel_values"].fill_(torch.nan)
        return batch


def poisoned_trainer(model, processor, shop, made, poisoned=POISONED) -> Moon2Trainer:
    trainer = Moon2Trainer(model, made, shop, shop, processing_class=processor)
    key = int(shop.product_key[shop.product_index[poisoned]])
    trainer.data_collator = PoisonedCollator(trainer.data_collator, key)
    if made.cached_chunk_size:
        trainer.chunk_reader.collate = trainer.data_collator
    return trainer


def poisoned_step(trainer: Moon2Trainer) -> int:
    """Number, from 1, of the first step that meets the poisoned product."""
    data = trainer.train_dataset.data
    (row,) = np.flatnonzero(data.positive_row == data.product_index[POISONED])
    batches = [[key.index for key in batch] for batch in trainer.get_train_dataloader().batch_sampler]
    place = next(number for number, batch in enumerate(batches) if row in batch)
    return place // trainer.args.gradient_accumulation_steps + 1


WAYS = {
    "plain": {},
    "cached": {"cached_chunk_size": 4},
    "accumulated": {"gradient_accumulation_steps": 2},
    "bf16": {"bf16": True},
    "with memory": {"negatives": "explicit", "memory_size": 24},
    "muon": {"muon": True, "max_grad_norm": 0.0},
}


@pytest.mark.parametrize("options", [WAYS["plain"], WAYS["cached"], WAYS["accumulated"]], ids=list(WAYS)[:3])
def test_by_default_the_step_and_the_objectives_are_named_and_nothing_is_spoilt(tiny, shop, tmp_path, options):
    model = copy.deepcopy(tiny[0])
    made = arguments(tmp_path, max_steps=EPOCH, save_strategy="steps", save_steps=1, seed=1, **options)
    trainer = poisoned_trainer(model, tiny[1], shop, made)
    step = poisoned_step(trainer)
    with pytest.raises(ValueError, match=rf"^step {step}: the loss is not finite in .*inter_image.*; all weights are"):
        trainer.train()
    assert non_finite_weight(model) is None
    folders = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert folders == {f"checkpoint-{number}" for number in range(1, step)}
    for folder in folders:
        load_encoder(tmp_path / folder)


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_such_steps_can_be_left_out_and_are_counted(tiny, shop, tmp_path, options):
    model = copy.deepcopy(tiny[0])
    accumulation = options.get("gradient_accumulation_steps", 1)
    made = arguments(tmp_path, num_train_epochs=1, on_nan="skip", logging_steps=2, **options)
    trainer = poisoned_trainer(model, tiny[1], shop, made)
    with pytest.warns(UserWarning, match="the loss is not finite in .*inter_image.* since the last log left out"):
        trainer.train()
    history = trainer.state.log_history
    assert sum(line.get("skipped_steps", 0) for line in history) == 1
    assert trainer.state.global_step == EPOCH // accumulation
    assert all(np.isfinite(value) for line in history for value in line.values())
    assert non_finite_weight(model) is None and model.temperature.weight.isfinite().all()
    states = [state for of_weight in trainer.optimizer.state.values() for state in of_weight.values()]
    assert len(states) > 40 and all(state.isfinite().all() for state in states)
    if trainer.memory is not None:
        assert all(buffer.isfinite().all() for buffer in (trainer.memory.multimodal, trainer.memory.text))
        assert trainer.memory.valid(trainer.state.global_step).any()


def test_what_a_step_would_have_been_is_left_out_of_the_logged_means(tiny, shop, tmp_path):
    lines = []
    for logging_steps in (1, EPOCH):
        made = arguments(tmp_path, max_steps=EPOCH, on_nan="skip", logging_steps=logging_steps, seed=1)
        trainer = poisoned_trainer(copy.deepcopy(tiny[0]), tiny[1], shop, made)
        with pytest.warns(UserWarning, match="left out"):
            trainer.train()
        lines.append([line for line in trainer.state.log_history if "learning_rate" in line])
    each, (whole,) = lines
    others = [line for line in each if "skipped_steps" not in line]
    assert len(others) == EPOCH - 1 and whole["skipped_steps"] == 1
    for name in ("loss", "loss/inter_image", "weight/inter_text", "expert_load/text/0"):
        assert whole[name] == pytest.approx(np.mean([line[name] for line in others]), rel=1e-4), name


@pytest.mark.parametrize("waits", ["log", "save", "evaluation", "end"])
def test_where_asking_costs_time_it_is_asked_when_something_waits_anyway(tiny, shop, tmp_path, waits):
    options = {"log": {"logging_steps": EPOCH}, "save": {"save_strategy": "steps", "save_steps": EPOCH},
               "evaluation": {"eval_strategy": "steps", "eval_steps": EPOCH}, "end": {"max_steps": EPOCH}}  # fmt: skip
    made = arguments(tmp_path, **{"logging_steps": 99, "num_train_epochs": 3} | options[waits])
    model = copy.deepcopy(tiny[0])
    trainer = poisoned_trainer(model, tiny[1], shop, made)
    trainer.step_guard.at_once = False
    with pytest.raises(ValueError, match=f"^step {poisoned_step(trainer)}: the loss is not finite"):
        trainer.train()
    assert trainer.state.global_step == EPOCH and non_finite_weight(model) is None
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_loss_scaler_leaves_out_what_overflows_at_its_scale_and_that_is_not_counted(tiny, shop, tmp_path):
    model = copy.deepcopy(tiny[0])
    trainer = poisoned_trainer(model, tiny[1], shop, arguments(tmp_path, num_train_epochs=3, on_nan="skip"))
    scaler = trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    trainer.accelerator.unscale_gradients = lambda: scaler.unscale_(trainer.optimizer.optimizer)  # as fp16 does
    with pytest.warns(UserWarning, match="the loss is not finite in .*inter_image"):
        trainer.train()
    assert sum(line.get("skipped_steps", 0) for line in trainer.state.log_history) == 3
    assert scaler.get_scale() < 2.0**124  # halved by what is not finite in the loss, and by what overflowed
    assert non_finite_weight(model) is None
    assert not torch.equal(model.temperature.weight, tiny[0].temperature.weight)


@pytest.mark.parametrize("on_nan", ["raise", "skip"])
def test_a_weight_that_is_the_cause_is_named(tiny, shop, tmp_path, on_nan):
    model = copy.deepcopy(tiny[0])
    with torch.no_grad():
        model.temperature.weight[1] = torch.nan
    trainer = Moon2Trainer(model, arguments(tmp_path, max_steps=2, on_nan=on_nan), shop, processing_class=tiny[1])
    message = "step 1: the loss is not finite in intra_positive, and so is the weight temperature.weight: start from"
    with pytest.raises(ValueError, match=message):
        trainer.train()


def test_the_argument_is_spelled_either_way_and_refuses_the_rest(tmp_path):
    for flag in ("--on_nan", "--on-nan"):
        given = ["--output_dir", str(tmp_path), flag, "skip"]
        (made,) = TrlParser(Moon2TrainingArguments).parse_args_and_config(given)
        assert made.on_nan == "skip"
    assert arguments(tmp_path).on_nan == "raise"
    with pytest.raises(ValueError, match="on_nan='ignore'; give one of raise, skip"):
        arguments(tmp_path, on_nan="ignore")


@pytest.mark.parametrize("options", [{}, {"negatives": "explicit"}, {"cached_chunk_size": 1}, {"muon": True}])
def test_batches_of_one_train_on_finite_numbers(tiny, shop, tmp_path, options):
    model = copy.deepcopy(tiny[0])
    made = arguments(tmp_path, per_device_train_batch_size=1, max_steps=3, **options)
    trainer = Moon2Trainer(model, made, shop, processing_class=tiny[1])
    trainer.train()
    assert all(np.isfinite(value) for line in trainer.state.log_history for value in line.values())
    assert non_finite_weight(model) is None
    if "negatives" not in options:
        assert all(line.get(f"loss/{name}", 0) == 0 for line in trainer.state.log_history for name in OBJECTIVES)


def test_a_catalogue_of_one_title_trains_on_finite_numbers(tiny, shop, tmp_path):
    model = copy.deepcopy(tiny[0])
    alike = join(shop.products.map(lambda row: {"title": "red mug"}), shop.queries)
    trainer = Moon2Trainer(model, arguments(tmp_path, max_steps=2), alike, processing_class=tiny[1])
    trainer.train()
    lines = [line for line in trainer.state.log_history if "learning_rate" in line]
    assert all(np.isfinite(value) for line in lines for value in line.values())
    assert all(line[f"loss/{name}"] == 0 for line in lines for name in OBJECTIVES[:4])  # no negative is left
    assert non_finite_weight(model) is None


@pytest.fixture(scope="module")
def broken(tiny, tmp_path_factory):
    """Folder of a model with one weight that is NaN."""
    folder, model = tmp_path_factory.mktemp("broken"), copy.deepcopy(tiny[0])
    with torch.no_grad():
        model.language_model.layers[1].mlp.experts.down_proj[2, 0, 0] = torch.nan
    for part in (model, tiny[1]):
        part.save_pretrained(folder)
    return folder


WEIGHT = "the weight language_model.layers.1.mlp.experts.down_proj holds NaN or infinity"


@pytest.mark.parametrize("view", ["text", "image", "multimodal", None])
def test_no_vector_that_is_not_finite_comes_out_of_an_encoder(tiny, mixed_items, view):
    model = copy.deepcopy(tiny[0])
    with torch.no_grad():
        model.language_model.norm.weight[0] = torch.inf
    texts, images = mixed_items
    items = [{"text": texts[2], "images": [images[2]], "name": "product p7"}]
    encoder = Encoder(model, tiny[1])
    with pytest.raises(ValueError, match="^product p7: its vector is not finite; the weight language_model.norm"):
        if view is None:
            encoder.encode_views(items, progress=False)
        else:
            encoder.encode(items, view=view, progress=False)


def test_evaluation_names_the_weight(tiny, shop, broken):
    with pytest.raises(ValueError, match=f"broken.*: {WEIGHT} as torch.float32; give an earlier checkpoint"):
        load_encoder(broken)
    model = copy.deepcopy(tiny[0])
    with torch.no_grad():
        model.language_model.norm.weight[0] = torch.nan
    with pytest.raises(ValueError, match="^product p.*: its vector is not finite; the weight language_model.norm"):
        evaluate(model, tiny[1], shop.products, shop.queries, progress=False)


@pytest.mark.parametrize("verb", ["encode", "evaluate", "index", "train"])
def test_every_verb_that_loads_such_a_model_says_so_and_writes_nothing(broken, shop, tmp_path, capsys, verb):
    products, queries = tmp_path / "products.parquet", tmp_path / "queries.parquet"
    shop.products.to_parquet(products)
    shop.queries.to_parquet(queries)
    out = tmp_path / "out"
    arguments = {
        "encode": ["--products", products, "--output", out],
        "evaluate": ["--products", products, "--queries", queries, "--output", out],
        "index": ["--catalogue", products, "--data_dir", out],
        "train": ["--products", products, "--queries", queries, "--output_dir", out, "--use_cpu", "true"],
    }[verb]
    assert main([verb, "--model", str(broken), *map(str, arguments)]) == 1
    assert f"{broken}: {WEIGHT}" in capsys.readouterr().err
    assert not out.exists() or not [path for path in out.rglob("*") if path.is_file()]


PROCESS = """
import torch
import torch.distributed as dist
from moon2_training.non_finite import StepGuard

class Result:
    objectives, objective_weights = ("inter_text", "inter_image"), torch.ones(2)
    aux_loss = sparsity_loss = torch.zeros(())
    distillation = {}

dist.init_process_group("gloo")
guard, result = StepGuard(skip=False, at_once=False), Result()
result.objective_losses = torch.tensor([1.0, torch.nan if dist.get_rank() else 1.0])
guard.look(result)
assert guard.judge(torch.tensor(1.0), 1)
try:
    guard.check(torch.nn.Linear(1, 1))
except ValueError as error:
    assert str(error).startswith("step 1: the loss is not finite in inter_image;"), error
    print("both know")
dist.destroy_process_group()
"""


def test_processes_come_to_one_decision(tmp_path):
    (tmp_path / "process.py").write_text(PROCESS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               tmp_path / "process.py"]  # fmt: skip
    result = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0 and result.stdout.count("both know") == 2, result.stderr[-3000:]
