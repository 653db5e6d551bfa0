from __future__ import annotations

import numpy as np
import pytest

import moon2_training.classification as classification
from moon2_training.classification import (
    LabelTask,
    attribute_tasks,
    category_tasks,
    classification_metrics,
    evaluate_task,
    nearest_label,
)
from moon2_training.encode import Views


def slow_metrics(truth: list[int], predicted: list[int]) -> dict[str, float]:
    precision, recall, f1 = [], [], []
    for label in sorted(set(truth)):
        tp = sum(t == label and p == label for t, p in zip(truth, predicted, strict=True))
        fp = sum(t != label and p == label for t, p in zip(truth, predicted, strict=True))
        fn = sum(t == label and p != label for t, p in zip(truth, predicted, strict=True))
        precision.append(tp / (tp + fp) if tp + fp else 0.0)
        recall.append(tp / (tp + fn))
        both = precision[-1] + recall[-1]
        f1.append(2 * precision[-1] * recall[-1] / both if both else 0.0)
    accuracy = sum(t == p for t, p in zip(truth, predicted, strict=True)) / len(truth)
    mean = {"precision": precision, "recall": recall, "f1": f1}
    return {"accuracy": accuracy, **{name: sum(values) / len(values) for name, values in mean.items()}}


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_a_loop_over_labels(seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 6, 60)
    predicted = np.where(rng.random(60) < 0.5, truth, rng.integers(0, 9, 60))  # also labels that are nobody's truth
    expected = slow_metrics(truth.tolist(), predicted.tolist())
    assert classification_metrics(truth, predicted, 9) == pytest.approx(expected)


def test_a_label_never_predicted_scores_zero_not_nan():
    metrics = classification_metrics(np.array([0, 0, 1]), np.array([0, 0, 0]), 3)
    assert metrics == pytest.approx({"accuracy": 2 / 3, "precision": 1 / 3, "recall": 0.5, "f1": 0.4})


def test_category_tasks_take_the_name_at_each_level_of_uneven_paths():
    paths = [["Men", "Shoes", "Boots"], ["Women", "Shoes"], ["Women", "Tops", "Boots"], [], ["Gear"]]
    tasks, left_out = category_tasks(paths)
    assert [(task.name, task.labels, task.rows.tolist()) for task in tasks] == [
        ("level_1", ["Gear", "Men", "Women"], [0, 1, 2, 4]),
        ("level_2", ["Shoes", "Tops"], [0, 1, 2]),
    ]
    assert tasks[0].truth == [(1,), (2,), (2,), (0,)]
    assert list(left_out) == ["level_3"]
    assert category_tasks([[], []]) == ([], {})


def test_attribute_tasks_need_enough_values_and_products():
    products = [[] for _ in range(1000)]
    for row, pairs in enumerate(products):
        pairs.append({"name": "sku", "value": f"s{row}"})
        pairs.append({"name": "brand", "value": "one"})
        pairs.append({"name": "colour", "value": ["red", "blue", " red "][row % 3]})
        pairs.append({"name": "blank", "value": "  "})
        if row < 199:
            pairs.append({"name": "strap", "value": f"v{row % 2}"})
        if row < 200:
            pairs.append({"name": "size", "value": f"v{row}"})
    tasks, left_out = attribute_tasks(products)
    found = [(task.name, len(task.labels), len(task.rows)) for task in tasks]
    assert found == [("colour", 2, 1000), ("size", 200, 200)]
    assert set(left_out) == {"sku", "brand", "strap", "blank"}
    assert "1000 distinct" in left_out["sku"] and "1 distinct" in left_out["brand"] and "19.9%" in left_out["strap"]


def labelled_views(labels: np.ndarray, rng: np.random.Generator) -> Views:
    text, image, multimodal = (labels[rng.integers(0, len(labels), 40)] for _ in range(3))
    return Views(text, image, multimodal, np.arange(40) % 4 != 0, np.arange(40) % 3 != 0)


def test_each_input_is_judged_on_the_products_that_have_it():
    rng = np.random.default_rng(0)
    labels = np.eye(5, 8, dtype=np.float32)
    products = labelled_views(labels, rng)
    rows = np.arange(1, 40)
    task = LabelTask("colour", list("abcde"), rows, [(int(label),) for label in products.image[rows].argmax(axis=1)])
    result = evaluate_task(task, products, labels)
    assert result["labels"] == 5
    assert result["image"]["accuracy"] == result["image"]["f1"] == 1.0
    for name, embeddings, present in (
        ("image_title", products.multimodal, products.has_text & products.has_image),
        ("title", products.text, products.has_text),
        ("image", products.image, products.has_image),
    ):
        usable = [row for row in rows if present[row]]
        truth = [task.truth[row - 1][0] for row in usable]
        predicted = [int(embeddings[row].argmax()) for row in usable]
        assert result[name].pop("products") == len(usable)
        assert result[name].pop("majority_accuracy") == max(map(truth.count, truth)) / len(usable)
        assert result[name] == pytest.approx(slow_metrics(truth, predicted))


def test_one_of_several_values_is_enough():
    labels = np.eye(3, dtype=np.float32)
    embeddings = labels[[0, 1, 2]]
    products = Views(embeddings, embeddings, embeddings, np.ones(3, bool), np.zeros(3, bool))
    task = LabelTask("material", ["cotton", "linen", "wool"], np.arange(3), [(2, 0), (1,), (0, 1)])
    result = evaluate_task(task, products, labels)
    assert result["image"] is None and result["image_title"] is None
    assert result["title"]["accuracy"] == pytest.approx(2 / 3)
    assert result["title"]["majority_accuracy"] == pytest.approx(2 / 3)


def test_nearest_label_in_blocks_equals_the_whole(monkeypatch):
    rng = np.random.default_rng(0)
    embeddings, labels = rng.standard_normal((50, 6), np.float32), rng.standard_normal((7, 6), np.float32)
    whole = (embeddings @ labels.T).argmax(axis=1)
    assert (nearest_label(embeddings, labels) == whole).all()
    monkeypatch.setattr(classification, "SCORES_AT_ONCE", 20)
    assert (nearest_label(embeddings, labels) == whole).all()
    embeddings[3, 2] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        nearest_label(embeddings, labels)
