"""MOON2.0 beside its peers and its ablations, on the same data, with the same number of products seen.

python tests/benchmarks/quality.py --data DIR --work WORK

DIR holds {products,queries}-{train,validation,test}.parquet. The main rows are trained with every learning rate; the
one that is best on the validation split is kept and trained with further seeds; the other rows take MOON2.0's rate.
What is done stands in quality.json beside this file and is not repeated, so the command can be interrupted and given
again. `--split test` scores the chosen models on the test split, which nothing was chosen by; `--on DIR` on another
shop's, zero-shot.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import numpy as np

HERE = Path(__file__).parent
RECIPE = HERE.parents[1] / "training" / "recipes" / "mini.yaml"
BUNDLED = HERE.parents[1] / "space_app" / "moon2-mini"
DIRECTIONS = {"t2mm": "t→mm", "i2mm": "i→mm", "mm2mm": "mm→mm", "t2i": "t→i", "i2t": "i→t"}
RATES = (1e-3, 2e-3, 5e-4, 4e-3, 8e-3)
MAIN_SEEDS, OTHER_SEEDS = (0, 1, 2), (0, 1)
SHORT = {"num_train_epochs": 1}
DENSE = {"num_experts": 0}
ORIGINALS = {"enriched_title_share": 0.0, "expanded_image_share": 0.0}
OURS = "MOON2.0"
UNTRAINED = "BM25 over titles"


class Row(NamedTuple):
    """One line of the tables: who trains it, what differs from the recipe, whether it is one of the main rows."""

    kind: str
    options: dict
    main: bool = False


ROWS = {
    OURS: Row("moon2", {}, main=True),
    "CLIP dual encoder": Row("clip", {}, main=True),
    "dense, InfoNCE, 12:3:2": Row("12:3:2", DENSE | ORIGINALS, main=True),
    "dense, InfoNCE, uniform mix": Row("uniform mix", DENSE | ORIGINALS, main=True),
    "without MoE": Row("moon2", DENSE),
    "without dual-level alignment": Row("moon2", {"objectives": ["inter_multimodal"]}),
    "without intra-product alignment": Row("moon2", {"objectives": ["inter_text", "inter_image", "inter_multimodal"]}),
    "without co-augmentation": Row("moon2", ORIGINALS),
    "without filtering": Row("moon2", {"sample_filtering": False}),
    "learned weights, as published": Row("moon2", {"objective_floor": 0.0}),
    "uniform weights": Row("moon2", {"objective_weighting": "uniform"}),
    "Guided MoE": Row(
        "moon2",
        {"guided_fields": ["category", "attributes"], "item_text_fields": ["title", "category", "attributes"]},
    ),
}


class Run(NamedTuple):
    """One training."""

    row: str
    rate: float
    seed: int

    @property
    def key(self) -> str:
        return f"{self.row} | {self.rate:g} | {self.seed}"

    def folder(self, work: Path) -> Path:
        return work / "".join(c if c.isalnum() else "-" for c in self.key)


def recipe_of(row: str, full: bool) -> dict:
    """What a row is trained with: the mini recipe, shortened unless `full`, and what differs in this row.

    Of a peer only what it reads: the shape and the schedule.
    """
    import yaml
    from transformers import TrainingArguments

    from moon2_training.mini import MiniConfig

    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8")) | ({} if full else SHORT)
    for name in ("output_dir", "seed", "learning_rate"):
        del recipe[name]
    if ROWS[row].kind != "moon2":
        read = {f.name for kind in (MiniConfig, TrainingArguments) for f in fields(kind)} | {"muon"}
        recipe = {name: value for name, value in recipe.items() if name in read}
    return recipe | ROWS[row].options


def train(run: Run, arguments: argparse.Namespace) -> None:
    """Train one run and save its model; the folder is there whole or not at all."""
    import shutil

    import torch
    from peers import MIXES, FixedMixTrainer, active_parameters, train_clip
    from transformers import TrainingArguments, set_seed

    from moon2_dataset import load_product_queries
    from moon2_training.mini import MiniConfig, build_mini
    from moon2_training.train import product_texts
    from moon2_training.trainer import Moon2Trainer
    from moon2_training.trainer_config import Moon2TrainingArguments

    kind = ROWS[run.row].kind
    output = run.folder(arguments.work)
    part = output.with_name(output.name + ".part")
    recipe = recipe_of(run.row, arguments.full)
    recipe |= {"output_dir": str(part), "learning_rate": run.rate, "seed": run.seed, "save_strategy": "no"}
    recipe |= {"dataloader_num_workers": 0, "disable_tqdm": True, "use_cpu": not torch.cuda.is_available()}
    shape = MiniConfig(**{f.name: recipe[f.name] for f in fields(MiniConfig) if f.name in recipe})
    data = load_product_queries(arguments.work / "products-train.parquet", arguments.data / "queries-train.parquet")
    set_seed(run.seed)
    if kind == "clip":
        schedule = {f.name: recipe[f.name] for f in fields(TrainingArguments) if f.name in recipe}
        model, state = train_clip(data, schedule, shape.image_size, shape.vocab_size, part, recipe["muon"])
    else:
        model, processor = build_mini(shape, product_texts(data))
        named = {f.name for f in fields(Moon2TrainingArguments)}
        options = Moon2TrainingArguments(**{name: value for name, value in recipe.items() if name in named})
        maker, mix = (Moon2Trainer, {}) if kind == "moon2" else (FixedMixTrainer, {"mix": MIXES[kind]})
        trainer = maker(model, options, data, processing_class=processor, **mix)
        trainer.train()
        trainer.save_model()
        state = trainer.state
    products = state.global_step * recipe["per_device_train_batch_size"]
    facts = {"active_parameters": active_parameters(model), "products_seen": products}
    facts["recipe"] = recipe_of(run.row, arguments.full)
    (part / "run.json").write_text(json.dumps(facts))
    if output.exists():  # of another recipe
        shutil.rmtree(output)
    part.rename(output)


def score(encoder, arguments: argparse.Namespace, split: str) -> dict:
    """Recall@10 of the five directions and of every query, and the accuracies that the aims name."""
    from moon2_dataset import load_product_queries
    from moon2_training.evaluate import evaluate_encoder

    data = load_product_queries(*judged_by(arguments, split))
    results = evaluate_encoder(encoder, data.products, data.queries, progress=False, per_query=True)
    leaf = list(results["classification"]["tasks"].values())[-1]
    tasks = {"leaf": leaf}
    for name, task in results["attributes"]["tasks"].items():
        if re.search("colou?r", name.casefold()):  # baseColour in one shop
            tasks["colour"] = task
    return {
        "recall@10": {
            key: result["recall@10"]["value"] for key, result in results["retrieval"].items() if result["queries"]
        },
        "hits": {key: pack(of["recall@10"]) for key, of in results["per_query"].items()},
        "accuracy": {
            name: {of: tasks[name][of]["accuracy"] for of in ("image_title", "image") if tasks[name][of]}
            for name in ("leaf", "colour")
            if name in tasks
        },
        "chance": {key: result.get("chance_recall@10") for key, result in results["retrieval"].items()},
    }


def judged_by(arguments: argparse.Namespace, split: str) -> list[Path]:
    """The tables of a split, or of the split of another shop, "SHOP SPLIT"."""
    folder, split = (arguments.on, split.rpartition(" ")[2]) if " " in split else (arguments.data, split)
    return [folder / f"{table}-{split}.parquet" for table in ("products", "queries")]


def pack(values: list[float]) -> str:
    """A 0 or 1 for each query as hexadecimal digits, behind their number."""
    return f"{len(values)}:{np.packbits(np.array(values, dtype=bool)).tobytes().hex()}"


def unpack(text: str) -> np.ndarray:
    """What `pack` was given."""
    count, _, digits = text.partition(":")
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), dtype=np.uint8), count=int(count)).astype(float)


class Results:
    """quality.json: what every run scored, by split. Runs of another recipe than the present one do not count."""

    def __init__(self, path: Path, full: bool) -> None:
        self.path = path
        self.recipes = {row: recipe_of(row, full) for row in ROWS}
        self.runs = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def get(self, key: str, split: str) -> dict | None:
        """What a run scored; None if it is still to be done."""
        run = self.runs.get(key, {})
        row = key.partition(" | ")[0]
        return run.get(split) if row not in ROWS or run.get("recipe") == self.recipes[row] else None

    def add(self, key: str, split: str, scores: dict, recipe: dict | None = None) -> None:
        """Keep what a run scored; with another recipe than before it replaces all that was scored then."""
        run = self.runs.setdefault(key, {})
        if recipe is not None and run.get("recipe") != recipe:
            run.clear()
            run["recipe"] = recipe
        run[split] = scores
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.runs, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(self.path)

    def mean(self, key: str, split: str) -> float:
        return statistics.mean(self.get(key, split)["recall@10"].values())

    def best_rate(self, row: str) -> float | None:
        """The learning rate that is best on the validation split; None before all were tried."""
        runs = [Run(row if ROWS[row].main else OURS, rate, 0) for rate in RATES]
        if not all(self.get(run.key, "validation") for run in runs):
            return None
        return max(runs, key=lambda run: self.mean(run.key, "validation")).rate


def runs_left(results: Results, only: list[str]) -> list[Run]:
    """What is to be trained next: the learning rates of the main rows first, then the seeds."""
    found = [Run(row, rate, 0) for rate in RATES for row in only if ROWS[row].main]
    for seed in MAIN_SEEDS:
        for row in only:
            if seed in (MAIN_SEEDS if ROWS[row].main else OTHER_SEEDS) and (rate := results.best_rate(row)):
                found.append(Run(row, rate, seed))
    return [run for run in dict.fromkeys(found) if not results.get(run.key, "validation")]


def run_all(arguments: argparse.Namespace, results: Results) -> None:
    """Train and score what is missing, `--jobs` at a time, one thread each."""

    def run_one(run: Run) -> tuple[Run, str]:
        command = [sys.executable, __file__, *sys.argv[1:], "--run", run.row, str(run.rate), str(run.seed)]
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        return run, "" if done.returncode == 0 else done.stderr[-2000:]

    while runs := runs_left(results, arguments.rows):
        with ThreadPoolExecutor(arguments.jobs) as jobs:
            for run, error in jobs.map(run_one, runs):
                if error:
                    raise SystemExit(f"{run.key} failed:\n{error}")
                done = json.loads((run.folder(arguments.work) / "validation.json").read_text())
                sizes = {name: done[name] for name in ("active_parameters", "products_seen")}
                results.add(run.key, "validation", sizes | done["scores"], done["recipe"])
                print(f"{run.key}: mean R@10 {100 * results.mean(run.key, 'validation'):.1f}", flush=True)


def chosen_runs(results: Results) -> dict[str, list[Run]]:
    """Every row's runs with its learning rate, as far as they are done."""
    found = {}
    for row in ROWS:
        if rate := results.best_rate(row):
            runs = [Run(row, rate, seed) for seed in MAIN_SEEDS]
            if done := [run for run in runs if results.get(run.key, "validation")]:
                found[row] = done
    return found


def tables(results: Results, split: str) -> str:
    """Markdown: every row's mean and spread over seeds, and what MOON2.0 has more, with its 95 % interval."""
    from moon2_training.comparison import paired_difference

    names = " | ".join(DIRECTIONS.values())
    lines = [f"| | {names} | mean | leaf | colour | seeds |", "|---" * 10 + "|"]
    differences = [f"| MOON2.0 less … | {names} | mean |", "|---" * 7 + "|"]
    scored = {row: [results.get(run.key, split) for run in runs] for row, runs in chosen_runs(results).items()}
    scored = {row: done for row, runs in scored.items() if (done := [of for of in runs if of])}
    if (untrained := results.get(UNTRAINED, split)) is not None:
        scored[UNTRAINED] = [untrained]
    ours = {key: np.stack([unpack(of["hits"][key]) for of in scored[OURS]]) for key in DIRECTIONS}
    for row, runs in scored.items():
        keys = [key for key in DIRECTIONS if key in runs[0]["recall@10"]]
        columns = [[100 * of["recall@10"][key] for of in runs] if key in keys else [] for key in DIRECTIONS]
        columns.append([statistics.mean(of) for of in zip(*columns, strict=True)] if len(keys) == 5 else [])
        accuracies = [runs[0]["accuracy"].get(name, {}) for name in ("leaf", "colour")]
        cells = [_spread(values) for values in columns]
        cells += [" / ".join(f"{100 * a[of]:.0f}" for of in ("image_title", "image") if of in a) for a in accuracies]
        lines.append(f"| {row} | {' | '.join(cells)} | {len(runs)} |")
        if row != OURS:
            theirs = {key: np.stack([unpack(of["hits"][key]) for of in runs]) for key in keys}
            cells = [_signed(paired_difference(ours[key], theirs[key])) if key in keys else "" for key in DIRECTIONS]
            whole = ""
            if len(keys) == 5 and len({of.shape[1] for of in ours.values()}) == 1:
                whole = _signed(paired_difference(*(np.mean([of[k] for k in keys], axis=0) for of in (ours, theirs))))
            differences.append(f"| {row} | {' | '.join(cells)} | {whole} |")
    return "\n".join([*lines, "", *differences])


def short_table(results: Results, split: str) -> str:
    """Markdown: every row's means over its seeds, below moon2-mini's, if its folder tells of that split."""
    lines = [f"| | {' | '.join(DIRECTIONS.values())} | mean |", "|---" * 7 + "|"]

    def add(name: str, runs: list[dict[str, float]]) -> None:
        means = {key: 100 * statistics.mean(of[key] for of in runs) for key in DIRECTIONS if key in runs[0]}
        cells = [f"{means[key]:.1f}" if key in means else "" for key in DIRECTIONS]
        cells.append(f"{statistics.mean(means.values()):.1f}" if len(means) == len(DIRECTIONS) else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")

    told = json.loads((BUNDLED / "results.json").read_text(encoding="utf-8"))
    if told["products"] == f"products-{split}":
        add("moon2-mini", [{key: told["retrieval"][key]["recall@10"]["value"] for key in DIRECTIONS}])
    scored = {UNTRAINED: [results.get(UNTRAINED, split)]}
    scored |= {row: [results.get(run.key, split) for run in runs] for row, runs in chosen_runs(results).items()}
    for row, done in scored.items():
        if done := [of["recall@10"] for of in done if of]:
            add(row, done)
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def _signed(difference) -> str:
    low, high = 100 * difference.low, 100 * difference.high
    mark = "**" if difference.excludes_zero else ""
    return f"{mark}{100 * difference.mean:+.1f}{mark} ({low:+.1f} to {high:+.1f})"


def write_section(path: Path, name: str, text: str) -> None:
    """Put `text` between the markers of that name in a Markdown file."""
    begin, end = f"<!-- {name}: begin, made by tests/benchmarks/quality.py -->", f"<!-- {name}: end -->"
    whole = path.read_text(encoding="utf-8")
    before, found, rest = whole.partition(begin)
    if not found or end not in rest:
        raise ValueError(f"{path} has no lines {begin!r} and {end!r}; add them where the table is to stand")
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for models and the augmented catalogue")
    parser.add_argument("--results", type=Path, default=HERE / "quality.json")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, help="rows to train")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--on", type=Path, help="folder of another shop to be judged on, zero-shot")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    parser.add_argument("--full", action="store_true", help="the whole recipe, as for a GPU, not the shortened one")
    parser.add_argument(
        "--write", type=Path, help="Markdown file with the section `quality SPLIT` to put the table in"
    )
    parser.add_argument(
        "--write_short", type=Path, help="Markdown file with the section `quality SPLIT, short` for the means alone"
    )
    parser.add_argument("--run", nargs=3, metavar=("ROW", "RATE", "SEED"), help="one training, in this process")
    arguments = parser.parse_args()
    if arguments.run:
        from moon2_training.peer_encoders import load_any_encoder

        row, rate, seed = arguments.run
        run = Run(row, float(rate), int(seed))
        folder = run.folder(arguments.work)
        facts = json.loads((folder / "run.json").read_text()) if folder.is_dir() else {}
        if facts.get("recipe") != recipe_of(run.row, arguments.full):
            train(run, arguments)
            facts = json.loads((folder / "run.json").read_text())
        scores = score(load_any_encoder(folder), arguments, "validation")
        (folder / "validation.json").write_text(json.dumps(facts | {"scores": scores}))
        return
    if arguments.on:
        arguments.split = f"{arguments.on.name} {arguments.split}"
    results = Results(arguments.results, arguments.full)
    augmented = arguments.work / "products-train.parquet"
    if not augmented.is_file():
        from moon2_dataset.augment.pipeline import AugmentArguments, augment

        augment(AugmentArguments(str(arguments.data / "products-train.parquet"), str(augmented)))
    run_all(arguments, results)
    score_others(arguments, results)
    text = tables(results, arguments.split)
    print(text)
    if arguments.write:
        write_section(arguments.write, f"quality {arguments.split}", text)
    if arguments.write_short:
        write_section(
            arguments.write_short, f"quality {arguments.split}, short", short_table(results, arguments.split)
        )


def score_others(arguments: argparse.Namespace, results: Results) -> None:
    """Score what needs no training, and the chosen models on another split than the validation split."""
    from peers import Bm25Encoder

    from moon2_dataset import load_products
    from moon2_training.peer_encoders import load_any_encoder

    if not results.get(UNTRAINED, arguments.split):
        products, _ = judged_by(arguments, arguments.split)
        encoder = Bm25Encoder(load_products(products))
        results.add(UNTRAINED, arguments.split, score(encoder, arguments, arguments.split))
    for runs in chosen_runs(results).values():
        for run in runs:
            if not results.get(run.key, arguments.split):
                encoder = load_any_encoder(run.folder(arguments.work))
                results.add(run.key, arguments.split, score(encoder, arguments, arguments.split))


if __name__ == "__main__":
    main()
