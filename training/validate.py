"""`moon2 validate`: look through a data set and a recipe before a long run, with the arguments of `moon2 train`."""

from __future__ import annotations

import math
import random
import statistics
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoProcessor, set_seed
from trl import ModelConfig

from modeling_moon2 import Moon2Model, Moon2Processor
from modeling_moon2.processing_moon2 import load_image, text_parts
from moon2_dataset import OPTIONAL_PRODUCT_FEATURES, ProductQueries, load_product_queries
from moon2_dataset.recipe import RecipeParser

from .losses import OBJECTIVES
from .mini import MiniConfig
from .train import SHOWN_NAMES, WITHOUT_ADAPTERS, TrainArguments, starting_model
from .trainer import Moon2Trainer
from .trainer_config import Moon2TrainingArguments

IMAGES = ("sample", "all", "none")
SAMPLE = 1000  # products whose pictures are opened, titles that are measured
BYTES_PER_PARAMETER = 16  # float32 weight and gradient, and AdamW's two moments
TIMED_PARAMETERS = 200_000_000  # larger models are timed only where there is a GPU
TIMED_STEPS = 3


@dataclass
class ValidateArguments:
    """What `moon2 validate` looks at, beside the arguments of `moon2 train`.

    Raises:
        ValueError: an argument has no meaning; the message gives the allowed values.
    """

    images: str = field(
        default="sample", metadata={"help": f"Whose pictures to open: sample ({SAMPLE:,} products), all, or none."}
    )

    def __post_init__(self):
        if self.images not in IMAGES:
            raise ValueError(f"images={self.images!r}; give one of {', '.join(IMAGES)}")


class DataCounts(NamedTuple):
    """What a data set holds and lacks.

    Attributes:
        products, queries, query_rows, leaves: how many; rows with one query_id are one query.
        without_image, without_title: products.
        without_text, without_photo: query rows; a photo is made from the product's picture where there is one.
        repeated_titles: products that share their normalised title with another.
        serving: for each objective, the query rows that can serve it.
        augmented: for each column of co-augmentation that the catalogue has, the products with something in it.
    """

    products: int
    queries: int
    query_rows: int
    leaves: int
    without_image: int
    without_title: int
    without_text: int
    without_photo: int
    repeated_titles: int
    serving: dict[str, int]
    augmented: dict[str, int]


def count_data(data: ProductQueries, explicit_negatives: bool = False) -> DataCounts:
    """Count what a data set holds; reads no picture.

    Args:
        data: catalogue and queries.
        explicit_negatives: whether every query brings a negative of its own, which intra_negative needs.
    """
    product_columns = data.products.select_columns(["title", "images"]).with_format("arrow")[:]
    has_title = _has_text(product_columns["title"].to_pylist())
    has_image = pc.list_value_length(product_columns["images"]).fill_null(0).to_numpy() > 0
    query_columns = data.queries.select_columns(["text", "image"]).with_format("arrow")[:]
    has_text, has_photo = _has_text(query_columns["text"].to_pylist()), query_columns["image"].is_valid().to_numpy()
    positive = data.positive_row
    photo = has_photo | has_image[positive]
    both = has_title & has_image
    rows = (has_text, photo, has_text & photo, both[positive], np.full(len(positive), explicit_negatives))
    _, sizes = np.unique(data.title_key[has_title], return_counts=True)
    return DataCounts(
        products=len(data.products),
        queries=len(data.positives),
        query_rows=len(data.queries),
        leaves=len(np.unique(data.leaf)),
        without_image=int((~has_image).sum()),
        without_title=int((~has_title).sum()),
        without_text=int((~has_text).sum()),
        without_photo=int((~has_photo).sum()),
        repeated_titles=int(sizes[sizes > 1].sum()),
        serving=dict(zip(OBJECTIVES, (int(mask.sum()) for mask in rows), strict=True)),
        augmented=_count_augmented(data),
    )


def _count_augmented(data: ProductQueries) -> dict[str, int]:
    columns = [column for column in OPTIONAL_PRODUCT_FEATURES if column in data.products.column_names]
    if not columns:
        return {}
    table = data.products.select_columns(columns).with_format("arrow")[:]
    counts = {}
    for column in columns:
        lists = pa.types.is_list(table[column].type)
        filled = (
            pc.list_value_length(table[column]) if lists else pc.utf8_length(pc.utf8_trim_whitespace(table[column]))
        )
        counts[column] = int((filled.to_numpy() > 0).sum())
    return counts


def find_unreadable(
    data: ProductQueries, images: str = "sample", progress: bool = True, expanded: bool = True
) -> list[str]:
    """Names of the pictures that cannot be read, of products and of queries.

    Args:
        data: catalogue and queries.
        images: "all", or "sample" for a thousand of each.
        progress: show a bar.
        expanded: open the products' expanded images too, where they have any.
    """
    unreadable: list[str] = []
    looked_at = [
        (data.products, "product_id", "images", "product", ", image"),
        (data.queries, "query_id", "image", "query", ""),
    ]
    if expanded and "expanded_images" in data.products.column_names:
        looked_at.append((data.products, "product_id", "expanded_images", "product", ", expanded image"))
    for table, id_column, column, kind, place in looked_at:
        rows = range(len(table))
        if images == "sample":
            rows = sorted(random.Random(0).sample(rows, min(SAMPLE, len(rows))))
        table = table.select_columns([id_column, column])

        def look(row: int, table=table, id_column=id_column, column=column, kind=kind, place=place) -> list[str]:
            given = table[row]
            pictures = given[column] if isinstance(given[column], list) else [given[column]]
            bad = []
            for number, picture in enumerate(pictures):
                try:
                    if picture is not None:
                        load_image(picture)
                except ValueError as error:
                    where = place and f"{place} {number}"
                    bad.append(f"{kind} {given[id_column]}{where} ({error})")
            return bad

        with ThreadPoolExecutor() as threads:
            for bad in tqdm(_bounded_map(threads, look, rows), total=len(rows), unit=kind, disable=not progress):
                unreadable += bad
    return unreadable


def count_steps(arguments: Moon2TrainingArguments, query_rows: int) -> tuple[int, int]:
    """(steps of an epoch, steps of the training), as the Trainer counts them."""
    batches = query_rows // (arguments.train_batch_size * arguments.world_size)
    per_epoch = max(math.ceil(batches / arguments.gradient_accumulation_steps), 1)
    if arguments.max_steps > 0:
        return per_epoch, arguments.max_steps
    return per_epoch, math.ceil(arguments.num_train_epochs * per_epoch)


def share_of_cut_titles(data: ProductQueries, processor: Moon2Processor) -> float:
    """Share of titles, T⁺ too, that are longer than the tokenizer's limit even without a picture; of a sample."""
    rows = sorted(random.Random(0).sample(range(len(data.products)), min(SAMPLE, len(data.products))))
    columns = [column for column in ("title", "enriched_title") if column in data.products.column_names]
    sample = data.products.select_columns(columns).select(rows)
    titles = [title for column in columns for title in sample[column] if title and title.strip()]
    if not titles:
        return 0.0
    lengths = [len(ids) for ids in processor.tokenizer(titles, add_special_tokens=False, verbose=False)["input_ids"]]
    return sum(length > processor.tokenizer.model_max_length for length in lengths) / len(lengths)


def measure_step(trainer: Moon2Trainer) -> tuple[float, int]:
    """Take a few steps over real batches as training does, but at learning rate 0: the weights stay as they are.

    Returns:
        Seconds of a step, reading and the optimizer included, from the median batch; and the most bytes that the graph
        held at a time.

    Raises:
        ValueError: a loss is not finite, and `on_nan` is raise.
    """
    args = trainer.args
    trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps
    trainer.state.max_steps = 1
    model, trainer.optimizer = trainer.accelerator.prepare(trainer.model, trainer.create_optimizer())
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.0

    def timed(take: Callable[[], Any]) -> float:
        begin = time.perf_counter()
        take()
        if args.device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter() - begin

    def update() -> None:
        norm = trainer._clip_grad_norm(model) if args.max_grad_norm > 0 else None
        trainer._get_grad_norm(model, grad_norm=norm)
        trainer.optimizer.step()
        model.zero_grad()

    def batches() -> Iterator[Any]:
        while True:  # one batch may be all there is
            yield from trainer.get_train_dataloader()

    ahead = batches()
    with KeptForBackward(model) as kept:
        trainer.training_step(model, next(ahead))
    update()  # compiles and allocates, as does the first batch
    steps = range(TIMED_STEPS * args.gradient_accumulation_steps - 1)
    times = [timed(lambda: trainer.training_step(model, next(ahead))) for _ in steps]
    seconds = statistics.median(times) * args.gradient_accumulation_steps + timed(update)
    trainer.step_guard.check(trainer.model)
    return seconds, kept.peak


class KeptForBackward:
    """Counts the bytes that autograd keeps for the backward pass, weights apart, while the context lasts.

    What activation checkpointing keeps at its boundaries is not seen.

    Attributes:
        peak: the most bytes at a time.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.holders: Counter[int] = Counter()
        self.live = self.peak = 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda kept: kept.tensor)

    def __enter__(self) -> KeptForBackward:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._hooks.__exit__(*error)

    def _keep(self, tensor: torch.Tensor) -> _Kept:
        storage = tensor.untyped_storage()
        kept = _Kept(tensor)
        if storage.data_ptr() not in self.weights:
            self.holders[storage.data_ptr()] += 1
            if self.holders[storage.data_ptr()] == 1:
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
            weakref.finalize(kept, self._release, storage.data_ptr(), storage.nbytes())
        return kept

    def _release(self, pointer: int, size: int) -> None:
        self.holders[pointer] -= 1
        if not self.holders[pointer]:
            self.live -= size


class _Kept:
    """A tensor of the graph; a class of ours, because a finalizer on the tensor would outlive the graph."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def _bounded_map(threads: ThreadPoolExecutor, function, rows: Sequence[int]) -> Iterator[list[str]]:
    """`threads.map` that holds a bounded number of results."""
    rows = iter(rows)
    while window := list(islice(rows, 256)):
        yield from threads.map(function, window)


def _has_text(texts: list[str | None]) -> np.ndarray:
    return np.array([bool(text_parts(text)) for text in texts], dtype=bool)


def _share(count: int, total: int) -> str:
    return f"{count:,} ({100 * count / max(total, 1):.1f} %)"


def format_counts(counts: DataCounts, arguments: Moon2TrainingArguments) -> str:
    """Write counts as plain text."""
    products, rows = counts.products, counts.query_rows
    lines = [
        f"{products:,} products in {counts.leaves:,} leaf categories; {counts.queries:,} queries in {rows:,} rows",
        f"  products without image    {_share(counts.without_image, products)}",
        f"  products without title    {_share(counts.without_title, products)}",
        f"  products of shared titles {_share(counts.repeated_titles, products)}: never negatives of one another",
        f"  query rows without text   {_share(counts.without_text, rows)}",
        f"  query rows without image  {_share(counts.without_photo, rows)}: made from the product's picture",
        "query rows that can serve an objective:",
    ]
    lines += [f"  {name:<25} {_share(counts.serving[name], rows)}" for name in arguments.objectives]
    if counts.augmented:
        lines.append("products with what co-augmentation adds:")
        lines += [f"  {name:<25} {_share(count, products)}" for name, count in counts.augmented.items()]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run `moon2 validate`: print the report; an error at its end if training would fail."""
    parser = RecipeParser(
        (ValidateArguments, TrainArguments, Moon2TrainingArguments, MiniConfig, ModelConfig),
        prog="moon2 validate",
        description="Look through a data set and a recipe before a long run.",
    )
    parser.set_defaults(lora_dropout=WITHOUT_ADAPTERS.lora_dropout)
    options, script, arguments, mini, model_options = parser.parse_args_and_config(argv)
    data = load_product_queries(script.products, script.queries, "train")
    if script.eval_products is not None:
        held_out = load_product_queries(script.eval_products, script.eval_queries, script.eval_split)
        print(f"evaluation: {len(held_out.products):,} products, {len(held_out.queries):,} query rows\n")
    counts = count_data(data, arguments.negatives == "explicit")
    print(format_counts(counts, arguments))

    unreadable = []
    if options.images != "none":
        expanded = arguments.expanded_image_share > 0
        unreadable = find_unreadable(data, options.images, not arguments.disable_tqdm, expanded)
    if options.images != "none":
        which = (
            "all pictures" if options.images == "all" else f"pictures of a sample of {SAMPLE:,} products and queries"
        )
        print(f"{which}: {len(unreadable):,} cannot be read")
        print("\n".join(f"  {name}" for name in unreadable[:SHOWN_NAMES]))

    set_seed(arguments.seed)
    if script.model is None:
        model, processor = starting_model(script, mini, model_options, data)
    else:
        processor = AutoProcessor.from_pretrained(script.model, trust_remote_code=True)
        config = AutoConfig.from_pretrained(script.model, trust_remote_code=True)
        with torch.device("meta"):
            model = Moon2Model(config)
    parameters = model.num_parameters()
    print(f"titles longer than the tokenizer's limit: {100 * share_of_cut_titles(data, processor):.1f} % of a sample")
    memory = parameters * BYTES_PER_PARAMETER / 1e9
    print(f"{parameters / 1e6:,.1f} M parameters: {memory:,.2f} GB for weights, gradients and AdamW's moments")
    print(f"  ({BYTES_PER_PARAMETER} bytes each); adapters need less")
    per_epoch, steps = count_steps(arguments, counts.query_rows)
    print(f"{per_epoch:,} steps an epoch, {steps:,} in all")

    failing = []
    if counts.query_rows < arguments.train_batch_size:
        failing.append(f"{counts.query_rows:,} query rows do not fill one batch of {arguments.train_batch_size}")
    if unreadable and arguments.on_bad_image == "raise":
        failing.append(f"{len(unreadable):,} pictures cannot be read; mend them, or give --on_bad_image skip")
    if not failing:
        on_gpu = arguments.device.type != "cpu"
        if parameters < TIMED_PARAMETERS or on_gpu:
            if script.model is not None:
                model, processor = starting_model(script, mini, model_options, data)
            trainer = Moon2Trainer(model, arguments, train_dataset=data, processing_class=processor)
            seconds, activations = measure_step(trainer)
            hours = steps * seconds / 3600
            print(f"{activations / 1e9:,.2f} GB of activations at {arguments.train_batch_size} triplets, measured")
            print(f"{seconds:.2f} s a step on {arguments.device.type}, measured: about {hours:.1f} hours")
        else:
            print("activations and hours are not told here: so large a model is measured only on a GPU")
    if failing:
        raise ValueError("training would fail: " + "; ".join(failing))
    print("nothing stands in the way")
