"""`moon2 train`: fit a model to a catalogue and a click log, judge it, and leave a folder that loads anywhere."""

from __future__ import annotations

import itertools
import json
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import PreTrainedModel, TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import ModelConfig, get_quantization_config

from modeling_moon2 import Moon2Model, Moon2Processor
from moon2_dataset import ProductQueries, load_product_queries
from moon2_dataset.data_files import split_files
from moon2_dataset.disk_errors import naming
from moon2_dataset.recipe import RecipeParser

from .checksums import check_checksums
from .evaluate import evaluate, format_table, write_json
from .hub_folder import read_provenance
from .mini import MiniConfig, build_mini
from .model_card import write_model_card
from .plain_files import plain_checkpoint
from .provenance import changed_data, data_record, given_options
from .saved_encoder import load_encoder
from .teacher_features import teacher_files
from .trainer import Moon2Trainer
from .trainer_config import Moon2TrainingArguments

if TYPE_CHECKING:
    from peft import PeftModel

SHOWN_NAMES = 20
WITHOUT_ADAPTERS = ModelConfig(lora_dropout=0.0)  # TRL's options as they are where none is given


@dataclass
class TrainArguments:
    """Data and starting point of `moon2 train`.

    Raises:
        ValueError: only one of the two evaluation tables is given.
    """

    products: list[str] = field(
        metadata={"help": "Catalogue: Parquet files, globs or folders; of a folder the training split is taken."}
    )
    queries: list[str] = field(metadata={"help": "Queries: Parquet files, globs or folders, as of the catalogue."})
    model: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub id of a MOON2.0 model to go on from; a small one from scratch if not given."},
    )
    eval_products: list[str] | None = field(default=None, metadata={"help": "Catalogue to be judged on."})
    eval_queries: list[str] | None = field(default=None, metadata={"help": "Queries to be judged on."})
    eval_split: str | None = field(
        default=None,
        metadata={
            "help": "Of folders to be judged on, the split, such as validation; not needed where it is the only one."
        },
    )

    def __post_init__(self):
        for name in ("products", "queries", "eval_products", "eval_queries"):
            if isinstance(value := getattr(self, name), str):  # as a recipe may give it
                setattr(self, name, [value])
        if (self.eval_products is None) != (self.eval_queries is None):
            raise ValueError("eval_products and eval_queries belong together; give both or neither")


def product_texts(data: ProductQueries) -> Iterator[str]:
    """What a tokenizer should know: titles, descriptions, queries, and the names of categories and attributes."""
    columns = (data.products["title"], data.products["description"], data.queries["text"])
    yield from (text for text in itertools.chain(*columns) if text)
    for path, attributes in zip(data.products["category_path"], data.products["attributes"], strict=True):
        yield from path
        yield from (attribute["value"] for attribute in attributes)


def starting_model(
    script: TrainArguments, mini: MiniConfig, options: ModelConfig, data: ProductQueries
) -> tuple[PreTrainedModel | PeftModel, Moon2Processor]:
    """The model that a run begins with, quantised and with adapters as the options say, and its processor.

    Args:
        script: says which model.
        mini: the shape of one from scratch.
        options: TRL's.
        data: what the tokenizer of one from scratch learns from.
    """
    if script.model is None:
        model, processor = build_mini(mini, product_texts(data))
    else:
        quantization = get_quantization_config(options)
        placing = (
            {"quantization_config": quantization, "device_map": {"": PartialState().local_process_index}}
            if quantization
            else {}
        )
        model, processor = load_encoder(script.model, attn_implementation=options.attn_implementation, **placing)
    if not (options.load_in_4bit or options.load_in_8bit):
        model.float()  # in bfloat16 weights, steps of 1e-5 would be rounded away; --bf16 computes in it all the same
    if options.use_peft:
        from .lora import add_adapters  # PEFT is an extra

        model = add_adapters(model, options)
    return model, processor


def last_checkpoint(folder: str | os.PathLike) -> str | None:
    """The newest whole checkpoint of a run; what a killed run was just writing lacks its state, which comes last.

    Args:
        folder: of the run.
    """
    checkpoints = Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    numbered = sorted((int(path.name.rpartition("-")[2]), path) for path in checkpoints)
    for _, path in reversed(numbered):
        try:
            json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return str(path)
    return None


def fit(
    model: Moon2Model,
    processor: Moon2Processor,
    arguments: Moon2TrainingArguments,
    data: ProductQueries,
    eval_data: ProductQueries | None = None,
    datasets: Sequence[str] = (),
    tables: Mapping[str, Iterable[Path]] | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict:
    """Train, save the whole folder to `arguments.output_dir`, score it, and write its model card.

    Args:
        datasets: names of the training data for the card.
        tables: files of the data by what they are used as; their hashes go into provenance.json, and a run that is
            resumed on other files warns.
        options: of the run beside `arguments`, for provenance.json.

    Returns:
        What `evaluate` returns with a `training` entry (steps and triplets of the whole run; of this process seconds
        and, where it took a step, triplets per second; steps that were left out for NaN, final averages of the log);
        without `eval_data` only that entry. The same is written to `results.json`.
    """
    trainer = Moon2Trainer(model, arguments, train_dataset=data, eval_dataset=eval_data, processing_class=processor)
    if datasets:
        trainer.provenance["datasets"] = list(datasets)
    checkpoint = arguments.resume_from_checkpoint
    if checkpoint in (True, "true", "last"):
        checkpoint = last_checkpoint(arguments.output_dir)
    if trainer.is_world_process_zero():  # which alone writes it
        run = trainer.provenance["run"]
        run["options"] = dict(options or {})
        run["data"] = data_record(tables or {}, progress=not arguments.disable_tqdm)
        for message in _other_data(checkpoint, run["data"]):
            warnings.warn(f"resumed on other data: {message}", stacklevel=2)
    earlier_steps = 0
    if checkpoint:
        check_checksums(checkpoint)
        earlier_steps = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME)).global_step
    begin = time.perf_counter()
    with plain_checkpoint(checkpoint):
        trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.perf_counter() - begin
    if not isinstance(model, Moon2Model):  # what is saved loads without PEFT; checkpoints hold the adapters
        from .lora import merge_adapters

        model = trainer.model = merge_adapters(model)
    trainer.save_model()
    with naming(arguments.output_dir):
        trainer.save_state()
    batch_size = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    steps_here = trainer.state.global_step - earlier_steps
    speed = {"triplets_per_second": steps_here * batch_size / seconds} if steps_here else {}
    results = {
        "training": {
            "steps": trainer.state.global_step,
            "triplets": trainer.state.global_step * batch_size,
            "seconds": seconds,
            **speed,
            "parameters": model.num_parameters(),
            "unreadable_images": sorted(set(gather_object(list(trainer.unreadable)))),  # of all processes
            "emptied": sorted(set(gather_object(list(trainer.emptied)))),
            "skipped_steps": sum(log.get("skipped_steps", 0) for log in trainer.state.log_history),
            "last_log": next((log for log in reversed(trainer.state.log_history) if "loss" in log), {}),
        }
    }
    if eval_data is not None:
        results |= evaluate(
            model, processor, eval_data.products, eval_data.queries, batch_size=arguments.eval_batch_size
        )
    if trainer.is_world_process_zero():
        write_json(results, Path(arguments.output_dir) / "results.json")
        write_model_card(arguments.output_dir)
    return results


def _other_data(checkpoint: str | None, data: list[dict[str, Any]]) -> list[str]:
    """How the data of a run that is resumed differ from those it began with, as far as its checkpoint tells."""
    before = read_provenance(checkpoint).get("run", {}).get("data")
    return changed_data(before, data) if before and data else []


def _tables(script: TrainArguments, arguments: Moon2TrainingArguments) -> dict[str, list[Path]]:
    """All files that a run reads, by what they are used as."""
    names = ("products", "queries", "eval_products", "eval_queries")
    given = {name: paths for name in names if (paths := getattr(script, name)) is not None}
    tables = {
        name: split_files(
            paths, name.removeprefix("eval_"), script.eval_split if name.startswith("eval_") else "train"
        )
        for name, paths in given.items()
    }
    teachers = [Path(file) for source in arguments.teacher_features for file in teacher_files(source)]
    return tables | ({"teacher_features": teachers} if teachers else {})


def main(argv: Sequence[str] | None = None) -> None:
    """Run `moon2 train`."""
    parser = RecipeParser(
        (TrainArguments, Moon2TrainingArguments, MiniConfig, ModelConfig),
        prog="moon2 train",
        description="Fit a MOON2.0 model to a catalogue and a click log.",
    )
    parser.set_defaults(lora_dropout=WITHOUT_ADAPTERS.lora_dropout)  # adapters on experts can have none
    script, arguments, mini, options = parser.parse_args_and_config(argv)
    if script.model is not None and mini != (default := MiniConfig()):
        given = [f.name for f in fields(MiniConfig) if getattr(mini, f.name) != getattr(default, f.name)]
        raise ValueError(f"--{given[0]} shapes a model from scratch, but --model={script.model} is given; drop one")
    data = load_product_queries(script.products, script.queries, "train")
    eval_data = None
    if script.eval_products is not None:
        eval_data = load_product_queries(script.eval_products, script.eval_queries, script.eval_split)
    set_seed(arguments.seed)
    model, processor = starting_model(script, mini, options, data)
    datasets = [Path(source).name for source in (*script.products, *script.queries)]  # a card names no folders
    groups = [script, *([mini] if script.model is None else []), *([options] if options != WITHOUT_ADAPTERS else [])]
    results = fit(
        model, processor, arguments, data, eval_data, datasets, _tables(script, arguments), given_options(*groups)
    )
    if not PartialState().is_main_process:  # one process tells
        return
    training = results["training"]
    told = f"{training['steps']:,} steps, {training['triplets']:,} triplets"
    if "triplets_per_second" in training:
        told += f", {training['triplets_per_second']:.1f} a second on {torch.device(arguments.device).type}"
    print(f"{told}; {training['seconds']:,.0f} s; saved to {arguments.output_dir}")
    for key, what in (
        ("unreadable_images", "images could not be read and were left out"),
        ("emptied", "queries and products have nothing else, and others were taken instead"),
    ):
        if names := training[key]:
            named = ", ".join(names[:SHOWN_NAMES]) + (" …" if len(names) > SHOWN_NAMES else "")
            print(f"{len(names):,} {what}: {named}")
    if skipped := training["skipped_steps"]:
        print(f"{skipped:,} of {training['steps']:,} steps were left out: their loss or gradient was not finite")
    if eval_data is not None:
        print(format_table(results))
