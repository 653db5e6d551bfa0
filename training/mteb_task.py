"""A catalogue and its queries as retrieval tasks of mteb, which scores them as `moon2 evaluate` does."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, Image, List, Value
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import SentenceTransformerEncoderWrapper
from sentence_transformers import SentenceTransformer

from modeling_moon2.processing_moon2 import text_parts
from moon2_dataset import ProductQueries

from .items import IMAGES_PER_PRODUCT
from .retrieval import DIRECTIONS, TIE, Direction, Relevance

COLUMNS = {"text": ["text"], "image": ["image"], "multimodal": ["text", "image"]}
CATEGORY = {"text": "t", "image": "i", "multimodal": "it"}


class ProductRetrieval(AbsTaskRetrieval):
    """One retrieval direction; see `retrieval_tasks`.

    Args:
        metadata: what mteb knows of the task.
        corpus: `id` and the columns of the candidates' view; `image` is one picture or a list of them.
        queries: `id` and the columns of the queries' view.
        relevant_docs: query id -> {product id: grade}, whole grades from 1.
    """

    def __init__(
        self, metadata: TaskMetadata, corpus: Dataset, queries: Dataset, relevant_docs: Mapping[str, Mapping[str, int]]
    ) -> None:
        self.metadata = metadata  # read by the base class
        super().__init__()
        split = {"corpus": corpus, "queries": queries, "relevant_docs": relevant_docs, "top_ranked": None}
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True

    def task_specific_scores(
        self,
        scores: Mapping[str, Mapping[str, float]],
        qrels: Mapping[str, Mapping[str, int]],
        results: Mapping[str, Mapping[str, float]],
        hf_split: str,
        hf_subset: str,
    ) -> dict[str, float]:
        """The hit rates of mteb, `strict_hit_rate_at_1` and so on, with ties counted against the model.

        Args:
            scores: mteb's own, by query id.
            qrels: the task's `relevant_docs`.
            results: query id -> {product id: score}, of the best products.
            hf_split: not read.
            hf_subset: not read.
        """
        ranks = []
        for query_id, right in qrels.items():
            found = results[query_id]
            best = max((score for product_id, score in found.items() if product_id in right), default=-math.inf)
            wrong = (score for product_id, score in found.items() if product_id not in right)
            ranks.append(1 + sum(score >= best - TIE for score in wrong) if best > -math.inf else math.inf)
        return {f"strict_hit_rate_at_{k}": float(np.mean(np.array(ranks) <= k)) for k in self.k_values}


def joint_encoder(model: SentenceTransformer) -> SentenceTransformerEncoderWrapper:
    """Wrap a model as mteb does, and tell mteb that it takes text, images and both.

    mteb takes every sentence-transformers model which is not in its own list for one of texts. Given the bare model
    it refuses the directions that ask by image, and of products with text and image it leaves out the image, with no
    more than a warning in its log. With the modalities declared, its wrapper hands text and images of an item to
    `encode` together, as {"text", "image"}: they are encoded jointly, not added.

    Args:
        model: of a folder or repository that `save_hub_folder` wrote, or another that encodes {"text", "image"}.
    """
    encoder = SentenceTransformerEncoderWrapper(model)
    encoder.mteb_model_meta = encoder.mteb_model_meta.model_copy(update={"modalities": ["text", "image"]})
    return encoder


def retrieval_tasks(data: ProductQueries, name: str) -> list[ProductRetrieval]:
    """Make one task for each direction in which `evaluate_retrieval` finds a query to score.

    Queries, candidates and right products of a direction are those of `evaluate_retrieval`: candidates are the
    products that have the view, rows with one query_id are one query with several right products, and where the
    candidates are texts, every product with the title of a right one is right. Four pictures of a product count.

    The Recall@k of `moon2 evaluate` asks whether any right product is among the first k. mteb calls that
    `hit_rate_at_k`, and `hit_rate_at_10` is the main score. Its `recall_at_k` is the share of right products found,
    which is less where a query has several, so always in i→t of a catalogue with repeated titles.

    What is left of a difference:

    - Products that look the same tie. `moon2 evaluate` ranks a tied wrong product first, mteb by the last bit and the
      id. `strict_hit_rate_at_k`, beside mteb's scores, is the former.
    - mteb reads whole grades, so fractions are rounded up. Only nDCG sees it.
    - mteb decodes pictures at full size, `moon2 evaluate` a JPEG of many times the model's pixel budget at a fraction
      of it, and their embeddings differ slightly.

    Where every product has exactly one picture, the tasks hold plain pictures and any image model of mteb can run on
    them; otherwise lists of pictures, which need a model that takes them, as this project's do.

    Args:
        data: a catalogue and its queries.
        name: of the data; the tasks are called name-t2mm and so on, by the direction's key.

    Example:

    ```python
    >>> data = load_product_queries("shop/products.parquet", "shop/queries.parquet")
    >>> model = joint_encoder(SentenceTransformer("my-model", trust_remote_code=True))
    >>> # the cache knows tasks and models by name only: it would return old results after either has changed
    >>> results = mteb.evaluate(model, retrieval_tasks(data, "shop"), cache=None)
    >>> {result.task_name: result.get_score() for result in results.task_results}
    {'shop-t2mm': 0.87544, 'shop-i2mm': 0.96842, 'shop-mm2mm': 0.99123, 'shop-t2i': 0.53509, 'shop-i2t': 0.57719}
    ```
    """
    rows, relevance = Relevance.from_queries(data)
    table = _arrow(data.queries, ["text", "image"])
    has_text, has_image = _has_text(table["text"])[rows], table["image"].is_valid().to_numpy()[rows]
    has_query_view = {"text": has_text, "image": has_image, "multimodal": has_text & has_image}
    queries = data.queries.select_columns(["query_id", "text", "image"]).rename_column("query_id", "id")
    queries = queries.cast_column("image", Image()).select(rows)

    table = _arrow(data.products, ["title", "images"])
    num_images = pc.list_value_length(table["images"]).to_numpy()
    has_text, has_image = _has_text(table["title"]), num_images > 0
    has_candidate_view = {"text": has_text, "image": has_image, "multimodal": has_text | has_image}
    products = _products(data.products, plain=bool((num_images == 1).all()))

    tasks = []
    for direction in DIRECTIONS:
        asked, pool = has_query_view[direction.query_view], has_candidate_view[direction.candidate_view]
        served = asked & (np.bincount(relevance.query_of_pair[pool[relevance.rows]], minlength=len(asked)) > 0)
        if not served.any():
            continue
        right = relevance.select(served, pool)
        if direction.candidate_view == "text":
            right = right.with_same_titles(data.title_key[pool])
        corpus = products.select(np.flatnonzero(pool)).select_columns(["id", *COLUMNS[direction.candidate_view]])
        posed = queries.select(np.flatnonzero(served)).select_columns(["id", *COLUMNS[direction.query_view]])
        relevant_docs = _relevant_docs(right, posed["id"][:], corpus["id"][:])
        tasks.append(ProductRetrieval(_metadata(direction, name), corpus, posed, relevant_docs))
    return tasks


def _arrow(table: Dataset, columns: list[str]) -> pa.Table:
    return table.select_columns(columns).with_format("arrow")[:]


def _has_text(texts: pa.ChunkedArray) -> np.ndarray:
    return np.array([bool(text_parts(text)) for text in texts.to_pylist()])


def _products(products: Dataset, plain: bool) -> Dataset:
    """Columns id, text and image: the only picture, or a list of up to four."""
    columns = ["product_id", "title", "images"]
    kind = Image() if plain else List(Image())  # in a list, because mteb's wrapper would hand on a None
    return (
        products.select_columns(columns)
        .map(
            lambda images: {"image": images[0] if plain else images[:IMAGES_PER_PRODUCT]},
            input_columns="images",
            remove_columns="images",
            features=Features({"product_id": Value("string"), "title": Value("string"), "image": kind}),
        )
        .rename_columns({"product_id": "id", "title": "text"})
    )


def _relevant_docs(relevance: Relevance, query_ids: list[str], product_ids: list[str]) -> dict[str, dict[str, int]]:
    relevant_docs: dict[str, dict[str, int]] = {query_id: {} for query_id in query_ids}
    for query, row, grade in zip(relevance.query_of_pair, relevance.rows, relevance.grades, strict=True):
        relevant_docs[query_ids[query]][product_ids[row]] = math.ceil(grade)
    return relevant_docs


def _metadata(direction: Direction, name: str) -> TaskMetadata:
    views = (direction.query_view, direction.candidate_view)
    return TaskMetadata(
        name=f"{name}-{direction.key}",
        description=f"Find the products of {name} that shoppers meant: {direction.name}.",
        type="Any2AnyRetrieval",
        category="2".join(CATEGORY[view] for view in views),
        modalities=["text", "image"],
        eval_langs=["und"],
        main_score="hit_rate_at_10",
        dataset={"path": name, "revision": "local"},  # in memory, never looked up
        domains=["E-commerce"],
    )
