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
import copy
import gc
import json
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import send_to_device
from convert_memory import SHAPES as CHECKPOINT_SHAPES
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modeling_moon2 import Moon2Config, Moon2Model
from modeling_moon2.layout_moon2 import sequence_packing, vision_layout
from modeling_moon2.modeling_moon2 import Moon2ViewsOutput
from moon2_training.losses import DualLevelAlignmentLoss
from moon2_training.mini import MiniConfig, build_mini

SHAPES = ("mini", "qwen3-vl-2b")
EXPERTS = {"dense": 0, "split": 4, "copy": 4}  # per variant the number of experts; 2 are active
EXPERTS_PER_TOKEN = 2
IMPLEMENTATIONS = ("eager", "grouped_mm", "batched_mm")
TRAINED_WITH = "grouped_mm"
TEXT_TOKENS = 32
WARM_UP_CALLS = 2
MATMUL_SIDE = {"cuda": 8192, "cpu": 1024}
MATMUL_CALLS = 10  # in one timing
PLACES = 5  # of host waits, to print


@dataclass
class Options:
    """What is measured, and how; as on the command line."""

    shape: str = "qwen3-vl-2b"
    device: str = "cuda"
    dtype: str = "bfloat16"
    attn: str = "sdpa"
    items: int = 32
    batch: int = 3
    image_side: int = 16
    repeats: int = 5
    sync_debug: bool = False
    output: Path | None = None


def shape_config(shape: str) -> Moon2Config:
    """A dense configuration of a shape; the last three ids of its vocabulary stand for images."""
    if shape == "mini":
        mini = MiniConfig(num_experts=0)
        config = build_mini(mini, ["red mug"])[0].config
        config.text_config.vocab_size = mini.vocab_size
        text, vision = config.text_config.to_dict(), config.vision_config.to_dict()
        for sub_config in (text, vision):
            del sub_config["model_type"]
    else:
        of_checkpoint = CHECKPOINT_SHAPES["2b"]
        rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_interleaved": True}
        rope["mrope_section"] = of_checkpoint["mrope_section"]
        text = of_checkpoint["text"] | {"num_experts": 0, "rope_parameters": rope}
        vision = of_checkpoint["vision"]
    text["pad_token_id"] = None
    names = ("image_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = {name: text["vocab_size"] - 1 - i for i, name in enumerate(names)}
    return Moon2Config(text_config=text, vision_config=vision, **ids)


def variant_config(dense: Moon2Config, variant: str) -> Moon2Config:
    """The configuration that `moon2 convert` makes of a dense one, or the dense one itself."""
    config = copy.deepcopy(dense)
    text = config.text_config
    text.num_experts, text.num_experts_per_tok = EXPERTS[variant], EXPERTS_PER_TOKEN
    text.moe_intermediate_size = text.intermediate_size // (EXPERTS_PER_TOKEN if variant == "split" else 1)
    return config


def build_model(dense: Moon2Config, variant: str, options: Options) -> Moon2Model:
    """A model with random weights, made on the device."""
    config = variant_config(dense, variant)
    torch.manual_seed(0)
    with torch.device(options.device):
        model = Moon2Model._from_config(
            config, dtype=getattr(torch, options.dtype), attn_implementation=options.attn
        ).eval()
    if config.text_config.num_experts:
        model.set_experts_implementation(TRAINED_WITH)
    return model


def make_inputs(config: Moon2Config, items: int, image_side: int, device: str) -> dict[str, Any]:
    """Random items, each a picture of image_side² visual tokens and a text, as the collator gives them."""
    vision, vocabulary = config.vision_config, config.text_config.vocab_size - 3
    generator = torch.Generator().manual_seed(0)
    side = image_side * vision.spatial_merge_size
    grid = torch.tensor([[1, side, side]] * items)
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    picture = [config.vision_start_token_id, *[config.image_token_id] * image_side**2, config.vision_end_token_id]
    texts = torch.randint(vocabulary, (items, TEXT_TOKENS), generator=generator)
    input_ids = torch.cat([torch.tensor([picture] * items), texts], dim=1)
    mask = torch.ones_like(input_ids)
    inputs = {
        "input_ids": input_ids,
        "attention_mask": mask,
        "pixel_values": torch.rand(items * side * side, width, generator=generator) * 2 - 1,
        "image_grid_thw": grid,
        "image_layout": vision_layout(vision, grid),
        "packing": sequence_packing(input_ids, mask, config.vision_end_token_id),
    }
    return send_to_device(inputs, device)


def loss_keys(batch: int, device: str) -> dict[str, torch.Tensor]:
    """Keys of B triplets [q, p, n] of which no two share a product or a title."""
    keys = torch.arange(1, 2 * batch + 1)
    return send_to_device({"product_keys": keys, "title_keys": keys, "positive_keys": keys[:batch, None]}, device)


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


def first_line(error: Exception) -> str:
    """What went wrong, in a line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


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


class Bench:
    """Measures, prints tables and keeps what goes into the JSON file."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.cuda = torch.device(options.device).type == "cuda"
        self.dense = shape_config(options.shape)
        self.models: dict[str, Moon2Model] = {}
        self.flops: dict[tuple[str, str], int] = {}
        name = torch.cuda.get_device_name(options.device) if self.cuda else "CPU"
        self.result: dict[str, Any] = {
            "device": name,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "options": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items()},
            "tables": {},
            "failures": {},
        }
        print(f"{options.shape}, {options.dtype}, {options.attn}, {name}, torch {torch.__version__}", flush=True)
        self.peak = self.measure_peak()

    def model(self, variant: str) -> Moon2Model:
        """The model of a variant, made when it is first asked for."""
        if variant not in self.models:
            start = time.perf_counter()
            self.models[variant] = build_model(self.dense, variant, self.options)
            self.synchronize()
            size = self.models[variant].num_parameters() / 1e9
            print(f"\n{variant}: {size:.3f} G parameters, made in {time.perf_counter() - start:.1f} s", flush=True)
        return self.models[variant]

    def inputs(self, items: int) -> dict[str, Any]:
        """Items on the device."""
        return make_inputs(self.dense, items, self.options.image_side, self.options.device)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize()

    def clock(self, run: Callable[[], Any]) -> float:
        """Seconds of one call: between two events on a GPU, by the clock elsewhere."""
        self.synchronize()
        if not self.cuda:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000

    def measure_peak(self) -> float:
        """FLOP/s of a large matrix product on this device in this dtype."""
        side = MATMUL_SIDE["cuda" if self.cuda else "cpu"]
        a, b = (
            torch.randn(side, side, device=self.options.device).to(getattr(torch, self.options.dtype)) for _ in "ab"
        )

        def run() -> None:
            for _ in range(MATMUL_CALLS):
                a @ b

        for _ in range(WARM_UP_CALLS):
            run()
        seconds = statistics.median(self.clock(run) for _ in range(self.options.repeats))
        peak = 2 * side**3 * MATMUL_CALLS / seconds
        self.result["matmul_tflops"] = peak / 1e12
        print(f"\nmatrix product of {side}³: {peak / 1e12:.4g} TFLOP/s", flush=True)
        return peak

    def alternate(
        self,
        candidates: dict[Hashable, Callable[[], Any]],
        prepare: Callable[[Hashable], None],
    ) -> dict[Hashable, float]:
        """Median seconds of candidates, in turn so that all meet the same machine.

        Args:
            candidates: what to time; those that fail while they warm up are reported and left out.
            prepare: called with a candidate's name before each of its calls, outside the timing.
        """
        seconds: dict[Hashable, list[float]] = {}
        for name, run in candidates.items():
            try:
                for _ in range(WARM_UP_CALLS):
                    prepare(name)
                    run()
                self.synchronize()
            except Exception as error:
                self.fail(name, error)
            else:
                seconds[name] = []
            if name not in seconds:  # only now is the traceback gone, with the tensors in its frames
                self.release()
        for _ in range(self.options.repeats):
            for name, of_candidate in seconds.items():
                prepare(name)
                of_candidate.append(self.clock(candidates[name]))
        self.release()
        return {name: statistics.median(of_candidate) for name, of_candidate in seconds.items()}

    def release(self) -> None:
        """Free gradients, and what a failed call left."""
        for model in self.models.values():
            model.zero_grad(set_to_none=True)
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def fail(self, name: Hashable, error: Exception) -> None:
        """Print and keep that something could not be measured."""
        text = " ".join(map(str, name)) if isinstance(name, tuple) else str(name)
        self.result["failures"][text] = first_line(error)
        print(f"\n{text}: {first_line(error)}", flush=True)

    def table(self, title: str, rows: list[dict[str, Any]]) -> None:
        """Print rows as a Markdown table and keep them."""
        self.result["tables"][title] = rows
        if not rows:
            return
        print(f"\n**{title}**\n\n| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
        for row in rows:
            cells = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values())
            print("| " + " | ".join(cells) + " |")
        sys.stdout.flush()

    def count(self, variant: str, name: str, run: Callable[[Moon2Model, dict[str, Any]], Any]) -> int:
        """FLOPs for one item of what `run` does."""
        if (variant, name) not in self.flops:
            model = self.model(variant)
            model.set_experts_implementation("eager")
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                run(model, self.inputs(1))
            model.set_experts_implementation(TRAINED_WITH)
            self.release()
            self.flops[variant, name] = counter.get_total_flops()
        return self.flops[variant, name]

    def costs(self, seconds: float, flops: int) -> dict[str, float]:
        """Columns that compare with the device's peak."""
        rate = flops / seconds
        return {"TFLOP": flops / 1e12, "TFLOP/s": rate / 1e12, "% of peak": 100 * rate / self.peak}

    def peak_memory(self, model: Moon2Model, run: Callable[[], Any]) -> float | None:
        """GB that a call takes at most, with the model's weights and gradients; None on a CPU."""
        if not self.cuda:
            return None
        self.release()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        weights = sum(parameter.nbytes for parameter in model.parameters())
        peak = (torch.cuda.max_memory_allocated() - before + weights) / 1e9
        self.release()
        return peak

    def forget_gradients(self, name: Hashable) -> None:
        """Prepare a call of the variant that the candidate's name begins with."""
        self.model(name[0]).zero_grad(set_to_none=True)


def measure_encode(bench: Bench) -> None:
    """Embed one item, and many, with every implementation of the experts."""
    candidates: dict[Hashable, Callable] = {}
    for items in sorted({1, bench.options.items}):
        inputs = bench.inputs(items)
        for variant, experts in EXPERTS.items():
            for implementation in IMPLEMENTATIONS if experts else ("none",):
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
            of_variant[way] = row | {"peak GB": bench.peak_memory(model, runs[name])}
        bench.table(f"views, {variant}", list(of_variant.values()))
        if len(of_variant) == len(ways):
            fused, separate = (of_variant[way] for way in ways)
            columns = {
                "time": "ms",
                "memory": "peak GB",
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


def run_measures(options: Options, measures: Mapping[str, Callable[[Bench], None]]) -> dict[str, Any]:
    """Run measures one after the other; one that fails is reported and does not stop the others."""
    bench = Bench(options)
    for name, measure in measures.items():
        try:
            measure(bench)
        except Exception as error:
            bench.fail(name, error)
        bench.release()
        if options.output:
            options.output.write_text(json.dumps(bench.result, indent=2) + "\n", encoding="utf-8")
    return bench.result


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
    failures = run_measures(Options(**arguments), {name: MEASURES[name] for name in measures})["failures"]
    return 1 if set(failures) & set(measures) else 0


if __name__ == "__main__":
    sys.exit(main())
