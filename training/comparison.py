"""Whether two encoders differ: paired bootstrap over the queries, and over the seeds where there are several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .retrieval import DIRECTIONS


class Difference(NamedTuple):
    """A mean difference and the interval it lies in; it says nothing of the sign where the interval holds zero."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def paired_difference(
    a: np.ndarray, b: np.ndarray, samples: int = 1000, seed: int = 0, level: float = 0.95
) -> Difference:
    """Mean of `a` less mean of `b` with its percentile bootstrap interval.

    Every sample draws Q queries with replacement, the same ones for both. It also draws seeds with replacement: of
    equally many, row s of both is taken to be one seed (same data order, same start) and drawn together; of unequal
    numbers each side's own. A side with one seed is taken as it is, so the interval tells nothing of other seeds. With
    two or three, the spread between seeds is told too small, as by any bootstrap of so few; what differs neither by
    query nor by seed but by both counts up to three times, which makes the interval wide rather than narrow (Owen,
    "The pigeonhole bootstrap", Annals of Applied Statistics 2007).

    Drawing queries is drawing from a multinomial how often each distinct column of values occurs, which is cheap
    because a recall is 0 or 1.

    Args:
        a: (S, Q) one value for each seed and query, or (Q,) of one seed.
        b: (S', Q) or (Q,), the same queries in the same order.
        samples: number of bootstrap samples.
        seed: of the samples.
        level: share of the samples inside the interval.

    Raises:
        ValueError: no values, or different numbers of queries.
    """
    a, b = (np.atleast_2d(np.asarray(values, dtype=np.float64)) for values in (a, b))
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"a has {a.shape[1]} queries and b {b.shape[1]}; give the same ones in the same order")
    if not (a.size and b.size):
        raise ValueError(f"a is {a.shape} and b {b.shape}; give one seed and one query or more")
    sides = [a - b] if len(a) == len(b) else [a, -b]
    rng = np.random.default_rng(seed)
    num_queries = a.shape[1]
    columns, counts = np.unique(np.concatenate(sides), axis=1, return_counts=True)  # (S + S', V)
    draws = rng.multinomial(num_queries, counts / num_queries, size=samples)  # (samples, V)
    of_seeds = draws @ columns.T / num_queries  # (samples, S + S')
    differences = np.zeros(samples)
    first = 0
    for side in sides:
        seeds = len(side)
        weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=samples) / seeds  # (samples, S)
        differences += (of_seeds[:, first : first + seeds] * weights).sum(axis=1)
        first += seeds
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    return Difference(float(sum(side.mean() for side in sides)), float(low), float(high))


def compare(results: dict, baseline: dict) -> dict[str, dict]:
    """Paired differences in Recall@10 between two results of `evaluate_encoder(…, per_query=True)`.

    Args:
        results: of the encoder in question.
        baseline: of the one it is compared with, on the same queries.

    Returns:
        For the key of every direction that both were scored in, over the queries that both were scored on: their
        number as `queries`, and {"value", "low", "high"} of `results` less `baseline`. "mean", of the five directions,
        where none is missing; it draws a query in all its directions at once.
    """
    scores, base_scores = results["per_query"], baseline["per_query"]
    pairs = {key: _on_common_queries(scores[key], base_scores[key]) for key in scores if key in base_scores}
    pairs = {key: pair for key, pair in pairs.items() if pair[0]}
    differences = {key: _difference(*pair) for key, pair in pairs.items()}
    if len(pairs) == len(DIRECTIONS):
        everyone = dict.fromkeys(query_id for ids, _, _ in pairs.values() for query_id in ids)
        place = {query_id: i for i, query_id in enumerate(everyone)}
        shares = np.zeros((2, len(place)))  # what each query adds to the mean of the directions
        for ids, *sides in pairs.values():
            rows = [place[query_id] for query_id in ids]
            shares[:, rows] += np.array(sides) * len(place) / (len(ids) * len(pairs))
        differences["mean"] = _difference(list(place), *shares)
    return differences


def _on_common_queries(scores: dict, base_scores: dict) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The ids of the queries in both, and the recalls of both on them."""
    of_base = dict(zip(base_scores["query_ids"], base_scores["recall@10"], strict=True))
    common = [
        (query_id, recall, of_base[query_id])
        for query_id, recall in zip(scores["query_ids"], scores["recall@10"], strict=True)
        if query_id in of_base
    ]
    ids, *sides = zip(*common, strict=True) if common else ((), (), ())
    return list(ids), *map(np.array, sides)


def _difference(ids: list[str], values: np.ndarray, base_values: np.ndarray) -> dict:
    mean, low, high = paired_difference(values, base_values)
    return {"queries": len(ids), "value": mean, "low": low, "high": high}


def short_names(models: Sequence[str]) -> list[str]:
    """Call each model by so many of the last parts of its path as tell it from the others.

    Raises:
        ValueError: one is given twice.
    """
    parts = [Path(model).parts for model in models]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(of_model[-depth:]) for of_model in parts]
        if len(set(names)) == len(names):
            return names
    twice = next(model for model, of_model in zip(models, parts, strict=True) if parts.count(of_model) > 1)
    raise ValueError(f"{twice}: given twice; give every model once")
