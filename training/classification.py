"""Zero-shot product classification and attribute prediction: the label whose text lies nearest to the product."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from .encode import Views

MIN_LABELS, MAX_LABELS = 2, 200  # distinct values of an attribute
MIN_COVERAGE = 0.2  # share of the products that carry it
SCORES_AT_ONCE = 2**24  # 64 MB of float32


class LabelTask(NamedTuple):
    """One thing to predict.

    Args:
        name: of the category level or the attribute.
        labels: C distinct label texts, sorted.
        rows: (n,) int64, the products that carry a label.
        truth: for each of them its labels, as positions in `labels`; an attribute may hold several values.
    """

    name: str
    labels: list[str]
    rows: np.ndarray
    truth: list[tuple[int, ...]]


class TaskSet(NamedTuple):
    """The tasks of a catalogue and, by name, why others were left out."""

    tasks: list[LabelTask]
    left_out: dict[str, str]


def category_tasks(category_paths: Sequence[Sequence[str]]) -> TaskSet:
    """Make one task per category level; the label at a level is the name the path has there.

    Args:
        category_paths: coarse to fine, one per product, of any depth.
    """
    tasks, left_out = [], {}
    for level in range(max(map(len, category_paths), default=0)):
        task = _task(
            f"level_{level + 1}",
            {row: [path[level]] for row, path in enumerate(category_paths) if len(path) > level},
        )
        if len(task.labels) < MIN_LABELS:
            left_out[task.name] = f"{len(task.labels)} distinct label, nothing to tell apart"
        else:
            tasks.append(task)
    return TaskSet(tasks, left_out)


def attribute_tasks(attributes: Sequence[Sequence[Mapping[str, str]]]) -> TaskSet:
    """Make one task per attribute that has 2 to 200 distinct values and covers a fifth of the products or more.

    Args:
        attributes: [{"name", "value"}] of every product.
    """
    values_of: dict[str, dict[int, list[str]]] = {}
    for row, pairs in enumerate(attributes):
        for pair in pairs:
            values_of.setdefault(pair["name"], {}).setdefault(row, []).append(pair["value"])
    tasks, left_out = [], {}
    for name in sorted(values_of):
        task = _task(name, values_of[name])
        if len(task.rows) < MIN_COVERAGE * len(attributes):
            left_out[name] = f"on {len(task.rows) / len(attributes):.1%} of the products, under {MIN_COVERAGE:.0%}"
        elif not MIN_LABELS <= len(task.labels) <= MAX_LABELS:
            left_out[name] = f"{len(task.labels)} distinct values, not {MIN_LABELS} to {MAX_LABELS}"
        else:
            tasks.append(task)
    return TaskSet(tasks, left_out)


def _task(name: str, values_of_row: Mapping[int, Sequence[str]]) -> LabelTask:
    """Number the labels of one task; blank values are no label."""
    stripped = {row: [value.strip() for value in values if value.strip()] for row, values in values_of_row.items()}
    labels = sorted({value for values in stripped.values() for value in values})
    position = {label: index for index, label in enumerate(labels)}
    rows = [row for row, values in stripped.items() if values]
    truth = [tuple(dict.fromkeys(position[value] for value in stripped[row])) for row in rows]
    return LabelTask(name, labels, np.array(rows, dtype=np.int64), truth)


def evaluate_task(
    task: LabelTask, products: Views, label_embeddings: np.ndarray, device: torch.device | str = "cpu"
) -> dict:
    """Predict one task by the nearest label from image + title, from the title and from the image.

    Args:
        task: labels and truth.
        products: views of all N products.
        label_embeddings: (C, D) float32, the labels as text.
        device: where the products are computed.

    Returns:
        Number of `labels`, and for each of "image_title", "title" and "image" the metrics of `classification_metrics`
        with the number of `products` that have this input, and `majority_accuracy`, what always answering the
        commonest label would reach on them. None for an input that no product has.
    """
    inputs = {
        "image_title": (products.multimodal, products.has_text & products.has_image),
        "title": (products.text, products.has_text),
        "image": (products.image, products.has_image),
    }
    result: dict = {"labels": len(task.labels)}
    for name, (embeddings, present) in inputs.items():
        usable = np.flatnonzero(present[task.rows])
        result[name] = None
        if usable.size:
            predicted = nearest_label(embeddings[task.rows[usable]], label_embeddings, device)
            truth = [task.truth[index] for index in usable]
            commonest = Counter(label for labels in truth for label in labels).most_common(1)[0][1]
            result[name] = {
                "products": int(usable.size),
                "majority_accuracy": commonest / usable.size,
                **classification_metrics(_resolve(truth, predicted), predicted, len(task.labels)),
            }
    return result


def _resolve(truth: Sequence[tuple[int, ...]], predicted: np.ndarray) -> np.ndarray:
    """(n,) one true label per product: of several values the predicted one if it is among them, else the first."""
    pairs = zip(truth, predicted.tolist(), strict=True)
    return np.array([guess if guess in labels else labels[0] for labels, guess in pairs], dtype=np.int64)


def nearest_label(
    embeddings: np.ndarray, label_embeddings: np.ndarray, device: torch.device | str = "cpu"
) -> np.ndarray:
    """For every row of `embeddings` (n, D) the row (n,) of `label_embeddings` (C, D) with the largest dot product.

    Raises:
        ValueError: an embedding is not finite.
    """
    if not (np.isfinite(embeddings).all() and np.isfinite(label_embeddings).all()):
        raise ValueError("an embedding is not finite; check the model's weights")
    labels = torch.from_numpy(label_embeddings).to(device)
    block = max(1, SCORES_AT_ONCE // len(labels))
    blocks = torch.from_numpy(embeddings).split(block)
    return torch.cat([(rows.to(device) @ labels.T).argmax(dim=1).cpu() for rows in blocks]).numpy()


def classification_metrics(truth: np.ndarray, predicted: np.ndarray, num_labels: int) -> dict[str, float]:
    """Accuracy, and precision, recall and F1 averaged over the labels that occur in the truth; 0 / 0 counts as 0.

    Args:
        truth: (n,) true label of every product.
        predicted: (n,) predicted label.
        num_labels: C.
    """
    support = np.bincount(truth, minlength=num_labels)  # (C,)
    guessed = np.bincount(predicted, minlength=num_labels)  # (C,)
    hits = np.bincount(truth[truth == predicted], minlength=num_labels)  # (C,)
    occurs = support > 0
    support, guessed, hits = support[occurs], guessed[occurs], hits[occurs]
    return {
        "accuracy": float(hits.sum() / len(truth)),
        "precision": float(np.mean(hits / np.maximum(guessed, 1))),
        "recall": float(np.mean(hits / support)),
        "f1": float(np.mean(2 * hits / (support + guessed))),
    }
