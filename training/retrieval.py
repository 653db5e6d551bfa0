"""Exact retrieval over all candidates, scored by Recall@k, MRR and nDCG@10 in the five directions of MBE2.0."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from moon2_dataset import ProductQueries

from .ceiling import ceiling_recall
from .encode import Views


class Direction(NamedTuple):
    """One retrieval direction: which view of the query looks for which view of the products."""

    key: str
    name: str
    query_view: str
    candidate_view: str


DIRECTIONS = (
    Direction("t2mm", "t→mm", "text", "multimodal"),
    Direction("i2mm", "i→mm", "image", "multimodal"),
    Direction("mm2mm", "mm→mm", "multimodal", "multimodal"),
    Direction("t2i", "t→i", "text", "image"),
    Direction("i2t", "i→t", "image", "text"),
)

NDCG_DEPTH = 10
SCORES_AT_ONCE = 2**24  # 64 MB of float32

# Equal candidates may differ in the last bits after a blocked float32 product: scores this close are a tie.
TIE = 1e-6


class Relevance(NamedTuple):
    """The right candidates of every query as compressed rows: those of query q stand at offsets[q] : offsets[q + 1].

    Args:
        offsets: (Q + 1,) int64.
        rows: (R,) int64, candidate rows, each at most once a query.
        grades: (R,) float64, greater than zero.
    """

    offsets: np.ndarray
    rows: np.ndarray
    grades: np.ndarray

    @classmethod
    def from_dicts(cls, positives: Sequence[Mapping[int, float]]) -> Relevance:
        """Build from one {candidate row: grade} per query; a grade of zero or less is no relevance."""
        graded = [{row: grade for row, grade in of_query.items() if grade > 0} for of_query in positives]
        return cls(
            np.cumsum([0, *map(len, graded)]),
            np.array([row for of_query in graded for row in of_query], dtype=np.int64),
            np.array([grade for of_query in graded for grade in of_query.values()], dtype=np.float64),
        )

    @classmethod
    def from_queries(cls, data: ProductQueries) -> tuple[list[int], Relevance]:
        """Build from a data set, one query for each query_id; also returns the first row (Q,) of each."""
        first_rows: dict[str, int] = {}
        for row, query_id in enumerate(data.queries["query_id"]):
            first_rows.setdefault(query_id, row)
        right = [
            {data.product_index[product_id]: grade for product_id, grade in data.positives[query_id].items()}
            for query_id in first_rows
        ]
        return list(first_rows.values()), cls.from_dicts(right)

    @property
    def counts(self) -> np.ndarray:
        """(Q,) int64: number of right candidates of every query."""
        return np.diff(self.offsets)

    @property
    def query_of_pair(self) -> np.ndarray:
        """(R,) int64: the query every entry of `rows` belongs to."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.counts)

    def select(self, queries: np.ndarray, candidates: np.ndarray) -> Relevance:
        """Keep the queries (Q,) and candidates (N,) of two boolean masks and number what is left from zero."""
        query_of_pair = self.query_of_pair
        kept = queries[query_of_pair] & candidates[self.rows]  # (R,)
        counts = np.bincount(query_of_pair[kept], minlength=len(queries))[queries]
        new_row = np.cumsum(candidates) - 1
        return Relevance(np.cumsum([0, *counts]), new_row[self.rows[kept]], self.grades[kept])

    def with_same_titles(self, title_key: np.ndarray) -> Relevance:
        """Count every candidate with the title of a right one as right too, at the highest grade that title has.

        Args:
            title_key: (N,) equal for candidates with the same normalised title.
        """
        rows_of_title: dict[int, list[int]] = defaultdict(list)
        for row, key in enumerate(title_key.tolist()):
            rows_of_title[key].append(row)
        positives: list[dict[int, float]] = [{} for _ in self.counts]
        for query, row, grade in zip(self.query_of_pair, self.rows, self.grades, strict=True):
            of_query = positives[query]
            for twin in rows_of_title[title_key[row]]:
                of_query[twin] = max(grade, of_query.get(twin, 0.0))
        return Relevance.from_dicts(positives)


def retrieval_metrics(
    query_embeddings: np.ndarray,
    candidate_embeddings: np.ndarray,
    relevance: Relevance,
    k: Sequence[int] = (1, 5, 10),
    device: torch.device | str = "cpu",
) -> dict[str, np.ndarray]:
    """Rank all candidates by dot product for every query and score the ranking.

    Recall@k is 1 for a query with at least one right candidate among its first k, so its mean is a share of queries;
    with one positive per query it is the Recall@k of the paper. MRR takes the first right candidate of the full
    ranking, nDCG@10 the grade itself as the gain. Ties count against us: a wrong candidate that ties with a right one
    goes first, and of two tied right ones the lower grade.

    Args:
        query_embeddings: (Q, D) float32.
        candidate_embeddings: (N, D) float32, the full candidate set.
        relevance: at least one right candidate for every query.
        k: cut-offs of the recall.
        device: where the products are computed, a block of queries at a time.

    Returns:
        {"recall@1": (Q,), …, "mrr": (Q,), "ndcg@10": (Q,)} in float64, one value per query.

    Raises:
        ValueError: embeddings that are not finite or do not match, or a query without a right candidate.
    """
    ranks = ranks_of_relevant(query_embeddings, candidate_embeddings, relevance, device)  # (R,)
    starts = relevance.offsets[:-1]
    first = np.minimum.reduceat(ranks, starts)  # (Q,)
    values = {f"recall@{cut}": (first <= cut).astype(np.float64) for cut in k}
    values["mrr"] = 1.0 / first
    best = _positions(relevance, -relevance.grades) + 1
    gain, ideal = (
        np.add.reduceat(np.where(rank <= NDCG_DEPTH, relevance.grades / np.log2(1.0 + rank), 0.0), starts)
        for rank in (ranks, best)
    )
    values[f"ndcg@{NDCG_DEPTH}"] = gain / ideal
    return values


def ranks_of_relevant(
    query_embeddings: np.ndarray,
    candidate_embeddings: np.ndarray,
    relevance: Relevance,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Return the rank (R,) int64, from 1, of every right candidate in the full ranking of its query.

    Args and Raises: as `retrieval_metrics`.
    """
    _check(query_embeddings, candidate_embeddings, relevance)
    candidates = torch.from_numpy(candidate_embeddings).to(device)  # (N, D)
    counts = relevance.counts
    most_first = np.argsort(-counts, kind="stable")  # so that in a block the queries with over j right ones come first
    block = max(1, SCORES_AT_ONCE // len(candidates))
    wrong_before = np.empty(len(relevance.rows), dtype=np.int64)
    right_scores = np.empty(len(relevance.rows))
    for start in range(0, len(counts), block):
        rows = most_first[start : start + block]
        nth = np.arange(counts[rows[0]])
        valid = nth < counts[rows, None]  # (b, P)
        pairs = relevance.offsets[rows, None] + nth
        columns = torch.from_numpy(relevance.rows[np.where(valid, pairs, 0)]).to(device)  # (b, P)
        scores = torch.from_numpy(query_embeddings[rows]).to(device) @ candidates.T  # (b, N)
        right = scores.gather(1, columns)  # (b, P)
        row, column = (torch.from_numpy(index).to(device) for index in np.nonzero(valid))
        scores[row, columns[row, column]] = -torch.inf  # what is left to count is wrong
        before = torch.zeros_like(columns)
        for j, having in enumerate(valid.sum(axis=0).tolist()):
            before[:having, j] = (scores[:having] >= right[:having, j, None] - TIE).sum(dim=1)
        wrong_before[pairs[valid]] = before.cpu().numpy()[valid]
        right_scores[pairs[valid]] = right.cpu().numpy()[valid]
    return 1 + wrong_before + _positions(relevance, -right_scores)


def _positions(relevance: Relevance, ascending: np.ndarray) -> np.ndarray:
    """(R,) place of every right candidate among those of its query, sorted by `ascending`, then by the lower grade."""
    query_of_pair = relevance.query_of_pair
    order = np.lexsort((relevance.grades, ascending, query_of_pair))
    positions = np.empty(len(order), dtype=np.int64)
    positions[order] = np.arange(len(order)) - relevance.offsets[query_of_pair]
    return positions


def _check(queries: np.ndarray, candidates: np.ndarray, relevance: Relevance) -> None:
    if queries.shape[1:] != candidates.shape[1:]:
        raise ValueError(f"queries are {queries.shape} and candidates {candidates.shape}; the width must be the same")
    if len(relevance.counts) != len(queries):
        raise ValueError(f"{len(queries)} queries but relevance for {len(relevance.counts)}; give one entry per query")
    for name, embeddings in (("query", queries), ("candidate", candidates)):
        bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
        if bad.size:
            raise ValueError(f"{name} {bad[0]}: its embedding is not finite ({bad.size} such); check the weights")
    alone = np.flatnonzero(relevance.counts == 0)
    if alone.size:
        raise ValueError(f"query {alone[0]} has no right candidate ({alone.size} such); leave such queries out")


def chance_recall(counts: np.ndarray, num_candidates: int, k: int = 10) -> float:
    """Expected Recall@k of a random ranking: mean over queries of 1 − C(N − m, k) / C(N, k).

    Args:
        counts: (Q,) number m of right candidates of every query.
        num_candidates: N.
        k: cut-off.
    """
    drawn = np.arange(min(k, num_candidates))
    all_wrong = np.prod(np.maximum(num_candidates - counts[:, None] - drawn, 0) / (num_candidates - drawn), axis=1)
    return float(np.mean(1.0 - all_wrong))


def bootstrap_interval(
    values: np.ndarray, samples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over queries.

    Drawing n queries with replacement is drawing from a multinomial how often each distinct value occurs, which is
    cheap because a metric of ranks takes few values.

    Args:
        values: (Q,) one value per query.
        samples: number of bootstrap samples.
        seed: of the samples.
        level: share of the samples inside the interval.

    Returns:
        Lower and upper end.
    """
    distinct, counts = np.unique(values, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=samples)  # (samples, V)
    low, high = np.quantile(draws @ distinct / len(values), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def evaluate_retrieval(
    queries: Views,
    candidates: Views,
    relevance: Relevance,
    title_key: np.ndarray,
    device: torch.device | str = "cpu",
    slices: Mapping[str, np.ndarray] | None = None,
    groups: Mapping[str, np.ndarray] | None = None,
    per_query: bool = False,
) -> dict[str, dict]:
    """Score the five directions.

    A query takes part in a direction if it has the view asked for (both text and image for mm) and a right product
    among the candidates, which are all products that have the candidate view. A product without image or text stays a
    candidate of the multimodal view with what it has. Where the candidates are texts, every product with the
    normalised title of a right one is right.

    Args:
        queries: views of Q queries.
        candidates: views of N products.
        relevance: right products of every query, rows of `candidates`.
        title_key: (N,) equal for products with the same normalised title.
        device: where the products are computed.
        slices: by name, (Q,) labels; the queries of each label are also scored apart, over all candidates.
        groups: by view, (Q,) equal for queries that are the same to any encoder; see `query_groups`. None: all differ.
        per_query: also return the scores of the single queries.

    Returns:
        For each direction's key its name, the counts (`queries`, `candidates`, and `left_out`: queries without the
        view or without a right candidate), `chance_recall@10`, `ceiling_recall@10`, and every metric as {"value",
        "low", "high"}. A direction with no query has the counts and `skipped` with the reason. With `slices` a scored
        direction has, by name and label, the number of `queries` with that label and their recall@10; labels of none
        are left out. With `per_query` it has under that name {"rows": which queries were scored, "recall@10": their
        values}.
    """
    has_query_view = {"text": queries.has_text, "image": queries.has_image}
    has_query_view["multimodal"] = queries.has_text & queries.has_image
    has_candidate_view = {"text": candidates.has_text, "image": candidates.has_image}
    has_candidate_view["multimodal"] = candidates.has_text | candidates.has_image
    results = {}
    for key, name, query_view, candidate_view in DIRECTIONS:
        asked, pool = has_query_view[query_view], has_candidate_view[candidate_view]
        served = asked & (np.bincount(relevance.query_of_pair[pool[relevance.rows]], minlength=len(asked)) > 0)
        result = results[key] = {
            "name": name,
            "queries": int(served.sum()),
            "candidates": int(pool.sum()),
            "left_out": {"no_view": int((~asked).sum()), "no_right_candidate": int((asked & ~served).sum())},
        }
        if not served.any():
            result["skipped"] = f"no query with {query_view} view and a right product with {candidate_view} view"
            continue
        selected = relevance.select(served, pool)
        if candidate_view == "text":
            selected = selected.with_same_titles(title_key[pool])
        values = retrieval_metrics(
            getattr(queries, query_view)[served], getattr(candidates, candidate_view)[pool], selected, device=device
        )
        result["chance_recall@10"] = chance_recall(selected.counts, result["candidates"])
        result["ceiling_recall@10"] = ceiling_recall(selected, groups[query_view][served]) if groups else 1.0
        for metric, of_queries in values.items():
            result[metric] = _mean_with_interval(of_queries)
        if per_query:
            result["per_query"] = {"rows": np.flatnonzero(served).tolist(), "recall@10": values["recall@10"].tolist()}
        if slices:
            result["slices"] = {
                column: _scores_by_label(labels[served], values["recall@10"]) for column, labels in slices.items()
            }
    return results


def _scores_by_label(labels: np.ndarray, recalls: np.ndarray) -> dict[str, dict]:
    """Number of queries and recall@10 of each label; of one label and one value per query."""
    parts = {label: recalls[labels == label] for label in np.unique(labels).tolist()}
    return {label: {"queries": len(part), "recall@10": _mean_with_interval(part)} for label, part in parts.items()}


def _mean_with_interval(per_query: np.ndarray) -> dict[str, float]:
    low, high = bootstrap_interval(per_query)
    return {"value": float(per_query.mean()), "low": low, "high": high}
