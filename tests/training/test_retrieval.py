from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import moon2_training.retrieval as retrieval
from moon2_training.encode import Views
from moon2_training.retrieval import (
    DIRECTIONS,
    Relevance,
    bootstrap_interval,
    chance_recall,
    evaluate_retrieval,
    ranks_of_relevant,
    retrieval_metrics,
)


def normalised(rng: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = rng.standard_normal(shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def ranking(query: np.ndarray, candidates: np.ndarray, positives: dict[int, float]) -> list[int]:
    """Best first; of equal scores the wrong ones first, then the lower grade."""
    scores = [sum(a * b for a, b in zip(query.tolist(), row.tolist(), strict=True)) for row in candidates]
    return sorted(range(len(candidates)), key=lambda row: (-scores[row], positives.get(row, 0.0)))


def slow_metrics(queries: np.ndarray, candidates: np.ndarray, positives: list[dict[int, float]]) -> dict[str, list]:
    values = {"recall@1": [], "recall@5": [], "recall@10": [], "mrr": [], "ndcg@10": []}
    for query, right in zip(queries, positives, strict=True):
        order = ranking(query, candidates, right)
        for k in (1, 5, 10):
            values[f"recall@{k}"].append(float(any(row in right for row in order[:k])))
        values["mrr"].append(next(1 / rank for rank, row in enumerate(order, start=1) if row in right))
        gain = sum(right.get(row, 0.0) / math.log2(1 + rank) for rank, row in enumerate(order[:10], start=1))
        ideal = sorted(right.values(), reverse=True)[:10]
        values["ndcg@10"].append(gain / sum(grade / math.log2(1 + rank) for rank, grade in enumerate(ideal, start=1)))
    return values


def random_positives(rng: np.random.Generator, num_queries: int, num_candidates: int, most: int) -> list[dict]:
    return [
        {
            int(row): float(rng.choice([0.5, 1.0, 2.0, 3.0]))
            for row in rng.choice(num_candidates, size=rng.integers(1, most + 1), replace=False)
        }
        for _ in range(num_queries)
    ]


@pytest.mark.parametrize("scores_at_once", [1, 37 * 4, 2**24])
@pytest.mark.parametrize("most", [1, 14])
def test_metrics_equal_a_loop_over_queries(monkeypatch, scores_at_once, most):
    monkeypatch.setattr(retrieval, "SCORES_AT_ONCE", scores_at_once)
    rng = np.random.default_rng(most)
    queries, candidates = normalised(rng, 23, 8), normalised(rng, 37, 8)
    positives = random_positives(rng, 23, 37, most)
    expected = slow_metrics(queries, candidates, positives)
    values = retrieval_metrics(queries, candidates, Relevance.from_dicts(positives))
    assert list(values) == list(expected)
    for name in expected:
        np.testing.assert_allclose(values[name], expected[name], atol=1e-12, err_msg=name)


def test_metrics_with_many_ties_equal_a_loop_over_queries():
    rng = np.random.default_rng(3)
    queries = rng.integers(0, 2, (40, 3)).astype(np.float32)
    candidates = rng.integers(0, 2, (30, 3)).astype(np.float32)
    positives = random_positives(rng, 40, 30, 6)
    expected = slow_metrics(queries, candidates, positives)
    values = retrieval_metrics(queries, candidates, Relevance.from_dicts(positives))
    for name in expected:
        np.testing.assert_allclose(values[name], expected[name], atol=1e-12, err_msg=name)


def test_a_right_candidate_among_ties_stands_last():
    queries = np.ones((1, 4), dtype=np.float32) / 2
    candidates = np.repeat(queries, 50, axis=0)
    assert ranks_of_relevant(queries, candidates, Relevance.from_dicts([{7: 1.0}])).tolist() == [50]
    # of two right ones the lower grade goes first
    assert ranks_of_relevant(queries, candidates, Relevance.from_dicts([{7: 3.0, 9: 1.0}])).tolist() == [50, 49]


def test_scores_apart_by_rounding_are_a_tie():
    query = np.array([[1, 0]], dtype=np.float32)
    right = Relevance.from_dicts([{0: 1.0}])
    for below, rank in ((2e-7, 2), (1e-5, 1)):
        candidates = np.array([[0.5, 0.3], [0.5 - below, 0.1]], dtype=np.float32)
        assert ranks_of_relevant(query, candidates, right).tolist() == [rank]


def test_equal_candidates_tie_wherever_they_stand_in_the_matrix():
    rng = np.random.default_rng(0)
    queries = normalised(rng, 64, 129)
    product = normalised(rng, 1, 129)
    candidates = np.concatenate([product, normalised(rng, 1001, 129), product])
    relevance = Relevance.from_dicts([{0: 1.0}] * 64)
    last = Relevance.from_dicts([{len(candidates) - 1: 1.0}] * 64)
    ranks = ranks_of_relevant(queries, candidates, relevance)
    assert (ranks == ranks_of_relevant(queries, candidates, last)).all()
    assert (ranks == ranks_of_relevant(queries, candidates[:-1], relevance) + 1).all()


def test_an_oracle_reaches_the_ceiling_and_random_embeddings_chance():
    rng = np.random.default_rng(1)
    candidates = normalised(rng, 200, 32)
    one = Relevance.from_dicts([{row: 1.0} for row in range(200)])
    for values in retrieval_metrics(candidates, candidates, one).values():
        assert (values == 1).all()
    three = Relevance.from_dicts([{row % 200: 1.0, (row + 1) % 200: 1.0, (row + 2) % 200: 1.0} for row in range(4000)])
    recall = retrieval_metrics(normalised(rng, 4000, 32), candidates, three)["recall@10"]
    chance = chance_recall(three.counts, 200)
    assert chance == pytest.approx(1 - math.comb(197, 10) / math.comb(200, 10))
    assert abs(recall.mean() - chance) < 4 * math.sqrt(chance * (1 - chance) / 4000) + 0.01


def test_chance_with_fewer_candidates_than_k_is_one():
    assert chance_recall(np.array([1, 2]), 7, k=10) == 1.0
    assert chance_recall(np.array([1, 3]), 4, k=2) == pytest.approx((0.5 + 1.0) / 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, c: q.__setitem__((2, 0), np.nan), "query 2: its embedding is not finite"),
        (lambda q, c: c.__setitem__((3, 1), np.inf), "candidate 3: its embedding is not finite"),
    ],
)
def test_embeddings_that_are_not_finite_are_refused(change, message):
    rng = np.random.default_rng(0)
    queries, candidates = normalised(rng, 4, 5), normalised(rng, 6, 5)
    change(queries, candidates)
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(queries, candidates, Relevance.from_dicts([{0: 1.0}] * 4))


def test_queries_without_a_right_candidate_and_wrong_shapes_are_refused():
    rng = np.random.default_rng(0)
    queries, candidates = normalised(rng, 2, 5), normalised(rng, 6, 5)
    with pytest.raises(ValueError, match="query 1 has no right candidate"):
        retrieval_metrics(queries, candidates, Relevance.from_dicts([{0: 1.0}, {3: 0.0}]))
    with pytest.raises(ValueError, match="relevance for 3"):
        retrieval_metrics(queries, candidates, Relevance.from_dicts([{0: 1.0}] * 3))
    with pytest.raises(ValueError, match="width"):
        retrieval_metrics(queries, candidates[:, :4], Relevance.from_dicts([{0: 1.0}] * 2))


def test_select_renumbers_queries_and_candidates():
    relevance = Relevance.from_dicts([{0: 1.0, 3: 2.0}, {2: 1.0}, {1: 3.0, 4: 1.0}])
    selected = relevance.select(np.array([True, False, True]), np.array([False, True, True, True, True]))
    assert selected.offsets.tolist() == [0, 1, 3]
    assert selected.rows.tolist() == [2, 0, 3]
    assert selected.grades.tolist() == [2.0, 3.0, 1.0]


def test_same_titles_are_right_at_the_highest_grade():
    relevance = Relevance.from_dicts([{0: 3.0, 2: 1.0}, {1: 2.0}, {3: 1.0, 0: 2.0}])
    widened = relevance.with_same_titles(np.array([5, 6, 5, 5, 7]))
    per_query = [
        dict(zip(widened.rows[a:b].tolist(), widened.grades[a:b].tolist(), strict=True))
        for a, b in itertools.pairwise(widened.offsets)
    ]
    assert per_query == [{0: 3.0, 2: 3.0, 3: 3.0}, {1: 2.0}, {0: 2.0, 2: 2.0, 3: 2.0}]


def test_bootstrap_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        low, high = bootstrap_interval((rng.random(100) < 0.3).astype(float), samples=400, seed=trial)
        covered += low <= 0.3 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_bootstrap_equals_drawing_queries_one_by_one():
    values = 1 / np.random.default_rng(0).integers(1, 30, size=80)
    rng = np.random.default_rng(1)
    means = [np.mean([values[i] for i in rng.integers(0, 80, size=80)]) for _ in range(4000)]
    low, high = bootstrap_interval(values, samples=4000)
    width = high - low
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.05 * width)


def test_bootstrap_shrinks_with_queries_and_repeats():
    values = np.random.default_rng(0).random(4000)
    few, many = bootstrap_interval(values[:40]), bootstrap_interval(values)
    assert (many[1] - many[0]) < 0.2 * (few[1] - few[0])
    assert bootstrap_interval(values) == many != bootstrap_interval(values, seed=1)
    narrow = bootstrap_interval(values, level=0.5)
    assert many[0] < narrow[0] < values.mean() < narrow[1] < many[1]
    assert bootstrap_interval(np.ones(9)) == (1.0, 1.0)


def make_views(rng: np.random.Generator, has_text: list[bool], has_image: list[bool]) -> Views:
    text, image = np.array(has_text), np.array(has_image)
    embeddings = normalised(rng, 3, len(text), 16)
    embeddings[0][~text] = 0
    embeddings[1][~image] = 0
    return Views(*embeddings, text, image)


def test_directions_leave_out_missing_views_and_count_them():
    rng = np.random.default_rng(0)
    queries = make_views(rng, [True, True, False, True], [True, False, True, True])
    products = make_views(rng, [True, True, True, False, True], [True, True, False, True, True])
    relevance = Relevance.from_dicts([{0: 1.0}, {2: 1.0}, {3: 1.0}, {3: 1.0}])
    results = evaluate_retrieval(queries, products, relevance, np.arange(5))
    assert list(results) == [direction.key for direction in DIRECTIONS] == ["t2mm", "i2mm", "mm2mm", "t2i", "i2t"]
    counts = {
        key: (r["queries"], r["candidates"], r["left_out"]["no_view"], r["left_out"]["no_right_candidate"])
        for key, r in results.items()
    }
    assert counts == {
        "t2mm": (3, 5, 1, 0),
        "i2mm": (3, 5, 1, 0),
        "mm2mm": (2, 5, 2, 0),
        "t2i": (2, 4, 1, 1),  # query 1 means product 2, which has no image
        "i2t": (1, 4, 1, 2),  # queries 2 and 3 mean product 3, which has no title
    }
    assert results["i2t"]["chance_recall@10"] == 1.0
    # the same by hand: query 0 and 3 looking for images, product 2 taken out
    right = {0: 0, 3: 2}
    order = {q: np.argsort(-(products.image[[0, 1, 3, 4]] @ queries.text[q])).tolist() for q in right}
    mrr = np.mean([1 / (1 + order[q].index(right[q])) for q in right])
    assert results["t2i"]["mrr"]["value"] == pytest.approx(mrr)


def test_image_to_text_accepts_products_with_the_same_title_and_the_other_directions_do_not():
    rng = np.random.default_rng(0)
    products = make_views(rng, [True] * 30, [True] * 30)
    queries = Views(*(view[1:2] for view in products))
    relevance = Relevance.from_dicts([{0: 1.0}])  # the query looks like product 1, which has product 0's title
    title_key = np.array([0, 0, *range(2, 30)])
    products.text[:] = products.image
    products.multimodal[:] = products.image
    queries.multimodal[:] = queries.image
    results = evaluate_retrieval(queries, products, relevance, title_key)
    assert results["i2t"]["recall@1"]["value"] == 1.0
    assert results["i2mm"]["recall@1"]["value"] == 0.0


def judged(queries: Views, products: Views, meant: np.ndarray, group: np.ndarray) -> dict[str, dict]:
    relevance = Relevance.from_dicts([{int(row): 1.0} for row in meant])
    groups = {view: group for view in ("text", "image", "multimodal")}
    return evaluate_retrieval(queries, products, relevance, np.arange(len(products.text)), groups=groups)


def views_of(embeddings: np.ndarray) -> Views:
    return Views(*[embeddings] * 3, *[np.ones(len(embeddings), dtype=bool)] * 2)


def test_an_oracle_is_at_the_ceiling_a_random_model_at_chance_and_a_constant_one_at_nothing():
    rng = np.random.default_rng(5)
    group = rng.integers(0, 40, 600)
    meant = rng.integers(0, 30, 600) + group
    wanted = np.stack([np.bincount(meant[group == number], minlength=100) for number in range(40)])
    oracle = (wanted / np.linalg.norm(wanted, axis=1, keepdims=True))[group].astype(np.float32)
    oracle += 1e-5 * rng.permutation(100).astype(np.float32)  # of products meant as often, no two tie
    for result in judged(views_of(oracle), views_of(np.eye(100, dtype=np.float32)), meant, group).values():
        assert result["ceiling_recall@10"] < 1
        assert result["recall@10"]["value"] == pytest.approx(result["ceiling_recall@10"])
    guesses = [judged(make_views(rng, [True] * 600, [True] * 600), make_views(rng, [True] * 100, [True] * 100),
                      meant, np.arange(600))[key] for key in ("t2mm", "i2t") for _ in range(10)]  # fmt: skip
    inside = [g["recall@10"]["low"] <= g["chance_recall@10"] <= g["recall@10"]["high"] for g in guesses]
    assert guesses[0]["chance_recall@10"] == pytest.approx(0.1) and np.mean(inside) >= 0.8
    one = np.full((1, 16), 0.25, dtype=np.float32)
    for result in judged(views_of(one.repeat(600, 0)), views_of(one.repeat(100, 0)), meant, group).values():
        assert result["recall@10"]["value"] == 0.0


def test_a_direction_nobody_can_serve_is_skipped_with_the_reason():
    rng = np.random.default_rng(0)
    queries = make_views(rng, [True] * 3, [False] * 3)
    products = make_views(rng, [True] * 4, [True] * 4)
    results = evaluate_retrieval(queries, products, Relevance.from_dicts([{0: 1.0}] * 3), np.arange(4))
    assert "recall@10" in results["t2mm"] and "recall@10" in results["t2i"]
    for key in ("i2mm", "mm2mm", "i2t"):
        assert results[key]["queries"] == 0 and "recall@10" not in results[key]
        assert "no query with" in results[key]["skipped"]
