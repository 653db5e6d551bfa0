"""How long text searches take on a catalogue of a given size: p50 and p95, for one user and for several at once.

Users share the encoder as in the Space.

Example:
    python tests/benchmarks/search_speed.py --model runs/mini --products shop/products-train.parquet --size 10000
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from moon2_dataset import load_products
from moon2_space.catalogue_index import CatalogueIndex
from moon2_space.search import CatalogueSearch
from moon2_space.shared_encoder import SharedEncoder
from moon2_training.encode import Encoder
from moon2_training.saved_encoder import load_encoder


def products_of_size(products: Dataset, size: int) -> Iterator[dict[str, Any]]:
    """As many products as asked for: those given, then the same under new ids, with a number in their titles."""
    for number, product in enumerate(itertools.islice(itertools.cycle(products), size)):
        again = number // len(products)
        yield product | (
            {"product_id": f"{product['product_id']}-{again}", "title": f"{product['title']} {again}"} if again else {}
        )


def seconds_of_searches(search: CatalogueSearch, texts: list[str], users: int) -> np.ndarray:
    """(Q,) seconds that every text waited, with so many users who each ask one after the other."""

    def ask(text: str) -> float:
        begin = time.perf_counter()
        search.by_text(text)
        return time.perf_counter() - begin

    with ThreadPoolExecutor(users) as pool:
        return np.array(list(pool.map(ask, texts)))


def main() -> None:
    """Print the time of indexing and the quantiles of searching, in milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or Hub id of a MOON2.0 encoder")
    parser.add_argument("--products", nargs="+", required=True, help="catalogue: Parquet files, globs or folders")
    parser.add_argument("--size", type=int, default=10_000, help="products to index")
    parser.add_argument("--searches", type=int, default=400, help="titles to search for, of the catalogue")
    parser.add_argument("--ann_from", type=int, help="products beyond which search is approximate")
    arguments = parser.parse_args()
    products = load_products(arguments.products)
    encoder = Encoder(*load_encoder(arguments.model))
    options = {} if arguments.ann_from is None else {"ann_from": arguments.ann_from}
    with tempfile.TemporaryDirectory() as folder:
        index = CatalogueIndex.create(Path(folder) / "index", encoder, **options)
        begin = time.perf_counter()
        index.add(products_of_size(products, arguments.size))
        seconds = time.perf_counter() - begin
        print(f"{len(index):,} products indexed in {seconds:.0f} s; approximate: {index.manifest['ann']}")
        rows = np.random.default_rng(0).integers(len(products), size=arguments.searches)
        texts = [" ".join(products[int(row)]["title"].split()[:4]) or "red" for row in rows]
        search = CatalogueSearch(SharedEncoder(encoder), index)
        seconds_of_searches(search, texts[:20], 1)
        for users in (1, 8):
            p50, p95 = 1000 * np.quantile(seconds_of_searches(search, texts, users), [0.5, 0.95])
            print(f"{users} at once: p50 {p50:.0f} ms, p95 {p95:.0f} ms")


if __name__ == "__main__":
    main()
