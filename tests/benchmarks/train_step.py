"""Products per second in training: MOON2.0's five objectives beside sentence-transformers' three, on one backbone.

Every way trains on the same B triplets (q, p, n) of one picture and 32 text tokens each, ready-made tensors without
padding, with random weights and AdamW; a step is forward, loss, backward and update. Active FLOPs of an item are equal
in all of them. sentence-transformers runs the dense backbone through its own modules and losses: for the pairs
q^t → p^mm, q^i → p^mm and q^mm → p^mm, each of which encodes its three columns; "items once" is what an expert would
write with its parts, where p and n are encoded once for all three. The cached ways take a batch in chunks.

Example:
    python tests/benchmarks/train_step.py --profile --output train_step.json
    python tests/benchmarks/train_step.py --shape qwen3-vl-2b --device cuda --image_side 16 --profile
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from model_speed import training_step
from speed_bench import SHAPES, TEXT_TOKENS, Bench, Options, loss_keys, make_inputs
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from modeling_moon2 import Moon2Model
from moon2_training.cached_loss import cached_backward
from moon2_training.hub_folder import save_hub_folder
from moon2_training.losses import DualLevelAlignmentLoss
from moon2_training.mini import MiniConfig, build_mini

OURS = {"MOON2.0, split experts": "split", "MOON2.0, dense": "dense"}
STOCK, ONCE, CACHED = (f"sentence-transformers, {how}" for how in ("three pairs", "items once", "three pairs, cached"))
TOP_LINES = 12  # of the profiler
PICTURE_INPUTS = ("pixel_values", "image_grid_thw")
Features = dict[str, Any]


def sentence_transformer(model: Moon2Model):
    """The model in sentence-transformers' own modules, made from a folder as users have it."""
    from sentence_transformers import SentenceTransformer

    with tempfile.TemporaryDirectory() as folder:
        save_hub_folder(folder, *build_mini(MiniConfig(num_experts=0), ["red mug"]))
        wrapped = SentenceTransformer(folder, trust_remote_code=True, device=str(model.device))
    wrapped[0].model = model
    return wrapped


def columns(inputs: Features, batch: int) -> dict[str, Features]:
    """What sentence-transformers takes: q^t, q^i, q^mm, p^mm and n^mm of rows [q, p, n]."""
    ids, mask, pixels, grid = (inputs[name] for name in ("input_ids", "attention_mask", *PICTURE_INPUTS))
    patches = len(pixels) // 3

    def features(role: int, tokens: slice, pictures: bool) -> Features:
        rows = slice(role * batch, (role + 1) * batch)
        of_role = {"input_ids": ids[rows, tokens], "attention_mask": mask[rows, tokens], "modality": "message"}
        if pictures:
            of_role |= {"pixel_values": pixels[role * patches : (role + 1) * patches], "image_grid_thw": grid[rows]}
        return of_role

    whole = slice(None)
    return {
        "q^t": features(0, slice(-TEXT_TOKENS, None), pictures=False),
        "q^i": features(0, slice(-TEXT_TOKENS), pictures=True),
        "q^mm": features(0, whole, pictures=True),
        "p^mm": features(1, whole, pictures=True),
        "n^mm": features(2, whole, pictures=True),
    }


QUERIES, ITEMS = ("q^t", "q^i", "q^mm"), ("p^mm", "n^mm")


def three_pairs(loss: nn.Module, of: dict[str, Features]) -> None:
    """The loss of each pair on its columns, as a training on three data sets takes them."""
    for query in QUERIES:
        loss([dict(of[name]) for name in (query, *ITEMS)], None).backward()


def items_once(wrapped: nn.Module, loss: nn.Module, of: dict[str, Features]) -> None:
    """The same three losses over embeddings of which none is computed twice."""
    encoded = {name: wrapped(dict(features))["sentence_embedding"] for name, features in of.items()}
    items = [encoded[name] for name in ITEMS]
    sum(loss.compute_loss_from_embeddings([encoded[query], *items], None) for query in QUERIES).backward()


def cached_step(model: Moon2Model, chunks: list[Features], keys: dict[str, Tensor], chunk: int) -> None:
    """The same, chunk by chunk."""
    loss = DualLevelAlignmentLoss()

    def score(outputs, keys_of_batch):
        return loss(outputs, **keys_of_batch)

    def read() -> Iterator[Features]:
        for number, inputs in enumerate(chunks):
            rows = slice(number * chunk, (number + 1) * chunk)
            items = torch.cat([keys["product_keys"][half][rows] for half in _halves(keys)])
            positives = keys["positive_keys"][rows]
            made = torch.zeros(chunk, dtype=torch.bool, device=items.device)
            yield inputs | {
                "product_keys": items,
                "title_keys": items,
                "positive_keys": positives,
                "made_photos": made,
            }

    cached_backward(model, read, [chunk] * len(chunks), score)


def _halves(keys: dict[str, Tensor]) -> tuple[slice, slice]:
    batch = len(keys["positive_keys"])
    return slice(0, batch), slice(batch, None)


def steps(bench: Bench, batch: int, chunk: int) -> dict[str, tuple[str, Callable[[], None]]]:
    """Per way the variant of the model that it trains, and its forward, loss and backward."""
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
        MultipleNegativesRankingLoss,
    )

    options, dense = bench.options, bench.model("dense")
    inputs = make_inputs(bench.dense, 3 * batch, options.image_side, options.device)
    keys = loss_keys(batch, options.device)
    chunks = [make_inputs(bench.dense, 3 * chunk, options.image_side, options.device)] * (batch // chunk)
    wrapped, of = sentence_transformer(dense), columns(inputs, batch)
    loss = MultipleNegativesRankingLoss(wrapped)
    cached = CachedMultipleNegativesRankingLoss(wrapped, mini_batch_size=chunk)
    found = {name: (kind, partial(training_step, bench.model(kind), inputs, keys)) for name, kind in OURS.items()}
    found |= {
        f"{name}, cached": (kind, partial(cached_step, bench.model(kind), chunks, keys, chunk))
        for name, kind in OURS.items()
    }
    return found | {
        STOCK: ("dense", partial(three_pairs, loss, of)),
        ONCE: ("dense", partial(items_once, wrapped, loss, of)),
        CACHED: ("dense", partial(three_pairs, cached, of)),
    }


def measure_training(bench: Bench, chunk: int) -> None:
    """Whole steps of every way, in turn."""
    batch = bench.options.batch
    found = steps(bench, batch, chunk)
    optimizers = {
        kind: torch.optim.AdamW(bench.model(kind).parameters(), lr=1e-5) for kind in dict.fromkeys(OURS.values())
    }

    def whole(kind: str, step: Callable[[], None]) -> None:
        step()
        optimizers[kind].step()

    candidates = {(kind, name): partial(whole, kind, step) for name, (kind, step) in found.items()}
    seconds = bench.alternate(candidates, bench.forget_gradients)
    stock = {False: seconds.get(("dense", STOCK)), True: seconds.get(("dense", CACHED))}
    rows = []
    for (kind, name), of_way in seconds.items():
        row = {"way": name, "objectives": 3 if name in (STOCK, ONCE, CACHED) else 5, "ms": 1e3 * of_way}
        beside = stock["cached" in name]
        row |= {"triplets/s": batch / of_way, "× three pairs": beside / of_way if beside else None}
        rows.append(row | {"peak GB": bench.peak_memory(bench.model(kind), candidates[kind, name])})
    bench.table("training, whole steps", rows)


def measure_profile(bench: Bench) -> None:
    """Where a step's time goes: the operations with the most time of their own."""
    batch = bench.options.batch
    inputs = make_inputs(bench.dense, 3 * batch, bench.options.image_side, bench.options.device)
    step = partial(training_step, bench.model("split"), inputs, loss_keys(batch, bench.options.device))
    step()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * bench.cuda
    with profile(activities=activities) as trace:
        step()
    own = "self_device_time_total" if bench.cuda else "self_cpu_time_total"
    events = sorted(trace.key_averages(), key=lambda event: -getattr(event, own))
    total = sum(getattr(event, own) for event in events)
    rows = [
        {
            "operation": event.key[:60],
            "calls": event.count,
            "ms": getattr(event, own) / 1e3,
            "%": 100 * getattr(event, own) / total,
        }
        for event in events[:TOP_LINES]
    ]
    bench.table("profile of a step, split experts", rows)
    bench.release()


def main() -> int:
    """Measure; returns 1 if a measure failed as a whole."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="mini")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="default: bfloat16 on a GPU, else float32")
    parser.add_argument("--batch", type=int, default=8, help="triplets in a step")
    parser.add_argument("--chunk", type=int, default=4, help="triplets that the cached ways encode at once")
    parser.add_argument(
        "--image_side", type=int, default=4, help="visual tokens along a picture's side; 4 in the mini recipe"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timings of which the median counts")
    parser.add_argument("--profile", action="store_true", help="list the operations that take a step's time")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = vars(parser.parse_args())
    chunk, profiled = arguments.pop("chunk"), arguments.pop("profile")
    if arguments["batch"] % chunk:
        parser.error(f"--batch {arguments['batch']} is no multiple of --chunk {chunk}")
    arguments["dtype"] = arguments["dtype"] or ("float32" if arguments["device"] == "cpu" else "bfloat16")
    measures = {"training": partial(measure_training, chunk=chunk)}
    if profiled:
        measures["profile"] = measure_profile
    failures = Bench(Options(**arguments)).run(measures)["failures"]
    return 1 if set(failures) & set(measures) else 0


if __name__ == "__main__":
    sys.exit(main())
