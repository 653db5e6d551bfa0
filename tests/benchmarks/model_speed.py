"""How fast the model computes: embeds items, and trains on triplets; random weights, random items, no network.

FLOPs are counted by torch's FlopCounterMode for one item with the eager experts, whose products it knows, and scaled:
all items are equal, and the other implementations do the same products. Attention counts as if it were not causal.
Models stay in eval mode while they train: nothing in them is random, and a batch of texts need not visit the vision
tower, so the separate passes are not charged for what one process alone does not need.

Example:
    python tests/benchmarks/model_speed.py --shape qwen3-vl-2b --device cuda --sync-debug --output model_speed.json
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Hashable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from speed_bench import EXPERTS, SHAPES, TEXT_TOKENS, Bench, Options, loss_keys

from modeling_moon2 import Moon2Model
from modeling_moon2.modeling_moon2 import Moon2ViewsOutput
from moon2_training.losses import DualLevelAlignmentLoss

IMPLEMENTATIONS = {"cpu": ("eager", "grouped_mm"), "cuda": ("eager", "grouped_mm", "batched_mm")}
PLACES = 5  # of host waits, to print


def encode(model: Moon2Model, inputs: dict[str, Any]) -> torch.Tensor:
    """Embed whole items."""
    with torch.inference_mode():
        return model(**{name: value for name, value in inputs.items() if name != "packing"}).embeddings


def three_views(model: Moon2Model, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """r^t, r^i and r^mm (B, D) of `encode_views`."""
    views = model(**inputs, return_views=True)
    return views.text_embeddings, views.image_embeddings, views.multimodal_embeddings


def three_passes(model: Moon2Model, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same of three forwards: of the texts, of the images, of both."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    images = {name: inputs[name] for name in ("pixel_values", "image_grid_thw", "image_layout")}
    text, image = slice(-TEXT_TOKENS, None), slice(-TEXT_TOKENS)
    return (
        model(input_ids=ids[:, text], attention_mask=mask[:, text]).embeddings,
        model(input_ids=ids[:, image], attention_mask=mask[:, image], **images).embeddings,
        model(input_ids=ids, attention_mask=mask, **images).embeddings,
    )


def backward(model: Moon2Model, inputs: dict[str, Any], views: Callable) -> None:
    """Embed three views one way or the other and go back from their sum."""
    sum(view.sum() for view in views(model, inputs)).backward()


def training_step(model: Moon2Model, inputs: dict[str, Any], keys: dict[str, torch.Tensor]) -> None:
    """Forward, loss and backward of B triplets; no optimizer."""
    outputs: Moon2ViewsOutput = model(**inputs, return_views=True)
    DualLevelAlignmentLoss()(outputs, **keys).loss.backward()


def host_waits(run: Callable[[], Any]) -> Counter[str]:
    """Where the host waits for the GPU, as "file:line", and how often; of the frame that called into torch."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = (f"{'/'.join(Path(w.filename).parts[-2:])}:{w.lineno}" for w in caught if "synchroniz" in str(w.message))
    return Counter(places)


def measure_encode(bench: Bench) -> None:
    """Embed one item, and many, with every implementation of the experts."""
    candidates: dict[Hashable, Callable] = {}
    for items in sorted({1, bench.options.items}):
        inputs = bench.inputs(items)
        for variant, experts in EXPERTS.items():
            for implementation in IMPLEMENTATIONS[bench.options.device] if experts else ("none",):
                candidates[variant, implementation, items] = partial(encode, bench.model(variant), inputs)

    def prepare(name: tuple[str, str, int]) -> None:
        if name[1] != "none":
            bench.model(name[0]).set_experts_implementation(name[1])

    rows = []
    for (variant, implementation, items), seconds in bench.alternate(candidates, prepare).items():
        flops = items * bench.count(variant, "encode", encode)
        row = {"variant": variant, "experts": implementation, "items": items, "ms": 1e3 * seconds}
        rows.append(row | {"items/s": items / seconds} | bench.costs(seconds, flops))
    bench.table("encode", rows)


def measure_views(bench: Bench) -> None:
    """Forward and backward of three views of all items of B triplets, in one go and in three passes."""
    items, ways = 3 * bench.options.batch, {"encode_views": three_views, "three passes": three_passes}
    inputs = bench.inputs(items)
    patches, length = inputs["pixel_values"].shape[0], inputs["input_ids"].shape[1]
    tokens = {"encode_views": items * (length + TEXT_TOKENS), "three passes": items * 2 * length}
    images = {"encode_views": patches, "three passes": 2 * patches}
    ratios = []
    for variant in EXPERTS:
        model = bench.model(variant)
        runs = {(variant, way): partial(backward, model, inputs, views) for way, views in ways.items()}
        seconds = bench.alternate(runs, bench.forget_gradients)
        of_variant = {}
        for name, of_way in seconds.items():
            way = name[1]
            flops = items * bench.count(variant, way, partial(backward, views=ways[way]))
            row = {"variant": variant, "way": way, "items": items, "tokens": tokens[way], "patches": images[way]}
            row |= {"ms": 1e3 * of_way} | bench.costs(of_way, flops)
            row |= {"activations GB": bench.activation_memory(model, runs[name])}
            of_variant[way] = row | {"peak GB": bench.peak_memory(model, runs[name])}
        bench.table(f"views, {variant}", list(of_variant.values()))
        if len(of_variant) == len(ways):
            fused, separate = (of_variant[way] for way in ways)
            columns = {
                "time": "ms",
                "activations": "activations GB",
                "peak memory": "peak GB",
                "bound: FLOPs": "TFLOP",
                "tokens": "tokens",
                "patches": "patches",
            }
            of_ratio = {
                name: None if fused[column] is None else separate[column] / fused[column]
                for name, column in columns.items()
            }
            ratios.append({"variant": variant} | of_ratio)
    bench.table("three passes / encode_views", ratios)


def measure_step(bench: Bench) -> None:
    """Forward, loss and backward of B triplets."""
    items = 3 * bench.options.batch
    inputs, keys = bench.inputs(items), loss_keys(bench.options.batch, bench.options.device)
    candidates = {(v, "training step"): partial(training_step, bench.model(v), inputs, keys) for v in EXPERTS}
    rows = []
    for name, seconds in bench.alternate(candidates, bench.forget_gradients).items():
        variant = name[0]
        flops = items * bench.count(variant, "encode_views", partial(backward, views=three_views))
        row = {"variant": variant, "triplets": bench.options.batch, "ms": 1e3 * seconds, "items/s": items / seconds}
        row |= bench.costs(seconds, flops)
        rows.append(row | {"peak GB": bench.peak_memory(bench.model(variant), candidates[name])})
    bench.table("training step", rows)


def measure_waits(bench: Bench) -> None:
    """Where the host waits for the GPU while it embeds, and in a training step in training mode."""
    if not bench.cuda:
        raise ValueError("--sync-debug asks the CUDA runtime; give --device cuda")
    model, items = bench.model("split"), 3 * bench.options.batch
    inputs, keys = bench.inputs(items), loss_keys(bench.options.batch, bench.options.device)

    def train() -> None:
        model.train()
        try:
            training_step(model, inputs, keys)
        finally:
            model.eval()

    rows = []
    for name, run in {"encode": partial(encode, model, inputs), "training step": train}.items():
        run()  # kernels load and caches fill
        waits = host_waits(run)
        places = ", ".join(f"{place} ({count})" for place, count in waits.most_common(PLACES))
        rows.append({"call": name, "host waits": waits.total(), "first places": places})
        bench.release()
    bench.table("host waits", rows)


MEASURES = {"encode": measure_encode, "views": measure_views, "step": measure_step, "waits": measure_waits}


def main() -> int:
    """Measure; returns 1 if a measure failed as a whole."""
    parser = argparse.ArgumentParser(description="How fast the model computes.")
    parser.add_argument("--shape", choices=SHAPES, default=Options.shape)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default=Options.dtype)
    parser.add_argument("--attn", choices=("sdpa", "eager"), default=Options.attn)
    parser.add_argument("--items", type=int, default=Options.items, help="items to embed at once")
    parser.add_argument("--batch", type=int, default=Options.batch, help="triplets in a training step")
    parser.add_argument(
        "--image_side", type=int, default=Options.image_side, help="visual tokens along a picture's side"
    )
    parser.add_argument("--repeats", type=int, default=Options.repeats, help="timings of which the median counts")
    parser.add_argument(
        "--measures", nargs="+", choices=("encode", "views", "step"), default=["encode", "views", "step"]
    )
    parser.add_argument("--sync-debug", action="store_true", help="list where the host waits for the GPU")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = vars(parser.parse_args())
    measures = arguments.pop("measures") + ["waits"] * arguments["sync_debug"]
    failures = Bench(Options(**arguments)).run({name: MEASURES[name] for name in measures})["failures"]
    return 1 if set(failures) & set(measures) else 0


if __name__ == "__main__":
    sys.exit(main())
