"""`moon2 evaluate`: score an encoder on a catalogue and its queries as MBE2.0 does, all tasks zero-shot."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, ProcessorMixin

from moon2_dataset import load_product_queries
from moon2_dataset.hub_card import base_name
from moon2_dataset.recipe import RecipeParser
from moon2_dataset.shards import write_text

from .benchmark import Benchmark
from .classification import TaskSet, evaluate_task
from .comparison import compare, short_names
from .comparison_chart import write_comparison_chart
from .comparison_tables import as_markdown, as_text, comparison_tables
from .encode import Encoder, Views
from .items import ProductItems, QueryItems
from .peer_encoders import PeerEncoder, load_any_encoder
from .retrieval import DIRECTIONS, evaluate_retrieval

COLUMNS = ("recall@1", "recall@5", "recall@10", "mrr", "ndcg@10")
INPUTS = ("image_title", "title", "image")
DEFAULT_OUTPUT = "runs/evaluation"


@dataclass
class EvaluateArguments:
    """Options of `moon2 evaluate`."""

    model: list[str] = field(
        metadata={
            "help": "Folder or Hub id of a MOON2.0 encoder, a sentence-transformers model or a CLIP-like dual "
            "encoder; code that it brings is run. Several are compared with the first."
        }
    )
    products: str = field(metadata={"help": "Catalogue: a Parquet file, a glob or a folder."})
    queries: str = field(metadata={"help": "Queries: a Parquet file, a glob or a folder."})
    split: str | None = field(
        default=None,
        metadata={"help": "Of folders, the split to take, such as test; not needed where it is the only one."},
    )
    output: str | None = field(
        default=None,
        metadata={
            "help": "Folder for evaluation.json, .md and .png, or the .json file, beside which the other two go; if "
            f"not given the folder of a single model, else {DEFAULT_OUTPUT}."
        },
    )
    batch_size: int = field(default=64, metadata={"help": "Items per forward."})
    slice_by: list[str] | None = field(
        default=None,
        metadata={
            "help": "Columns of queries, of text or true / false: Recall@10 is also told for each of their values. "
            "`slice`, where there is such a column, if not given."
        },
    )

    def __post_init__(self):
        for name in ("model", "slice_by"):
            if isinstance(getattr(self, name), str):  # as a recipe may give it
                setattr(self, name, [getattr(self, name)])


class AnyEncoder(Protocol):
    """What `evaluate_encoder` asks of an encoder; see `Encoder` and `peer_encoders`."""

    def encode(self, items: Sequence[dict[str, Any]], view: str, progress: bool) -> np.ndarray:
        """(N, D) float32, normalised."""

    def encode_views(self, items: Sequence[dict[str, Any]], progress: bool) -> Views:
        """All views of N items."""


def evaluate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    products: Dataset,
    queries: Dataset,
    batch_size: int = 64,
    progress: bool = True,
    slice_by: Sequence[str] | None = None,
) -> dict:
    """Score retrieval in the five directions, product classification and attribute prediction.

    Candidates are encoded from the title and up to four images, queries from their text and image. Rows that share a
    query_id are one query with several right products; its text, its image and its slice are those of the first row.

    Args:
        model: a Moon2Model, on the device to compute on.
        processor: its Moon2Processor.
        products: the catalogue, in the products schema; all of it is searched.
        queries: in the queries schema.
        batch_size: items per forward.
        progress: show bars.
        slice_by: columns of queries, of text or true / false, by whose values Recall@10 is told too; "slice" where it
            is None and there is such a column.

    Returns:
        JSON-ready: what `evaluate_encoder` returns, the batch size and the dtype.

    Raises:
        ValueError: an item cannot be encoded, the tables do not fit the schema or each other, or a column of
            `slice_by` is not there or not to be sliced by.
    """
    benchmark = Benchmark.of(products, queries, slice_by)
    encoder = Encoder(model, processor, batch_size)
    return run_benchmark(encoder, benchmark, model.device, progress) | settings(encoder)


def evaluate_encoder(
    encoder: AnyEncoder,
    products: Dataset,
    queries: Dataset,
    device: torch.device | str = "cpu",
    progress: bool = True,
    slice_by: Sequence[str] | None = None,
    per_query: bool = False,
) -> dict:
    """Score any encoder as `evaluate` scores a model.

    Directions whose views the encoder does not give are skipped and say so.

    Args:
        encoder: an `Encoder`, a `PeerEncoder` or anything else with their two methods.
        products, queries, progress, slice_by: as in `evaluate`.
        device: where the products of embeddings are computed.
        per_query: also return the scores of the single queries, which `paired_difference` compares.

    Returns:
        JSON-ready: `retrieval` (see `evaluate_retrieval`; slices stand in each direction), `mean_recall@10` over the
        five directions (None if one could not be scored), `classification` and `attributes`, each with its `tasks`
        (see `evaluate_task`) and why others were `left_out`, the numbers of items, seconds, items encoded per second,
        device and versions. With `per_query` also that: for each scored direction's key {"query_ids": […],
        "recall@10": […]}.

    Raises:
        ValueError: as `evaluate`.
    """
    return run_benchmark(encoder, Benchmark.of(products, queries, slice_by), device, progress, per_query)


def run_benchmark(
    encoder: AnyEncoder,
    benchmark: Benchmark,
    device: torch.device | str = "cpu",
    progress: bool = True,
    per_query: bool = False,
) -> dict:
    """Score an encoder on a benchmark that was read before; see `evaluate_encoder`."""
    begin = time.perf_counter()
    data, rows, relevance, slices, groups, categories, attributes = benchmark
    labels = sorted({label for task in (*categories.tasks, *attributes.tasks) for label in task.labels})
    encoding = time.perf_counter()
    candidate_views = encoder.encode_views(ProductItems(data.products), progress)
    query_views = encoder.encode_views(QueryItems(data.queries, rows), progress)
    encoding = time.perf_counter() - encoding
    label_embeddings = encoder.encode([{"text": label, "images": []} for label in labels], "text", progress)
    embedding_of = dict(zip(labels, label_embeddings, strict=True))

    retrieval = evaluate_retrieval(
        query_views, candidate_views, relevance, data.title_key, device, slices, groups, per_query
    )
    recalls = [result["recall@10"]["value"] for result in retrieval.values() if result["queries"]]
    num_items = len(candidate_views.text) + len(query_views.text)
    results = {
        "num_products": len(candidate_views.text),
        "num_queries": len(query_views.text),
        "retrieval": retrieval,
        "mean_recall@10": sum(recalls) / len(recalls) if len(recalls) == len(DIRECTIONS) else None,
        "classification": _evaluate_tasks(categories, candidate_views, embedding_of, device),
        "attributes": _evaluate_tasks(attributes, candidate_views, embedding_of, device),
        "seconds": time.perf_counter() - begin,
        "items_per_second": num_items / encoding,
        "device": torch.device(device).type,
        "versions": {name: version(name) for name in ("moon2", "torch", "transformers")},
    }
    if per_query:
        ids = data.queries.select_columns("query_id").select(rows)["query_id"][:]
        results["per_query"] = {}
        for key, result in retrieval.items():
            if scored := result.pop("per_query", None):
                query_ids = [ids[row] for row in scored["rows"]]
                results["per_query"][key] = {"query_ids": query_ids, "recall@10": scored["recall@10"]}
    return results


def settings(encoder: Encoder | PeerEncoder) -> dict[str, int | str]:
    """What else a result tells of how it was made: `batch_size` and `dtype`."""
    return {"batch_size": encoder.batch_size, "dtype": str(encoder.model.dtype).removeprefix("torch.")}


def _evaluate_tasks(
    task_set: TaskSet, products: Views, embedding_of: dict[str, np.ndarray], device: torch.device
) -> dict[str, dict]:
    results = {
        task.name: evaluate_task(task, products, np.stack([embedding_of[label] for label in task.labels]), device)
        for task in task_set.tasks
    }
    return {"tasks": results, "left_out": task_set.left_out}


def format_table(results: dict) -> str:
    """Write the result of `evaluate` as plain-text tables of at most 100 columns; all scores in percent."""
    lines = [format_retrieval(results), *_slice_lines(results["retrieval"])]
    for title, group in (("Product classification", "classification"), ("Attribute prediction", "attributes")):
        lines += ["", *_task_lines(title, results[group])]
    speed, seconds = results["items_per_second"], results["seconds"]
    lines += ["", f"{speed:.1f} items/s on {results['device']}, {seconds:.1f} s in all"]
    return "\n".join(line.rstrip() for line in lines)


def format_retrieval(results: dict) -> str:
    """Write the five directions of a result of `evaluate` as a plain-text table; all scores in percent."""
    lines = [
        f"Retrieval: {results['num_queries']:,} queries, {results['num_products']:,} products, "
        "R@10 with its 95 % interval, by chance and at best",
        f"{'':8}{'queries':>9}{'products':>10}{'R@1':>8}{'R@5':>8}{'R@10':>8}{'interval':>16}{'chance':>8}"
        f"{'ceiling':>8}{'MRR':>8}{'nDCG@10':>9}",
    ]
    for result in results["retrieval"].values():
        line = f"{result['name']:8}{result['queries']:>9,}{result['candidates']:>10,}"
        if "skipped" in result:
            lines.append(f"{line}   {result['skipped']}")
            continue
        r1, r5, r10, mrr, ndcg = (100 * result[name]["value"] for name in COLUMNS)
        low, high = (100 * result["recall@10"][end] for end in ("low", "high"))
        lines.append(
            f"{line}{r1:>8.1f}{r5:>8.1f}{r10:>8.1f}{f'{low:.1f} – {high:.1f}':>16}"
            f"{100 * result['chance_recall@10']:>8.1f}{100 * result['ceiling_recall@10']:>8.1f}{mrr:>8.1f}{ndcg:>9.1f}"
        )
    mean = results["mean_recall@10"]
    lines.append(f"{'mean':27}{'':16}{'–' if mean is None else f'{100 * mean:.1f}':>8}")
    return "\n".join(line.rstrip() for line in lines)


def _slice_lines(retrieval: dict[str, dict]) -> list[str]:
    """One table for each column that queries were sliced by."""
    lines = []
    columns = {column for result in retrieval.values() for column in result.get("slices", ())}
    for column in sorted(columns):
        of_direction = [result.get("slices", {}).get(column, {}) for result in retrieval.values()]
        labels = sorted({label for scores in of_direction for label in scores})
        lines += ["", f"R@10 by {column}, and the number of queries"]
        lines.append(f"{'':20}" + "".join(f"{result['name']:>15}" for result in retrieval.values()))
        for label in labels:
            cells = [
                f"{100 * scores[label]['recall@10']['value']:.1f} ({scores[label]['queries']:,})"
                if label in scores
                else "–"
                for scores in of_direction
            ]
            lines.append(f"{label[:19]:20}" + "".join(f"{cell:>15}" for cell in cells))
    return lines


def _task_lines(title: str, group: dict[str, dict]) -> list[str]:
    lines = [
        f"{title}: accuracy, macro precision, recall, F1; major = the commonest label's share",
        f"{'':16}{'labels':>6}{'major':>6}  {'image + title':^22}  {'title':^22}  {'image':^22}",
        f"{'':28}" + 3 * f" {'acc':>5}{'prec':>6}{'rec':>6}{'F1':>6}",
    ]
    for name, result in group["tasks"].items():
        judged = [result[of] for of in INPUTS]
        majority = max((metrics["majority_accuracy"] for metrics in judged if metrics), default=0.0)
        line = f"{name[:15]:16}{result['labels']:>6}{100 * majority:>6.1f}"
        for metrics in judged:
            scores = [metrics and 100 * metrics[key] for key in ("accuracy", "precision", "recall", "f1")]
            cells = ["–" if score is None else f"{score:.1f}" for score in scores]
            line += " {:>5}{:>6}{:>6}{:>6}".format(*cells)
        lines.append(line)
    return lines + [f"{name[:15]:16}left out: {reason}" for name, reason in group["left_out"].items()]


def write_json(results: dict, path: str | os.PathLike) -> None:
    """Write a JSON file whole or not at all."""
    write_text(Path(path), json.dumps(results, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Run `moon2 evaluate`: print the tables, write them as JSON and Markdown, and draw the chart."""
    parser = RecipeParser(EvaluateArguments, prog="moon2 evaluate", description="Score encoders on a catalogue.")
    (arguments,) = parser.parse_args_and_config(argv)
    names = short_names(arguments.model)
    output = _output_file(arguments)
    data = load_product_queries(arguments.products, arguments.queries, arguments.split)
    benchmark = Benchmark.of(data.products, data.queries, arguments.slice_by)
    several = len(names) > 1
    for model in arguments.model if several else ():
        load_any_encoder(model, arguments.batch_size)  # before hours go into the first, it is known that all load
    results = []
    for name, model in zip(names, arguments.model, strict=True):
        if several:
            print(f"{name} …", file=sys.stderr)
        encoder = load_any_encoder(model, arguments.batch_size)
        scores = run_benchmark(encoder, benchmark, encoder.model.device, per_query=several)
        results.append({"model": model} | scores | settings(encoder))
        del encoder  # before the next one takes its memory
    tables_of = {"products": arguments.products, "queries": arguments.queries}
    differences = {name: compare(other, results[0]) for name, other in zip(names[1:], results[1:], strict=True)}
    tables = comparison_tables(names, results, differences)
    if several:
        whole = tables_of | {"differences": differences}
        whole["results"] = {
            name: {key: value for key, value in result.items() if key != "per_query"}
            for name, result in zip(names, results, strict=True)
        }
        text = as_text(tables)
    else:
        whole = {"model": arguments.model[0]} | tables_of | results[0]
        text = format_table(results[0])
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(whole, output)
    print(text)
    picture = output.with_suffix(".png")
    try:
        write_comparison_chart(names, results, picture)
    except ImportError as error:
        print(f"no {picture.name}: {error}", file=sys.stderr)
        picture = None
    heading = f"{base_name(arguments.queries)} in {base_name(arguments.products)}"
    markdown = as_markdown(tables, heading, picture and picture.name)
    output.with_suffix(".md").write_text(markdown, encoding="utf-8")


def _output_file(arguments: EvaluateArguments) -> Path:
    """The JSON file to write."""
    if arguments.output is None:
        single = len(arguments.model) == 1 and Path(arguments.model[0]).is_dir()
        return Path(arguments.model[0] if single else DEFAULT_OUTPUT) / "evaluation.json"
    output = Path(arguments.output)
    return output if output.suffix == ".json" else output / "evaluation.json"
