"""Train the mini recipe, shortened, once for each variant and seed, and print Recall@10 of the five directions.

python tests/benchmarks/ablations.py weights --products … --queries … --eval_products … --eval_queries … --work WORK

Runs that are done are kept in WORK and not repeated, so the command can be interrupted and given again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

DIRECTIONS = {"t2mm": "t→mm", "i2mm": "i→mm", "mm2mm": "mm→mm", "t2i": "t→i", "i2t": "i→t"}
LEARNED, UNIFORM = {"objective_weighting": "learned"}, {"objective_weighting": "uniform"}
GRIDS = {
    "weights": {
        "learned": LEARNED,
        "learned, half uniform": LEARNED | {"objective_floor": 0.5},
        "uniform": UNIFORM,
        "balanced": {"objective_weighting": "balanced"},
    },
    "filtering": {
        f"{round(100 * noise)} % wrong, {name}": UNIFORM | options | {"wrong_pairs": noise}
        for noise in (0.1, 0.2, 0.3)
        for name, options in (
            ("unfiltered", {}),
            ("filtered", {"sample_filtering": True}),
            ("filtered between products", {"sample_filtering": True, "filter_scope": "inter"}),
        )
    },
}
GRIDS["augmentation"] = {  # on products as `moon2 augment` leaves them
    name: UNIFORM | {"enriched_title_share": titles, "expanded_image_share": images}
    for name, titles, images in (
        ("without", 0.0, 0.0),
        ("with", 0.5, 0.5),
        ("enriched titles alone", 0.5, 0.0),
        ("expanded images alone", 0.0, 0.5),
    )
}
ADAMW = {"muon": False, "learning_rate": 1e-3}  # as the tables that these grids have made
PHI_SAMPLE = 512  # training pairs on which φ is judged


def add_wrong_pairs(queries, share: float, seed: int):
    """Point further queries at a random product, until `share` of them are wrong as `label_noise` counts."""
    import numpy as np

    rng = np.random.default_rng(seed)
    wrong = np.array(queries["label_noise"], dtype=bool)
    product_ids = np.array(queries["product_id"])
    extra = rng.choice(np.flatnonzero(~wrong), max(0, round(share * len(wrong)) - wrong.sum()), replace=False)
    product_ids[extra] = rng.permutation(product_ids)[: len(extra)]
    wrong[extra] = True
    queries = queries.remove_columns(["product_id", "label_noise"])
    return queries.add_column("product_id", product_ids.tolist()).add_column("label_noise", wrong.tolist())


def phi_auc(model, processor, data, seed: int = 0) -> float:
    """AUC of φ at telling right from wrong pairs; it does not depend on κ and m̄, which keep the order."""
    import numpy as np
    import torch

    from moon2_training.cached_loss import KEYS
    from moon2_training.collator import Moon2Collator
    from moon2_training.triplets import TripletDataset

    wrong = np.array(data.queries["label_noise"], dtype=bool)
    rows = np.random.default_rng(seed).choice(len(wrong), min(PHI_SAMPLE, len(wrong)), replace=False)
    dataset, collator, scores = TripletDataset(data), Moon2Collator(processor), []
    was_training = model.training
    model.eval()
    for start in range(0, len(rows), 64):
        triplets = [dataset[int(row)] for row in rows[start : start + 64]]
        inputs = collator(triplets)
        made_photos = [inputs.pop(name) for name in KEYS][-1]
        with torch.no_grad():
            views = model.encode_views(**inputs)
        text, multimodal = views.text_embeddings.chunk(2)[0], views.multimodal_embeddings.chunk(2)[0]
        query, item = torch.where(made_photos[:, None], text, multimodal), views.multimodal_embeddings.chunk(2)[1]
        similarities = query @ item.T
        size = len(query)
        scores += (similarities.diag() - (similarities.sum(1) - similarities.diag()) / max(size - 1, 1)).tolist()
    model.train(was_training)
    ranks = np.argsort(np.argsort(scores)) + 1
    right = ~wrong[rows]
    positives, negatives = right.sum(), (~right).sum()
    return float((ranks[right].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def train(arguments: argparse.Namespace, options: dict, seed: int, output: Path) -> None:
    """One run; writes result.json into `output`."""
    import yaml
    from transformers import TrainerCallback, set_seed

    from moon2_dataset import join, load_product_queries
    from moon2_training.evaluate import evaluate
    from moon2_training.mini import MiniConfig, build_mini
    from moon2_training.train import product_texts
    from moon2_training.trainer import Moon2Trainer
    from moon2_training.trainer_config import Moon2TrainingArguments

    options = dict(options)
    wrong_pairs = options.pop("wrong_pairs", None)
    recipe = yaml.safe_load((Path(__file__).parents[2] / "training" / "recipes" / "mini.yaml").read_text())
    shape = {name: recipe[name] for name in MiniConfig.__dataclass_fields__ if name in recipe}
    schedule = {name: recipe[name] for name in Moon2TrainingArguments.__dataclass_fields__ if name in recipe}
    schedule |= {"output_dir": str(output), "num_train_epochs": arguments.epochs, "save_strategy": "no", "seed": seed,
                 "dataloader_num_workers": 0, "use_cpu": True, "disable_tqdm": True}  # fmt: skip
    data = load_product_queries(arguments.products, arguments.queries)
    held_out = load_product_queries(arguments.eval_products, arguments.eval_queries)
    if wrong_pairs is not None:
        data = join(data.products, add_wrong_pairs(data.queries, wrong_pairs, seed))
    set_seed(seed)
    model, processor = build_mini(MiniConfig(**shape), product_texts(data))
    training = Moon2TrainingArguments(**schedule | ADAMW | options)
    trainer = Moon2Trainer(model, training, data, processing_class=processor)
    curve = []

    class JudgePhi(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step % max(1, state.max_steps // 4) == 0:
                curve.append({"progress": state.global_step / state.max_steps, "auc": phi_auc(model, processor, data)})

    if wrong_pairs is not None:
        trainer.add_callback(JudgePhi())
    trainer.train()
    retrieval = evaluate(model, processor, held_out.products, held_out.queries, progress=False)["retrieval"]
    log = [line for line in trainer.state.log_history if "loss" in line]
    result = {
        "recall@10": {key: retrieval[key]["recall@10"]["value"] for key in DIRECTIONS},
        "phi_auc": curve,
        "log": [{k: v for k, v in line.items() if k.startswith(("weight/", "filter/", "step"))} for line in log],
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "result.part").write_text(json.dumps(result))
    (output / "result.part").rename(output / "result.json")


def run_all(arguments: argparse.Namespace, arguments_again: list[str]) -> None:
    """Run what is missing, `--jobs` at a time, one thread each."""

    def run(name: str, seed: int) -> None:
        if not (_folder(arguments, name, seed) / "result.json").is_file():
            command = [sys.executable, __file__, *arguments_again, "--run", name, "--seeds", str(seed)]
            result = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
            print(f"{name}, seed {seed}: {'done' if result.returncode == 0 else result.stderr[-2000:]}", flush=True)

    with ThreadPoolExecutor(arguments.jobs) as jobs:
        list(
            jobs.map(
                lambda pair: run(*pair),
                [(n, s) for s in arguments.seeds for n in arguments.only or GRIDS[arguments.grid]],
            )
        )


def table(arguments: argparse.Namespace) -> str:
    """Mean and standard deviation over the seeds that are done."""
    lines = [f"| | {' | '.join(DIRECTIONS.values())} | mean | worst | seeds |", "|---" * 9 + "|"]
    for name in GRIDS[arguments.grid]:
        files = [_folder(arguments, name, seed) / "result.json" for seed in arguments.seeds]
        runs = [json.loads(file.read_text()) for file in files if file.is_file()]
        if not runs:
            continue
        columns = [[100 * run["recall@10"][key] for run in runs] for key in DIRECTIONS]
        columns += [[f(of_run) for of_run in zip(*columns, strict=True)] for f in (statistics.mean, min)]
        spread = statistics.stdev if len(runs) > 1 else lambda values: 0.0
        cells = [f"{statistics.mean(values):.1f} ± {spread(values):.1f}" for values in columns]
        lines.append(f"| {name} | {' | '.join(cells)} | {len(runs)} |")
        if curve := runs[0]["phi_auc"]:
            lines.append("| φ's AUC by progress: " + ", ".join(f"{p['progress']:.2f}: {p['auc']:.3f}" for p in curve))
    return "\n".join(lines)


def plot_weights(arguments: argparse.Namespace, path: str) -> None:
    """Draw M·ω over the steps, a panel for each variant that learns it, a thin line for each seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    runs = {
        name: [json.loads(file.read_text())["log"] for seed in arguments.seeds
               if (file := _folder(arguments, name, seed) / "result.json").is_file()]
        for name, options in GRIDS[arguments.grid].items() if options.get("objective_weighting") != "uniform"
    }  # fmt: skip
    runs = {name: logs for name, logs in runs.items() if logs}
    figure, panels = plt.subplots(1, len(runs), figsize=(3.4 * len(runs), 3), sharey=True, squeeze=False)
    for panel, (name, logs) in zip(panels[0], runs.items(), strict=True):
        keys = [key for key in logs[0][0] if key.startswith("weight/")]
        for number, key in enumerate(keys):
            for seed, log in enumerate(logs):
                steps = [(place + 1) / len(log) for place in range(len(log))]
                label = key.removeprefix("weight/") if seed == 0 else None
                panel.plot(steps, [line[key] for line in log], color=f"C{number}", linewidth=1, label=label)
        panel.axhline(1, color="0.6", linewidth=0.8, linestyle=":")
        panel.set(title=name, xlabel="share of the training")
    panels[0][0].set_ylabel("M·ω")
    panels[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def _folder(arguments: argparse.Namespace, name: str, seed: int) -> Path:
    return Path(arguments.work) / f"{name.replace(' ', '-').replace(',', '').replace('%', 'percent')}-{seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", choices=GRIDS)
    for name in ("products", "queries", "eval_products", "eval_queries", "work"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", help="variants to run, by name; all of the grid if not given")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--plot", help="picture of the objective weights to write")
    parser.add_argument("--run", help="one variant, in this process, with the first seed")
    arguments = parser.parse_args()
    if arguments.run:
        seed = arguments.seeds[0]
        options = GRIDS[arguments.grid][arguments.run]
        train(arguments, options, seed, _folder(arguments, arguments.run, seed))
    else:
        run_all(arguments, sys.argv[1:])
        print(table(arguments))
        if arguments.plot:
            plot_weights(arguments, arguments.plot)


if __name__ == "__main__":
    main()
