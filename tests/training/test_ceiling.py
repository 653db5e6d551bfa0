from __future__ import annotations

import itertools

import numpy as np
import pytest
from datasets import Dataset, Features

from moon2_dataset import QUERY_FEATURES
from moon2_training.ceiling import ceiling_recall, query_groups
from moon2_training.retrieval import Relevance, retrieval_metrics


def test_queries_are_the_same_by_text_by_picture_and_by_both():
    def picture(data: bytes | None, path: str | None = None) -> dict:
        return {"bytes": data, "path": path}

    rows = [("red mug", picture(b"1")), (" red mug", picture(b"2", "a.jpg")), ("red mug", picture(b"2", "b.jpg")),
            (None, picture(b"1")), ("Red mug", None), (None, picture(None, "a.jpg")), ("Red mug", None)]  # fmt: skip
    queries = Dataset.from_list(
        [{"query_id": str(i), "text": t, "image": image, "product_id": "p"} for i, (t, image) in enumerate(rows)],
        features=Features(QUERY_FEATURES),
    )
    groups = query_groups(queries, range(7))
    assert {view: group.tolist() for view, group in groups.items()} == {
        "text": [0, 0, 0, 1, 2, 1, 2],
        "image": [0, 1, 1, 0, 2, 3, 2],
        "multimodal": [0, 1, 1, 2, 3, 4, 3],
    }
    assert query_groups(queries, [2, 4])["text"].tolist() == [0, 1]


def test_where_all_queries_differ_everything_can_be_found():
    relevance = Relevance.from_dicts([{row: 1.0} for row in range(50)])
    assert ceiling_recall(relevance, np.arange(50)) == 1.0
    assert ceiling_recall(relevance, np.arange(50) // 10) == 1.0  # ten products for ten queries


def test_of_a_group_the_products_meant_most_often_are_found():
    # one group wants twelve products: two of them three times, the others once; another group two products
    meant = [0, 0, 0, 1, 1, 1, *range(2, 12), 20, 21]
    group = np.array([0] * 16 + [1] * 2)
    relevance = Relevance.from_dicts([{row: 1.0} for row in meant])
    assert ceiling_recall(relevance, group) == (3 + 3 + 8 + 2) / 18
    assert ceiling_recall(relevance, group, k=1) == (3 + 1) / 18
    mixed = np.random.default_rng(0).permutation(18)
    shuffled = Relevance.from_dicts([{meant[row]: 1.0} for row in mixed])
    assert ceiling_recall(shuffled, group[mixed]) == (3 + 3 + 8 + 2) / 18


def test_a_product_that_is_right_for_several_queries_serves_them_all():
    positives = [{0: 1.0, row: 1.0} for row in range(1, 30)]
    assert ceiling_recall(Relevance.from_dicts(positives), np.zeros(29, int), k=1) == 1.0


def test_it_is_the_best_of_all_choices_where_each_query_has_one_right_product():
    rng = np.random.default_rng(1)
    for _ in range(20):
        meant = rng.integers(0, 7, 30)
        group = rng.integers(0, 3, 30)
        best = 0
        for number in range(3):
            wanted = meant[group == number]
            best += max(np.isin(wanted, chosen).sum() for chosen in itertools.combinations(range(7), 2))
        relevance = Relevance.from_dicts([{int(row): 1.0} for row in meant])
        assert ceiling_recall(relevance, group, k=2) == pytest.approx(best / 30)


def test_an_oracle_reaches_exactly_the_ceiling():
    """Of every group an embedding nearest to the ten products that it means most often."""
    rng = np.random.default_rng(2)
    num_products, num_groups = 120, 8
    group = rng.integers(0, num_groups, 400)
    meant = (rng.zipf(1.5, 400) + 13 * group) % num_products
    queries = np.zeros((400, num_products), dtype=np.float32)
    for number in range(num_groups):
        counts = np.bincount(meant[group == number], minlength=num_products)
        queries[group == number] = counts / np.linalg.norm(counts) + 1e-5 * rng.permutation(num_products)  # no ties
    relevance = Relevance.from_dicts([{int(row): 1.0} for row in meant])
    ceiling = ceiling_recall(relevance, group)
    recall = retrieval_metrics(queries, np.eye(num_products, dtype=np.float32), relevance)["recall@10"]
    assert 0.5 < ceiling < 1 and recall.mean() == pytest.approx(ceiling)
    # no other embedding of the groups does better
    for _ in range(50):
        other = queries + 0.05 * rng.standard_normal((num_groups, num_products)).astype(np.float32)[group]
        recall = retrieval_metrics(other, np.eye(num_products, dtype=np.float32), relevance)["recall@10"]
        assert recall.mean() <= ceiling + 1e-9
