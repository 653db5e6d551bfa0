"""mteb finds with a saved folder, loaded by sentence-transformers, what `moon2 evaluate` finds."""

from __future__ import annotations

import io

import datasets
import mteb
import pytest
from datasets import Dataset, Features, Image
from sentence_transformers import SentenceTransformer

from moon2_dataset import OPTIONAL_QUERY_FEATURES, QUERY_FEATURES, join, load_product_queries
from moon2_training.evaluate import evaluate
from moon2_training.hub_folder import save_hub_folder
from moon2_training.mteb_task import joint_encoder, retrieval_tasks

DIRECTIONS = ["t2mm", "i2mm", "mm2mm", "t2i", "i2t"]


@pytest.fixture(scope="module")
def st_model(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mteb") / "model"
    save_hub_folder(folder, *tiny)
    return SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")


@pytest.fixture(scope="module")
def catalogue(shop, make_image):
    """The shop with five pictures of product 2, a picture for every other query, and grades of the two right ones."""

    def picture(seed: int) -> dict:
        file = io.BytesIO()
        make_image(seed, 40, 60).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}

    products, queries = shop.products.to_list(), shop.queries.to_list()
    products[2]["images"] += [picture(7), picture(8)]
    for row, query in enumerate(queries):
        query["grade"] = 2.0 if row == 1 else 1.0
        query["image"] = query["image"] or (picture(row) if row % 2 else None)
    features = Features(QUERY_FEATURES | OPTIONAL_QUERY_FEATURES)
    return join(Dataset.from_list(products, features=shop.products.features), Dataset.from_list(queries, features))


def scores_by_direction(model, tasks) -> dict[str, dict[str, float]]:
    encode_kwargs = {"batch_size": 5, "show_progress_bar": False}
    results = mteb.evaluate(model, tasks, encode_kwargs=encode_kwargs, cache=None, show_progress_bar=False)
    return {result.task_name.split("-")[-1]: result.scores["test"][0] for result in results.task_results}


def assert_same_recall(found: dict, expected: dict) -> None:
    assert list(found) == list(expected) == DIRECTIONS
    for direction, result in expected.items():
        for k in (1, 5, 10):
            value = result[f"recall@{k}"]["value"]
            assert found[direction][f"strict_hit_rate_at_{k}"] == pytest.approx(value, abs=1e-3), (direction, k)
        assert found[direction]["main_score"] == pytest.approx(result["recall@10"]["value"], abs=1e-3), direction


def test_every_direction_is_scored_as_moon2_evaluate_scores_it(tiny, st_model, catalogue):
    expected = evaluate(*tiny, catalogue.products, catalogue.queries, progress=False)["retrieval"]
    tasks = retrieval_tasks(catalogue, "shop")
    assert [task.metadata.name for task in tasks] == [f"shop-{direction}" for direction in DIRECTIONS]
    corpus = tasks[0].dataset["default"]["test"]["corpus"]
    assert [len(images) for images in corpus["image"][:5]] == [1, 1, 4, 0, 1]
    for task, result in zip(tasks, expected.values(), strict=True):
        split = task.dataset["default"]["test"]
        assert (len(split["queries"]), len(split["corpus"])) == (result["queries"], result["candidates"])
    found = scores_by_direction(joint_encoder(st_model), tasks)
    assert_same_recall(found, expected)
    for direction, result in expected.items():  # the whole ranking
        assert found[direction]["mrr_at_100"] == pytest.approx(result["mrr"]["value"], abs=1e-4)
        assert found[direction]["ndcg_at_10"] == pytest.approx(result["ndcg@10"]["value"], abs=1e-4)
    assert found["t2mm"]["recall_at_10"] != found["t2mm"]["hit_rate_at_10"]  # q0 has two right products


def test_real_products_are_found_as_moon2_evaluate_finds_them(tiny, st_model, shared_data, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    folder = shared_data / "fashion"
    whole = load_product_queries(folder / "products-validation.parquet", folder / "queries-validation.parquet")
    products = whole.products.select(range(150))
    data = join(products, whole.queries.filter(set(products["product_id"]).__contains__, input_columns="product_id"))
    expected = evaluate(*tiny, data.products, data.queries, progress=False)["retrieval"]
    tasks = retrieval_tasks(data, "fashion")
    assert tasks[0].dataset["default"]["test"]["corpus"].features["image"] == Image()  # one of each, no lists
    found = scores_by_direction(joint_encoder(st_model), tasks)
    assert_same_recall(found, expected)
    assert len({scores["main_score"] for scores in found.values()}) > 2


def test_a_tie_with_a_wrong_product_counts_against_the_model(catalogue):
    task = retrieval_tasks(catalogue, "shop")[0]
    qrels = {"tied": {"p1": 1}, "clear": {"p1": 1, "p2": 1}, "absent": {"p4": 1}}
    results = {"tied": {"p1": 0.5, "p2": 0.5 - 1e-7, "p3": 0.4}, "clear": {"p1": 0.2, "p2": 0.5, "p3": 0.4}}
    found = task.task_specific_scores({}, qrels, results | {"absent": {"p1": 0.5, "p2": 0.4}}, "test", "default")
    assert found["strict_hit_rate_at_1"] == pytest.approx(1 / 3)
    assert found["strict_hit_rate_at_3"] == found["strict_hit_rate_at_1000"] == pytest.approx(2 / 3)


def test_a_direction_that_no_query_asks_in_has_no_task(catalogue):
    texts = catalogue.queries.select(range(3)).remove_columns("image")
    tasks = retrieval_tasks(join(catalogue.products, texts), "shop")
    assert [task.metadata.category for task in tasks] == ["t2it", "t2i"]
