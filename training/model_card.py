"""The model card: README.md of a model repository, written from what lies in its folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, get_local_safetensors_metadata
from huggingface_hub.errors import HFValidationError, NotASafetensorsRepoError, SafetensorsParsingError
from huggingface_hub.utils import validate_repo_id

from modeling_moon2 import Moon2Config
from moon2_dataset.hub_card import CARD, base_name, markdown_table, plain_text, without_path, write_card

from .evaluate import INPUTS
from .hub_folder import PROVENANCE

TEMPLATE = Path(__file__).with_name("model_card_template.md")
MOST_FILES = 20  # of the data of a run that a card lists
METRICS = {"recall@1": "Recall@1", "recall@10": "Recall@10", "mrr": "MRR"}
TASK_GROUPS = {"classification": "Product classification", "attributes": "Attribute prediction"}
TAGS = ["moon2", "transformers", "sentence-transformers", "feature-extraction", "sentence-similarity",
        "product-search", "e-commerce", "multimodal", "custom_code"]  # fmt: skip


def write_model_card(folder: str | os.PathLike, model_id: str | None = None) -> Path:
    """Write README.md of a saved model, or bring it up to date.

    Read from the folder: config.json, the headers of the weights, the newer of evaluation.json and results.json for
    the scores, results.json for the training, and provenance.json for the rest. A card that a person wrote or edited
    keeps its text and what its header says; entries that the header lacks are added, and scores brought up to date.

    Args:
        folder: of the model.
        model_id: what the card calls the model, `OWNER/NAME` on the Hub; the folder's name if not given.

    Returns:
        The file.

    Raises:
        ValueError: a file of the folder cannot be read.

    Example:
        >>> write_model_card("runs/mine", "me/product-encoder")
        PosixPath('runs/mine/README.md')
    """
    folder = Path(folder)
    path = folder / CARD
    card = model_card(folder, model_id)
    write_card(path, card, _renew_scores)
    return path


def model_card(folder: Path, model_id: str | None = None) -> ModelCard:
    """Compose the card of a saved model; see `write_model_card`."""
    model_id = without_path(model_id or folder.resolve().name)
    provenance = _read(folder / PROVENANCE)
    training = _read(folder / "results.json").get("training")
    scores = newest_scores(folder)
    evaluated_on = _data_name(scores)
    config = _config(folder)
    base_model, base_license = provenance.get("base_model"), provenance.get("base_license")
    datasets = provenance.get("datasets") or []
    run = provenance.get("run") or {}
    made_by = {"conversion": provenance.get("conversion"), "training": provenance.get("training")}
    if options := run.get("options"):
        made_by["training"] = options | (made_by["training"] or {})
    eval_results = list(_eval_results(scores, evaluated_on))
    data = ModelCardData(
        library_name="sentence-transformers",
        # The Hub has no tag for multimodal retrieval: visual-document-retrieval is of pages, sentence-similarity of
        # texts. Features are what AutoModel and SentenceTransformer both give.
        pipeline_tag="feature-extraction",
        tags=[*TAGS, "mixture-of-experts"] if config.text_config.num_experts else TAGS,
        license=base_license,
        base_model=_hub_id(base_model),
        datasets=[hub_id for name in datasets if (hub_id := _hub_id(name))] or None,
        model_name=model_id.rpartition("/")[2] if eval_results else None,
        eval_results=eval_results or None,
    )
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        model_id=model_id,
        title=plain_text(model_id),
        width=config.text_config.hidden_size,
        mixture=config.text_config.num_experts > 0,
        base=base_model and plain_text(without_path(base_model)),
        converted=provenance.get("conversion") is not None,
        trained=training is not None or provenance.get("training") is not None,
        architecture=_architecture_table(folder, config),
        scores=scores,
        evaluated_on=plain_text(evaluated_on),
        retrieval=scores and _retrieval_table(scores["retrieval"]),
        label_tasks={
            title: _label_table(group, tasks)
            for group, title in TASK_GROUPS.items()
            if (tasks := scores.get(group, {}).get("tasks"))
        },
        notes=provenance.get("notes"),
        training=training,
        arguments={
            of: markdown_table(
                ("argument", "value"), [(plain_text(key), plain_text(_shown(value))) for key, value in given.items()]
            )
            for of, given in made_by.items()
            if given
        },
        run=run and _run_lines(run),
        datasets=", ".join(plain_text(_hub_id(name) or base_name(name)) for name in datasets),
        license_text=base_license and plain_text(base_license),
    )


def _run_lines(run: dict) -> dict[str, str]:
    """What tells a run apart from others: a sentence, and the table of its data."""
    processes = run.get("processes", 1)
    sentence = f"Seed {run['seed']}, {processes:,} process{'es' * (processes > 1)} on {run['device']}"
    sentence += f"; {', '.join(f'{name} {number}' for name, number in run['versions'].items())}; {run['platform']}."
    if git := run.get("git"):
        sentence += f" Started in a Git repository at {git['revision']}{', with changes' * git['dirty']}."
    data = run.get("data") or []
    rows = [
        (
            file["table"],
            f"{file['repository']}/{file['name']}" if "repository" in file else file["name"],
            f"{file['rows']:,}",
            f"{file['bytes']:,}",
            file["blake2b"],
        )
        for file in data[:MOST_FILES]
    ]
    table = markdown_table(
        ("table", "file", "rows", "bytes", "blake2b"), [tuple(map(plain_text, row)) for row in rows]
    )
    if len(data) > MOST_FILES:
        table += f"\n\n… and {len(data) - MOST_FILES:,} more files, which {PROVENANCE} lists."
    return {"sentence": plain_text(sentence), "data": table if rows else ""}


def _config(folder: Path) -> Moon2Config:
    try:
        return Moon2Config.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: no readable config.json ({error}); give the folder of a saved model") from error


def _architecture_table(folder: Path, config: Moon2Config) -> str:
    """The shape, and the parameters as counted in the headers of the weights."""
    try:
        weights = get_local_safetensors_metadata(folder)
    except (NotASafetensorsRepoError, SafetensorsParsingError, OSError) as error:
        raise ValueError(f"{folder}: no readable weights ({error}); save the model again") from error
    language, vision = config.text_config, config.vision_config
    tensors = [item for file in weights.files_metadata.values() for item in file.tensors.items()]
    total = sum(tensor.parameter_count for _, tensor in tensors)
    experts = [tensor for name, tensor in tensors if ".mlp.experts." in name]  # stacked: (Z, …) or more
    size = sum((folder / file).stat().st_size for file in weights.files_metadata)
    rows = [
        ("Embedding", f"{language.hidden_size:,} dimensions: mean over all tokens, L2-normalised"),
        (
            "Language model",
            f"depth {language.num_hidden_layers}, width {language.hidden_size:,}, "
            f"{language.num_attention_heads} heads, vocabulary {language.vocab_size:,}",
        ),
        ("Vision tower", f"depth {vision.depth}, width {vision.hidden_size:,}, patch {vision.patch_size} pixels"),
        ("Experts", "none: dense MLPs"),
        ("Parameters", f"{total:,}"),
        ("Weights", f"{', '.join(sorted(weights.parameter_count))}, {size / 1e6:,.1f} MB"),
    ]
    if experts:
        z, k, layers = language.num_experts, language.num_experts_per_tok, range(language.num_hidden_layers)
        mixtures = [str(layer) for layer in layers if language.is_moe_layer(layer)]
        where = "every layer" if len(mixtures) == len(layers) else f"layers {', '.join(mixtures)}"
        guided = experts[0].shape[0] - z
        own = f"; guided fields have {guided} more" if guided else ""
        width = f"width {language.moe_intermediate_size:,}"
        rows[3] = ("Experts", f"Z = {z} in {where}, {width}; a token visits k = {k}{own}")
        active = total - sum(tensor.parameter_count * (tensor.shape[0] - k) // tensor.shape[0] for tensor in experts)
        rows.insert(5, ("Active per token", f"{active:,}: all but the experts that the token does not visit"))
    return markdown_table(("", ""), rows)


def _retrieval_table(retrieval: dict) -> str:
    rows = []
    for result in retrieval.values():
        cells = ["–"] * (1 + len(METRICS))
        if "skipped" not in result:
            scores = [[_percent(result[metric][part]) for part in ("value", "low", "high")] for metric in METRICS]
            cells = ["{} ({}–{})".format(*score) for score in scores] + [_percent(result["chance_recall@10"])]
        rows.append((result["name"], f"{result['queries']:,}", f"{result['candidates']:,}", *cells))
    return markdown_table(("query → product", "queries", "products", *METRICS.values(), "Recall@10 by chance"), rows)


def _label_table(group: str, tasks: dict) -> str:
    rows = [
        (
            plain_text(_task_name(group, name)),
            f"{task['labels']:,}",
            of.replace("_", " and "),
            f"{task[of]['products']:,}",
        )
        + tuple(_percent(task[of][metric]) for metric in ("accuracy", "f1", "majority_accuracy"))
        for name, task in tasks.items()
        for of in INPUTS
        if task[of]
    ]
    return markdown_table(("of", "labels", "from", "products", "accuracy", "macro F1", "commonest label"), rows)


def newest_scores(folder: Path) -> dict:
    """The newer of both evaluations, or {}: after another training, the older one is of weights that are gone."""
    files = [file for name in ("evaluation.json", "results.json") if (file := folder / name).is_file()]
    newest = _read(max(files, key=lambda file: file.stat().st_mtime_ns)) if files else {}
    return newest if "retrieval" in newest else {}


def _data_name(scores: dict) -> str:
    given = [scores[table] for table in ("products", "queries") if table in scores]
    names = [base_name(path) for paths in given for path in ([paths] if isinstance(paths, str) else paths)]
    return " and ".join(dict.fromkeys(filter(None, names))) or "the evaluation set of the training"


def _eval_results(scores: dict, evaluated_on: str) -> Iterator[EvalResult]:
    """Entries of the model-index: one task for every direction, and for the richest input of every label task."""
    data = {"dataset_type": "unknown", "dataset_name": evaluated_on}  # the type would be linked as an id on the Hub
    for key, result in scores.get("retrieval", {}).items():
        for metric, name in METRICS.items():
            if metric in result:
                yield EvalResult(
                    task_type="information-retrieval",
                    task_name=f"Retrieval {result['name']}",
                    **data,
                    dataset_config=key,
                    metric_type=metric,
                    metric_name=name,
                    metric_value=round(result[metric]["value"], 4),
                )
    for group, title in TASK_GROUPS.items():
        for key, result in scores.get(group, {}).get("tasks", {}).items():
            richest = next((of for of in INPUTS if result[of]), None)
            for metric, name in (("accuracy", "Accuracy"), ("f1", "Macro F1")) if richest else ():
                yield EvalResult(
                    task_type="zero-shot-classification",
                    task_name=f"{title}: {_task_name(group, key)} from {richest.replace('_', ' and ')}",
                    **data,
                    dataset_config=f"{group}/{key}",
                    metric_type=metric,
                    metric_name=name,
                    metric_value=round(result[richest][metric], 4),
                )


def _renew_scores(theirs: ModelCardData, ours: ModelCardData) -> None:
    """Put our scores into the header of an edited card, instead of its own of the same tasks."""
    scores = ours.eval_results or []
    # The model-index would join scores of one identifier into one entry, under the first one's name of the data.
    replaced = {score.unique_identifier for score in scores}
    kept = [score for score in theirs.eval_results or [] if score.unique_identifier not in replaced]
    theirs.eval_results = kept + scores or None


def _read(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no readable JSON ({error}); remove it or write it again") from error


def _hub_id(name: str | None) -> str | None:
    """The name if it is OWNER/NAME on the Hub; a folder or a file has no place in the header."""
    try:
        validate_repo_id(name or "")
    except HFValidationError:
        return None
    return name if name.count("/") == 1 and not name.endswith(".parquet") else None


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={_shown(of_key)}" for key, of_key in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return without_path(value) if isinstance(value, str) else json.dumps(value)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _task_name(group: str, name: str) -> str:
    return f"category {name.replace('_', ' ')}" if group == "classification" else name
