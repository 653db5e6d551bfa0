from __future__ import annotations

import copy

import pytest
import torch
import yaml
from datasets import Dataset, Features
from peft import PeftModel

from moon2_dataset import OPTIONAL_PRODUCT_FEATURES, join
from moon2_training.losses import OBJECTIVES
from moon2_training.trainer import Moon2Trainer
from moon2_training.trainer_config import Moon2TrainingArguments
from moon2_training.validate import KeptForBackward, count_data, count_steps, find_unreadable, main, measure_step

SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "moe_intermediate_size": 16,
         "vision_hidden_size": 32, "vision_depth": 2, "image_size": 32, "vocab_size": 300}  # fmt: skip
BROKEN = {"bytes": b"no image", "path": None}


@pytest.fixture
def recipe(shop, tmp_path):
    """Writes tables and a recipe over them; returns the recipe's file."""

    def write(data=shop, **settings):
        for name, table in (("products", data.products), ("queries", data.queries)):
            table.to_parquet(tmp_path / f"{name}.parquet")
            settings[name] = str(tmp_path / f"{name}.parquet")
        settings |= {"output_dir": str(tmp_path / "out"), "per_device_train_batch_size": 5, "use_cpu": True,
                     "report_to": "none", "disable_tqdm": True}  # fmt: skip
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(SHAPE | settings))
        return str(tmp_path / "recipe.yaml")

    return write


@pytest.fixture
def damaged(shop):
    products = shop.products.map(lambda row: {"images": [BROKEN]} if row["product_id"] == "p9" else {})
    queries = shop.queries.map(lambda row: {"image": BROKEN} if row["query_id"] == "q2" else {})
    return join(products, queries)


def test_counts_say_what_the_shop_lacks(shop):
    counts = count_data(shop)
    assert (counts.products, counts.queries, counts.query_rows, counts.leaves) == (24, 23, 24, 3)
    assert (counts.without_image, counts.without_title, counts.repeated_titles) == (1, 1, 2)
    assert (counts.without_text, counts.without_photo) == (1, 22)
    # q3's product has no picture, q2 has no text, product 4 no title
    assert counts.serving == dict(zip(OBJECTIVES, (23, 23, 22, 22, 0), strict=True))
    assert count_data(shop, explicit_negatives=True).serving["intra_negative"] == 24


def test_unreadable_pictures_are_found_and_named(shop, damaged):
    assert find_unreadable(shop, "all", progress=False) == []
    first, second = find_unreadable(damaged, "sample", progress=False)
    assert first.startswith("product p9, image 0 (unreadable image") and second.startswith("query q2 (unreadable")


@pytest.mark.parametrize(
    "options", [{"num_train_epochs": 3}, {"num_train_epochs": 2.5, "gradient_accumulation_steps": 3}, {"max_steps": 7}]
)
def test_steps_are_those_that_the_trainer_takes(tiny, shop, tmp_path, options):
    arguments = Moon2TrainingArguments(tmp_path, per_device_train_batch_size=5, save_strategy="no", use_cpu=True,
                                       disable_tqdm=True, report_to="none", **options)  # fmt: skip
    trainer = Moon2Trainer(copy.deepcopy(tiny[0]), arguments, train_dataset=shop, processing_class=tiny[1])
    trainer.train()
    assert count_steps(arguments, len(shop))[1] == trainer.state.global_step


def test_what_co_augmentation_adds_is_counted_and_opened(shop, recipe, capsys):
    rows = shop.products.to_list()
    for number, row in enumerate(rows):
        row["enriched_title"] = {0: "a mug of many words", 1: "  "}.get(number, "")
        row["expanded_images"] = {0: row["images"], 9: [*row["images"], BROKEN]}.get(number, [])
        row["core_region"] = [0.1, 0.2, 0.9, 1.0] if number < 5 else []
    features = Features(shop.products.features | OPTIONAL_PRODUCT_FEATURES)
    data = join(Dataset.from_list(rows, features=features), shop.queries)
    assert count_data(data).augmented == {"enriched_title": 1, "expanded_images": 2, "core_region": 5}
    assert count_data(shop).augmented == {}
    (name,) = find_unreadable(data, "all", progress=False)
    assert name.startswith("product p9, expanded image 1 (unreadable image")
    with pytest.raises(ValueError, match="training would fail: 1 pictures cannot be read"):
        main(["--config", recipe(data)])
    assert "  core_region               5 (20.8 %)" in capsys.readouterr().out
    main(["--config", recipe(data), "--expanded_image_share", "0"])


def test_a_good_recipe_is_timed_and_nothing_is_written(recipe, tmp_path, capsys):
    main(["--config", recipe(), "--num_train_epochs", "2"])
    printed = capsys.readouterr().out
    assert "24 products in 3 leaf categories; 23 queries in 24 rows" in printed
    assert "4 steps an epoch, 8 in all" in printed and "s a step on cpu, measured" in printed
    assert "GB of activations at 5 triplets, measured" in printed
    assert printed.rstrip().endswith("nothing stands in the way")
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_what_would_stop_a_training_is_said_at_the_end(recipe, damaged, capsys):
    path = recipe(damaged)
    with pytest.raises(
        ValueError, match="training would fail: 2 pictures cannot be read; mend them, or give --on_bad"
    ):
        main(["--config", path])
    assert "product p9, image 0" in capsys.readouterr().out
    main(["--config", path, "--on_bad_image", "skip", "--cached_chunk_size", "2"])
    with pytest.raises(ValueError, match="24 query rows do not fill one batch of 99"):
        main(["--config", path, "--per_device_train_batch_size", "99", "--images", "none"])
    with pytest.raises(ValueError, match="images='some'; give one of sample, all, none"):
        main(["--config", path, "--images", "some"])


def test_a_saved_model_is_measured_too(recipe, tiny, tmp_path, capsys):
    for part in tiny:
        part.save_pretrained(tmp_path / "model")
    settings = {name: value for name, value in yaml.safe_load(open(recipe())).items() if name not in SHAPE}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings | {"model": str(tmp_path / "model")}))
    main(["--config", str(tmp_path / "recipe.yaml")])
    assert f"{tiny[0].num_parameters() / 1e6:,.1f} M parameters" in capsys.readouterr().out


@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"bf16": True, "cached_chunk_size": 3}], ids=str)
def test_a_step_is_measured_as_it_is_trained(tiny, shop, tmp_path, options):
    arguments = Moon2TrainingArguments(tmp_path, per_device_train_batch_size=6, max_steps=1, save_strategy="no",
                                       disable_tqdm=True, use_cpu=True, report_to="none", **options)  # fmt: skip

    def seen(run) -> tuple[set[torch.dtype], torch.nn.Module]:
        trainer = Moon2Trainer(copy.deepcopy(tiny[0]), arguments, shop, processing_class=tiny[1])
        dtypes = set()
        for layer in trainer.model.language_model.layers:
            layer.self_attn.q_proj.register_forward_hook(lambda module, given, out: dtypes.add(out.dtype))
        run(trainer)
        return dtypes, trainer

    dtypes, trainer = seen(measure_step)
    assert dtypes == seen(Moon2Trainer.train)[0] == {torch.bfloat16 if "bf16" in options else torch.float32}
    assert len(trainer.optimizer.state) > 40  # it took a step
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, tiny[0].state_dict()[name]), name


def test_adapters_are_measured_as_such(recipe, tiny, tmp_path, monkeypatch):
    for part in tiny:
        part.save_pretrained(tmp_path / "model")
    settings = {name: value for name, value in yaml.safe_load(open(recipe())).items() if name not in SHAPE}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings | {"model": str(tmp_path / "model")}))
    measured = []

    def measure(trainer):
        measured.append(trainer.model)
        return measure_step(trainer)

    monkeypatch.setattr("moon2_training.validate.measure_step", measure)
    main(["--config", str(tmp_path / "recipe.yaml"), "--use_peft", "true", "--lora_r", "4"])
    assert isinstance(measured[0], PeftModel)


def test_a_loss_that_is_not_finite_is_said(tiny, shop, tmp_path):
    model = copy.deepcopy(tiny[0])
    arguments = Moon2TrainingArguments(tmp_path, per_device_train_batch_size=6, use_cpu=True, report_to="none")
    trainer = Moon2Trainer(model, arguments, shop, processing_class=tiny[1])
    with torch.no_grad():
        model.language_model.layers[0].mlp.gate.weight[0, 0] = torch.inf
    message = "the loss is not finite in .*, and so is the weight language_model.layers.0.mlp.gate.weight"
    with pytest.raises(ValueError, match=message):
        measure_step(trainer)


def test_what_the_graph_holds_is_counted_once_and_let_go():
    layer = torch.nn.Linear(8, 8)
    given = torch.randn(4, 8)
    with KeptForBackward(layer) as kept:
        out = layer(given).exp()  # keeps its input for the layer's weight and its own result; 4 x 8 float32 each
        loss = (out * out).sum()  # keeps the result a second time: the same storage
        assert kept.live == kept.peak == 2 * 4 * 8 * 4
        loss.backward()
    del out, loss
    assert kept.live == 0


def test_a_cached_step_holds_less(tiny, shop, tmp_path):
    def activations(**options) -> int:
        arguments = Moon2TrainingArguments(tmp_path, per_device_train_batch_size=12, save_strategy="no", use_cpu=True,
                                           disable_tqdm=True, report_to="none", **options)  # fmt: skip
        trainer = Moon2Trainer(copy.deepcopy(tiny[0]), arguments, train_dataset=shop, processing_class=tiny[1])
        return measure_step(trainer)[1]

    assert activations(cached_chunk_size=3) < 0.5 * activations()
