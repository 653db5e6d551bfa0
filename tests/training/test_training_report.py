from __future__ import annotations

import copy
import math

import pytest
from PIL import Image

from moon2_training.losses import OBJECTIVES, VIEWS
from moon2_training.trainer import Moon2Trainer
from moon2_training.trainer_config import Moon2TrainingArguments
from moon2_training.training_report import draw_training_report, write_training_report


def log_line(step: int, experts: int = 4) -> dict[str, float]:
    line = {"step": step, "epoch": step / 10, "loss": 9 / step, "learning_rate": 1e-3, "temperature/inter": 0.07}
    line |= {"temperature/intra": 0.06, "filter/kept_share": 0.8, "filter/mean_phi": 0.7, "filter/margin": 0.1}
    for number, name in enumerate(OBJECTIVES[:4]):
        line |= {f"loss/{name}": (number + 1) / step, f"weight/{name}": 1 + number / 10}
    for view in VIEWS if experts else ():
        line |= {f"expert_load/{view}/{z}": 1 / experts for z in range(experts)} | {f"routing_entropy/{view}": 1.3}
    return line


def panels(log) -> dict[str, object]:
    return {axes.get_label(): axes for axes in draw_training_report(log).axes}


def test_every_panel_that_has_numbers_is_drawn():
    scores = [{"step": step, "epoch": step / 10, "eval_mean_recall@10": 0.5, "eval_t2mm_recall@10": 0.4}
              for step in (20, 40)]  # fmt: skip
    drawn = panels([log_line(step) for step in range(1, 41)] + scores)
    assert list(drawn) == ["loss", "weight", *(f"expert_load/{view}" for view in VIEWS), "routing_entropy",
                           "temperature", "learning_rate", "filter", "evaluation"]  # fmt: skip
    loss = {line.get_label(): line for line in drawn["loss"].lines}
    assert {"total", *OBJECTIVES[:4]} <= loss.keys() and loss["total"].get_ydata()[-1] == pytest.approx(9 / 40)
    weight = {line.get_label(): line.get_color() for line in drawn["weight"].lines}
    assert all(loss[name].get_color() == weight[name] for name in OBJECTIVES[:4])
    assert drawn["loss"].get_xlim() == (0, 40)
    for axes in drawn.values():  # every label stands beside its panel, and no two on one another
        places = sorted(text.get_position()[1] for text in axes.texts)
        assert all(-0.1 <= place <= 1.1 for place in places)
        assert all(later - earlier > 0.05 for earlier, later in zip(places, places[1:], strict=False))


def test_a_dense_unfiltered_run_has_fewer_panels():
    lines = [{k: v for k, v in log_line(step, experts=0).items() if not k.startswith("filter/")} for step in (1, 2, 3)]
    assert list(panels(lines)) == ["loss", "weight", "temperature", "learning_rate"]


def test_a_long_log_with_gaps_is_thinned():
    lines = [log_line(step) for step in range(1, 2001)]
    lines[5]["loss"] = math.nan
    line = panels(lines)["loss"].lines[0]
    assert len(line.get_xdata()) == 200 and all(math.isfinite(value) for value in line.get_ydata())


def test_a_loss_of_zero_is_drawn_too(tmp_path):
    lines = [log_line(step) | {"loss": 0.0, "loss/inter_text": 0.0} for step in (1, 2, 3)]
    write_training_report(lines, tmp_path / "report.png")
    assert panels(lines)["loss"].get_yscale() == "linear" and (tmp_path / "report.png").stat().st_size > 10_000
    assert panels([log_line(step) for step in (1, 2, 3)])["loss"].get_yscale() == "log"


def test_an_empty_log_gives_a_reason_and_no_file(tmp_path):
    with pytest.raises(ValueError, match="no line with a loss; train for longer, or lower logging_steps"):
        write_training_report([{"step": 1, "train_runtime": 2.0}], tmp_path / "report.png")
    assert not list(tmp_path.iterdir())


def test_the_trainer_leaves_a_picture_and_survives_without_one(tiny, shop, tmp_path):
    def run(folder, **options):
        arguments = Moon2TrainingArguments(folder, per_device_train_batch_size=6, max_steps=2, save_strategy="no",
                                           use_cpu=True, disable_tqdm=True, report_to="none", **options)  # fmt: skip
        Moon2Trainer(copy.deepcopy(tiny[0]), arguments, train_dataset=shop, processing_class=tiny[1]).train()

    run(tmp_path / "logged", logging_steps=1)
    with Image.open(tmp_path / "logged" / "training_report.png") as picture:
        assert picture.format == "PNG" and picture.width == 1200 and picture.height > 600
    with pytest.warns(UserWarning, match="no training report: ValueError: the log has no line"):
        run(tmp_path / "silent", logging_strategy="no")
