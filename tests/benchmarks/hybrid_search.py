"""Recall@10 of text queries by words, by vectors and by both fused, over weights of the fusion.

Example:
    python tests/benchmarks/hybrid_search.py --model runs/mini --products shop/products-validation.parquet \\
        --queries shop/queries-validation.parquet
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from moon2_dataset import ProductQueries, load_product_queries
from moon2_space.catalogue_index import CatalogueIndex
from moon2_space.search import DEPTH, RANK_OFFSET, WORDS_WEIGHT, CatalogueSearch, SearchQuery, fused_score
from moon2_training.evaluate import AnyEncoder
from moon2_training.peer_encoders import load_any_encoder

WEIGHTS = tuple(step / 10 for step in range(11))
OFFSETS = (0, 2, 5, 10, 20, 60)
K = 10


def measure(
    encoder: AnyEncoder, data: ProductQueries, folder: Path, offsets: Iterable[float] = OFFSETS
) -> dict[tuple[float, float], float]:
    """Index the products and search them with every text query.

    Args:
        encoder: of both.
        data: catalogue and queries.
        folder: for the index.
        offsets: rank offsets c to try.

    Returns:
        (words_weight, rank_offset) -> recall@10; a weight of 0 is vectors alone, one of 1 words alone.
    """
    index = CatalogueIndex.create(folder, encoder, fingerprint="of the benchmark")
    index.add(data.products)
    first_row = {query["query_id"]: query for query in reversed(list(data.queries)) if query["text"]}
    asked = list(first_row)
    queries = [SearchQuery(text=first_row[query_id]["text"]) for query_id in asked]
    vectors = CatalogueSearch(encoder, index).encode(queries)  # (Q, D)
    near = [[product for product, _ in found] for found in index.nearest(vectors, DEPTH)]
    words = [[product for product, _ in index.with_words(query.text, DEPTH)] for query in queries]
    right = [data.positives[query_id] for query_id in asked]
    return {
        (weight, offset): recall(fuse(words, near, weight, offset), right) for weight in WEIGHTS for offset in offsets
    }


def fuse(
    words: Sequence[Sequence[str]], near: Sequence[Sequence[str]], weight: float, offset: float
) -> list[list[str]]:
    """The first ten of every query, as `CatalogueSearch` ranks them; of one source alone where it has all weight."""
    if weight in (0.0, 1.0):
        return [list(found[:K]) for found in (words if weight else near)]
    weights, fused = {"words": weight, "vectors": 1 - weight}, []
    for of_words, of_vectors in zip(words, near, strict=True):
        ranks: dict[str, dict[str, int]] = {}
        for name, found in (("vectors", of_vectors), ("words", of_words)):
            for rank, product_id in enumerate(found, start=1):
                ranks.setdefault(product_id, {})[name] = rank
        scores = {product_id: fused_score(of_product, weights, offset) for product_id, of_product in ranks.items()}
        best = sorted(scores.items(), key=lambda hit: (-hit[1], hit[0]))[:K]
        fused.append([product_id for product_id, _ in best])
    return fused


def recall(found: Sequence[Sequence[str]], right: Sequence[Iterable[str]]) -> float:
    """Share of queries with a right product among those found."""
    return float(np.mean([not set(wanted).isdisjoint(hits) for hits, wanted in zip(found, right, strict=True)]))


def main() -> None:
    """Print recall@10 by weight and offset, in percent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or Hub id of an encoder")
    parser.add_argument("--products", nargs="+", required=True, help="catalogue: Parquet files, globs or folders")
    parser.add_argument("--queries", nargs="+", required=True, help="queries: Parquet files, globs or folders")
    arguments = parser.parse_args()
    data = load_product_queries(arguments.products, arguments.queries)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(load_any_encoder(arguments.model), data, Path(folder) / "index")
    print(
        f"Recall@{K} of text queries in {len(data.products):,} products; by words_weight (down), rank_offset (across)"
    )
    print("      " + "".join(f"{offset:>8}" for offset in OFFSETS))
    for weight in WEIGHTS:
        print(f"{weight:>6.1f}" + "".join(f"{100 * results[weight, offset]:>8.2f}" for offset in OFFSETS))
    words, vectors = results[1.0, OFFSETS[0]], results[0.0, OFFSETS[0]]
    chosen = results[WORDS_WEIGHT, RANK_OFFSET]
    print(f"words alone {100 * words:.2f}, vectors alone {100 * vectors:.2f}, fused as by default {100 * chosen:.2f}")


if __name__ == "__main__":
    main()
