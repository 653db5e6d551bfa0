"""What a product is: its category path, its attributes, and which products of the catalogue are nearly the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from moon2_training.classification import attribute_tasks
from moon2_training.encode import Encoder

NEAR_DUPLICATE = 0.9  # cosine similarity; about one in ten products has another product that near
CHOICES = 5

Search = Callable[[np.ndarray, int], Sequence[tuple[Any, float]]]


class Prediction(NamedTuple):
    """What is predicted of one thing.

    Args:
        name: of the attribute, or level_1, level_2, … of the category path, coarse to fine.
        choices: the likeliest labels with their probabilities, best first, five at most.
    """

    name: str
    choices: list[tuple[str, float]]

    @property
    def label(self) -> str:
        """The likeliest label."""
        return self.choices[0][0]

    @property
    def score(self) -> float:
        """Its probability."""
        return self.choices[0][1]


@dataclass(frozen=True)
class Understanding:
    """What an encoder makes of one product.

    Attributes:
        categories: one prediction per level of the category path. A level's choices are what lies under the label of
            the level before it, and its probabilities are never above that label's.
        attributes: one prediction per attribute, by name.
        duplicates: near-duplicates in the catalogue with their cosine similarities, nearest first: row numbers, or
            whatever the search gives.
    """

    categories: list[Prediction]
    attributes: list[Prediction]
    duplicates: list[tuple[Any, float]]

    @property
    def category_path(self) -> list[str]:
        """The likeliest label at every level."""
        return [level.label for level in self.categories]


class _Labels(NamedTuple):
    """The labels of a catalogue and, by label, the vectors of their texts.

    Args:
        paths: distinct category paths that are no part of a longer one.
        attributes: labels of every attribute that is predicted.
        left_out: why others are not, by name.
    """

    paths: list[tuple[str, ...]]
    attributes: dict[str, list[str]]
    left_out: dict[str, str]
    vectors: dict[str, np.ndarray]


class CatalogueLabels:
    """The category paths and attribute values that a catalogue knows, encoded once as texts.

    A product is compared with the names of the leaf categories, and what speaks for a leaf speaks for all that is
    above it: coarse names, such as "Accessories", are words that no product's title has. The probability of a leaf is
    softmax(⟨r, label⟩ / ε), that of a level the sum over its leaves, with the encoder's own temperature ε of
    retrieval. Attributes are compared with their values likewise; those on under a fifth of the products, or with
    fewer than 2 or more than 200 values, are left out, as in the evaluation.

    Args:
        encoder: encodes labels and products.
        category_paths: coarse to fine, one per product; [] where it is unknown.
        attributes: [{"name", "value"}] of every product.

    Example:
        >>> labels = CatalogueLabels(encoder, products["category_path"], products["attributes"])
        >>> labels.understand({"text": "red mug", "images": [photo]}, vectors).category_path
        ['Home', 'Tableware', 'Mugs']
    """

    def __init__(
        self,
        encoder: Encoder,
        category_paths: Sequence[Sequence[str]],
        attributes: Sequence[Sequence[Mapping[str, str]]],
    ) -> None:
        self.encoder = encoder
        self._labels = _Labels([], {}, {}, {})
        self.update(category_paths, attributes)

    @property
    def left_out(self) -> dict[str, str]:
        """Attributes that are not predicted, and why."""
        return dict(self._labels.left_out)

    def update(
        self, category_paths: Sequence[Sequence[str]], attributes: Sequence[Sequence[Mapping[str, str]]]
    ) -> None:
        """Take over the labels of a changed catalogue; only those that are new are encoded."""
        stripped = ([label.strip() for label in path] for path in category_paths)
        distinct = {tuple(label for label in path if label) for path in stripped}
        inner = {path[:depth] for path in distinct for depth in range(len(path))}
        paths = sorted(distinct - inner - {()})
        tasks, left_out = attribute_tasks(attributes)
        values = {task.name: task.labels for task in tasks}
        wanted = sorted({path[-1] for path in paths}.union(*values.values()))
        known = self._labels.vectors
        new = [label for label in wanted if label not in known]
        encoded = self.encoder.encode([{"text": label, "images": []} for label in new], "text", progress=False)
        vectors = {label: known[label] for label in wanted if label in known} | dict(zip(new, encoded, strict=True))
        self._labels = _Labels(paths, values, left_out, vectors)  # at once: another thread may be reading

    def understand(
        self,
        item: Mapping[str, Any],
        catalogue: np.ndarray | Search,
        max_duplicates: int = 5,
        min_similarity: float = NEAR_DUPLICATE,
    ) -> Understanding:
        """Predict category path and attributes of one product, zero-shot, and find its near-duplicates.

        Args:
            item: with text, images or both, see `Encoder`.
            catalogue: (N, D) vectors of the catalogue, or a search: called with the product's vector (D,) and how
                many are wanted, it gives the nearest products with their cosine similarities, best first.
            max_duplicates: near-duplicates to return at most.
            min_similarity: cosine similarity from which a product is one. What it separates differs between models:
                it is there to choose what a person looks at.

        Raises:
            ValueError: the item has neither text nor image, or cannot be read.
        """
        vector = self.encoder.encode([item], progress=False)[0]  # (D,)
        labels = self._labels
        predictions = [
            Prediction(name, _best(dict(zip(values, self._probabilities(vector, values, labels), strict=True))))
            for name, values in labels.attributes.items()
        ]
        search = catalogue if callable(catalogue) else partial(_nearest, catalogue)
        near = search(vector, max_duplicates)
        duplicates = [(product, float(score)) for product, score in near if score >= min_similarity]
        return Understanding(self._categories(vector, labels), predictions, duplicates)

    def _categories(self, vector: np.ndarray, labels: _Labels) -> list[Prediction]:
        """Walk down the tree, at every level to the likeliest of what lies under the one before."""
        if not labels.paths:
            return []
        leaves = sorted({path[-1] for path in labels.paths})
        of_leaf = dict(zip(leaves, self._probabilities(vector, leaves, labels), strict=True))
        homes = {leaf: sum(path[-1] == leaf for path in labels.paths) for leaf in leaves}  # several have an "Other"
        below = {path: of_leaf[path[-1]] / homes[path[-1]] for path in labels.paths}
        levels: list[Prediction] = []
        while below := {path: share for path, share in below.items() if len(path) > len(levels)}:
            shares: dict[str, float] = {}
            for path, share in below.items():
                label = path[len(levels)]
                shares[label] = shares.get(label, 0.0) + share
            levels.append(Prediction(f"level_{len(levels) + 1}", _best(shares)))
            below = {path: share for path, share in below.items() if path[len(levels) - 1] == levels[-1].label}
        return levels

    @torch.no_grad()
    def _probabilities(self, vector: np.ndarray, names: Sequence[str], labels: _Labels) -> list[float]:
        """softmax(⟨vector, label⟩ / ε) over the labels of these names."""
        similarities = torch.from_numpy(np.stack([labels.vectors[name] for name in names]) @ vector)  # (C,)
        inter_product = self.encoder.model.temperature()[0].cpu()
        return (similarities / inter_product).softmax(0).tolist()


def _best(probabilities: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(probabilities.items(), key=lambda choice: -choice[1])[:CHOICES]


def _nearest(catalogue: np.ndarray, vector: np.ndarray, count: int) -> list[tuple[int, float]]:
    """Rows of `catalogue` (N, D) with the largest dot products, best first."""
    scores = catalogue @ vector  # (N,)
    best = np.argsort(-scores, kind="stable")[:count]
    return list(zip(best.tolist(), scores[best].tolist(), strict=True))
