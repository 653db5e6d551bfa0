"""What the speed of models is measured with: shapes, random items, timings in turn, FLOPs, memory, tables."""

from __future__ import annotations

import copy
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass
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
from moon2_training.mini import MiniConfig, build_mini

SHAPES = ("mini", "qwen3-vl-2b")
EXPERTS = {"dense": 0, "split": 4, "copy": 4}  # per variant the number of experts; 2 are active
EXPERTS_PER_TOKEN = 2
TRAINED_WITH = "grouped_mm"
TEXT_TOKENS = 32
WARM_UP_CALLS = 2
MATMUL_SIDE = {"cuda": 8192, "cpu": 1024}
MATMUL_CALLS = 10  # in one timing


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


def first_line(error: Exception) -> str:
    """What went wrong, in a line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


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

    def activation_memory(self, model: Moon2Model, run: Callable[[], Any]) -> float:
        """GB that a call keeps for its backward, without the model's weights; a storage counts once."""
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            run()
        model.zero_grad(set_to_none=True)
        return sum(kept.values()) / 1e9

    def forget_gradients(self, name: Hashable) -> None:
        """Prepare a call of the variant that the candidate's name begins with."""
        self.model(name[0]).zero_grad(set_to_none=True)

    def run(self, measures: Mapping[str, Callable[[Any], None]]) -> dict[str, Any]:
        """Run measures one after the other; one that fails is reported and does not stop the others.

        Args:
            measures: by name; each is called with this object.

        Returns:
            What they found, and which failed.
        """
        for name, measure in measures.items():
            try:
                measure(self)
            except Exception as error:
                self.fail(name, error)
            self.release()
            if self.options.output:
                self.options.output.write_text(json.dumps(self.result, indent=2) + "\n", encoding="utf-8")
        return self.result
