"""Approximate search on vectors alone: what LanceDB's indexes find, how fast, and what they cost to make and to keep.

The vectors are drawn around centres, or they are those of a catalogue, which are multiplied: every further product
lies among the neighbours of one of them. On vectors without any order no index finds much. Linux only.

Example:
    python tests/benchmarks/search.py --size 1000000 --indexes IVF_FLAT IVF_SQ --output search.json
    python tests/benchmarks/search.py --vectors shop.npz --model runs/mini --products shop/products-train.parquet \\
        --queries shop/queries-validation.parquet
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import BTree, HnswSq, IvfFlat, IvfPq, IvfRq, IvfSq

from moon2_space.ann_index import DEPTH, EVERY, PARTITION_ROWS, SAME, SAMPLE_RATE, WANTED_RECALL, nearest_of_all
from moon2_space.filters import Filters, filter_columns

NPROBES = (1, 2, 4, 8, 16, 32, 64)
EF = (20, 50, 100, 200, 400)
# name -> LanceDB's configuration, what grows from setting to setting, and the refine factors tried with each
INDEXES: dict[str, tuple[Callable[..., Any], tuple[str, Sequence[int]], Sequence[int | None]]] = {
    "IVF_FLAT": (IvfFlat, ("nprobes", NPROBES), (None,)),
    "IVF_SQ": (IvfSq, ("nprobes", NPROBES), (None, 2)),
    "IVF_RQ": (IvfRq, ("nprobes", NPROBES), (5, 20)),
    "IVF_PQ": (IvfPq, ("nprobes", NPROBES), (5, 20)),
    "IVF_HNSW_SQ": (HnswSq, ("ef", EF), (None, 2)),
}
PREFIXES = (64, 128)  # dimensions that are searched alone, the rest when the candidates are compared again
CANDIDATES = 100  # that are compared again
CENTRES = 2000
CATEGORIES = 100
DIMENSION = 256
NEIGHBOURS = 16
BLOCK = 50_000
MB = 10**6


class Vectors(NamedTuple):
    """What is indexed and what is asked.

    Args:
        products: (N, D) float32, normalised.
        categories: (N,) numbers of categories, which hold what is alike.
        queries: (Q, D) float32, normalised.
    """

    products: np.ndarray
    categories: np.ndarray
    queries: np.ndarray


def normalised(vectors: np.ndarray) -> np.ndarray:
    """(N, D) vectors of length one, float32."""
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def clustered_vectors(size: int, queries: int, dimension: int = DIMENSION) -> Vectors:
    """Vectors around centres, spread along ever fewer of their dimensions; the queries are further such ones."""
    rng = np.random.default_rng(0)
    centres = normalised(rng.standard_normal((CENTRES, dimension)))
    spread = np.arange(1, dimension + 1) ** -1.0
    spread *= 0.7 / np.linalg.norm(spread)
    products = np.empty((size + queries, dimension), dtype=np.float32)
    centre = rng.integers(CENTRES, size=size + queries)
    for start in range(0, len(products), BLOCK):
        of_block = centre[start : start + BLOCK]
        noise = rng.standard_normal((len(of_block), dimension), dtype=np.float32) * spread
        products[start : start + BLOCK] = normalised(centres[of_block] + noise)
    return Vectors(products[:size], centre[:size] * CATEGORIES // CENTRES, products[size:])


def multiplied(vectors: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors, and further ones that lie to them as they lie to their neighbours, up to a size.

    Args:
        vectors: (N, D) float32, normalised.
        size: how many; of fewer than N the first.

    Returns:
        (size, D) float32, normalised, and the row (size,) that each comes from.
    """
    rng = np.random.default_rng(0)
    source = np.concatenate([np.arange(len(vectors)), rng.integers(len(vectors), size=max(0, size - len(vectors)))])
    source = source[:size]
    products = np.empty((size, vectors.shape[1]), dtype=np.float32)
    near = np.empty((len(vectors), NEIGHBOURS), dtype=np.int64)
    for start in range(0, len(vectors), 1024):
        similar = vectors[start : start + 1024] @ vectors.T
        similar[np.arange(len(similar)), start + np.arange(len(similar))] = -np.inf  # not itself
        near[start : start + 1024] = np.argpartition(-similar, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    for start in range(0, size, BLOCK):
        row = source[start : start + BLOCK]
        drawn = vectors[row].copy()
        for neighbour in near[row].T if start + BLOCK > len(vectors) else ():
            weight = rng.standard_normal((len(row), 1), dtype=np.float32) / np.sqrt(NEIGHBOURS)
            drawn += weight * (vectors[neighbour] - vectors[row])
        products[start : start + BLOCK] = normalised(drawn)
    kept = min(size, len(vectors))
    products[:kept] = vectors[:kept]
    return products, source


def encode_vectors(path: Path, model: str, products: list[str], queries: list[str]) -> None:
    """Encode a catalogue and queries for it, by text and by image alone and by both, and keep their vectors."""
    from moon2_dataset import load_product_queries
    from moon2_training.encode import Encoder
    from moon2_training.items import ProductItems, QueryItems
    from moon2_training.saved_encoder import load_encoder

    encoder, data = Encoder(*load_encoder(model)), load_product_queries(products, queries)
    asked = encoder.encode_views(QueryItems(data.queries, range(len(data.queries))))
    views = [asked.text[asked.has_text], asked.image[asked.has_image], asked.multimodal]
    paths = ["/".join(path) for path in data.products["category_path"]]
    np.savez(
        path,
        products=encoder.encode(ProductItems(data.products)),
        categories=np.unique(paths, return_inverse=True)[1],
        queries=np.concatenate(views),
    )


def catalogue_vectors(path: Path, size: int, queries: int) -> Vectors:
    """The vectors of a file that `encode_vectors` wrote, multiplied, and some of its queries."""
    with np.load(path) as kept:
        products, source = multiplied(kept["products"], size)
        asked = kept["queries"]
        rows = np.random.default_rng(0).permutation(len(asked))[:queries]
        return Vectors(products, kept["categories"][source], asked[rows])


def make_table(folder: Path, vectors: Vectors, session: lancedb.Session) -> lancedb.table.Table:
    """A table with ids, categories as the index has them, the vectors, and the first dimensions of each."""
    dimension = vectors.products.shape[1]
    widths = {"vector": dimension, **{f"first_{width}": width for width in PREFIXES if width < dimension}}
    text = [("product_id", pa.string()), ("category_key", pa.string())]
    schema = pa.schema([*text, *((name, pa.list_(pa.float32(), width)) for name, width in widths.items())])
    table = lancedb.connect(folder, session=session).create_table("products", schema=schema)
    for start in range(0, len(vectors.products), BLOCK):
        table.add(rows_of(vectors, start, min(start + BLOCK, len(vectors.products)), schema))
    table.optimize(cleanup_older_than=timedelta(milliseconds=1))
    table.create_index("category_key", config=BTree())
    return table


def rows_of(vectors: Vectors, start: int, end: int, schema: pa.Schema) -> pa.Table:
    """Some products as rows of the table."""
    keys = [category_key(category) for category in vectors.categories[start:end].tolist()]
    columns: list[Any] = [[f"p{row}" for row in range(start, end)], keys]
    for field in list(schema)[2:]:
        width = field.type.list_size
        first = vectors.products[start:end, :width]
        first = first if width == vectors.products.shape[1] else normalised(first)
        columns.append(pa.FixedSizeListArray.from_arrays(pa.array(first.reshape(-1)), type=field.type))
    return pa.table(columns, schema=schema)


def category_key(category: int) -> str:
    """What the index keeps of a product's category."""
    return filter_columns({"category_path": [f"category {category}"], "attributes": []})["category_key"]


def search(
    table: lancedb.table.Table,
    vector: np.ndarray,
    setting: Mapping[str, int | None],
    column: str = "vector",
    filters: Filters | None = None,
) -> pa.Table:
    """The nearest products as an index finds them: product_id, _distance."""
    query = table.search(vector, vector_column_name=column).distance_type("cosine").limit(DEPTH)
    query = query.select(["product_id", "_distance"])
    for name, value in setting.items():
        if value is not None:
            query = getattr(query, name)(value)
    return (query if filters is None else query.where(filters.expression())).to_arrow()


def search_prefix(
    table: lancedb.table.Table, vector: np.ndarray, setting: Mapping[str, int | None], width: int, as_bytes: bool
) -> pa.Table:
    """The nearest by the first dimensions, compared again by all of them, as they are or rounded to a byte each."""
    query = table.search(normalised(vector[:width]), vector_column_name=f"first_{width}").distance_type("cosine")
    query = query.limit(CANDIDATES).nprobes(setting["nprobes"]).select(["product_id", "vector", "_distance"])
    found = query.to_arrow()
    rows = found["vector"].combine_chunks().flatten().to_numpy().reshape(len(found), -1)
    if as_bytes:
        scale = np.abs(rows).max(axis=1, keepdims=True) / 127
        rows = np.round(rows / scale).astype(np.int8) * scale
    best = np.argsort(-(rows @ vector), kind="stable")[:DEPTH]
    distances = pa.array((1 - rows[best] @ vector).astype(np.float32))
    return pa.table({"product_id": found["product_id"].take(best), "_distance": distances})


def measure(ask: Callable[[int], pa.Table], vectors: Vectors, nearest: np.ndarray) -> dict[str, float]:
    """Ask all queries, one after the other, a few of them once before.

    Args:
        ask: row of a query -> product_id of what is found.
        vectors: asked and searched.
        nearest: (Q, 10) similarities of the nearest of all, ascending.

    Returns:
        {"recall@10", "p50 ms", "p95 ms", "CPU ms": of all threads, a query}.
    """
    for row in range(min(20, len(nearest))):
        ask(row)
    seconds, shares, used = [], [], 0.0
    for row, of_all in enumerate(nearest):
        begin, cpu = time.perf_counter(), time.process_time()
        found = ask(row)
        seconds.append(time.perf_counter() - begin)
        used += time.process_time() - cpu
        of_all = of_all[np.isfinite(of_all)]
        rows = [int(product_id[1:]) for product_id in found["product_id"].to_pylist()]
        similarities = vectors.products[rows] @ vectors.queries[row]
        shares.append(np.count_nonzero(similarities >= of_all[0] - SAME) / len(of_all))
    p50, p95 = 1000 * np.quantile(seconds, [0.5, 0.95])
    cpu = 1000 * used / len(nearest)
    return {"recall@10": float(np.mean(shares)), "p50 ms": float(p50), "p95 ms": float(p95), "CPU ms": cpu}


class Bench:
    """A table of vectors, what is nearest in it, and the rows of figures measured so far.

    Args:
        folder: for the table.
        vectors: to index and to ask.
        partition_rows: products of a partition.
    """

    def __init__(self, folder: Path, vectors: Vectors, partition_rows: int = PARTITION_ROWS) -> None:
        self.vectors, self.partition_rows = vectors, partition_rows
        self.folder = folder
        self.session = lancedb.Session()
        self.table = make_table(folder, vectors, self.session)
        self.nearest = nearest_of_all(self.table, "vector", vectors.queries)
        self.builds: list[dict[str, Any]] = []
        self.searches: list[dict[str, Any]] = []

    def build(self, kind: str, column: str = "vector") -> None:
        """Make an index of a column and note what that took, apart from searching."""
        options: dict[str, Any] = {"distance_type": "cosine", "sample_rate": SAMPLE_RATE}
        options |= {"num_partitions": 1} if "HNSW" in kind else {"target_partition_size": self.partition_rows}
        before = _memory(peak=False)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        begin, cpu = time.perf_counter(), time.process_time()
        self.table.create_index(column, config=INDEXES[kind][0](**options), replace=True)
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
        self.table.optimize(cleanup_older_than=timedelta(milliseconds=1))
        kept = next(index.size_bytes for index in self.table.list_indices() if index.columns == [column])
        self.builds.append(
            {"index": kind, "column": column, "build s": seconds, "CPU s": cpu,
             "memory MB": max(0.0, _memory(peak=True) - before), "bytes/product": kept / len(self.vectors.products)}
        )  # fmt: skip

    def try_settings(self, kind: str) -> dict[str, int | None]:
        """Search with settings that look ever further, with every refinement until enough is found.

        Returns:
            Of the settings that find enough, the one that takes the least; where none does, the one that finds most.
        """
        _, (name, values), factors = INDEXES[kind]
        tried: list[tuple[dict[str, int | None], dict[str, Any]]] = []
        for factor in factors:
            for value in values:
                setting = {name: value, "refine_factor": factor}
                figures = measure(lambda row, s=setting: self._ask(row, s), self.vectors, self.nearest)
                self._note(kind, setting, figures)
                tried.append((setting, figures))
                if figures["recall@10"] >= WANTED_RECALL:
                    break
        enough = [pair for pair in tried if pair[1]["recall@10"] >= WANTED_RECALL]
        if enough:
            return min(enough, key=lambda pair: pair[1]["CPU ms"])[0]
        return max(tried, key=lambda pair: pair[1]["recall@10"])[0]

    def filtered(self, kind: str, setting: Mapping[str, int | None]) -> None:
        """Search within the category of the nearest product, in the partitions of a setting and in all."""
        first = [int(self._ask(row, setting)["product_id"][0].as_py()[1:]) for row in range(len(self.nearest))]
        categories = self.vectors.categories[first]
        filters = [Filters(category=[f"category {category}"]) for category in categories.tolist()]
        nearest = np.full_like(self.nearest, -np.inf)
        for category in np.unique(categories):
            rows = np.flatnonzero(categories == category)
            among = self.vectors.products[self.vectors.categories == category]
            found = np.sort(self.vectors.queries[rows] @ among.T, axis=1)[:, -DEPTH:]
            nearest[rows, -found.shape[1] :] = found
        settings = [setting, {**setting, "nprobes": EVERY}] if "nprobes" in setting else [setting]
        for tried in settings:
            figures = measure(
                lambda row, s=tried: search(self.table, self.vectors.queries[row], s, filters=filters[row]),
                self.vectors,
                nearest,
            )
            self._note(f"{kind}, one category", tried, figures)

    def asynchronous(self, kind: str, setting: Mapping[str, int | None]) -> None:
        """Search with LanceDB's asynchronous client, which does less around every query."""
        loop = asyncio.new_event_loop()
        connection = loop.run_until_complete(lancedb.connect_async(self.folder, session=self.session))
        table = loop.run_until_complete(connection.open_table("products"))

        def ask(row: int) -> pa.Table:
            query = table.query().nearest_to(self.vectors.queries[row]).column("vector").distance_type("cosine")
            query = query.limit(DEPTH).select(["product_id", "_distance"])
            for name, value in setting.items():
                if value is not None:
                    query = getattr(query, name)(value)
            return loop.run_until_complete(query.to_arrow())

        self._note(f"{kind}, asynchronous client", setting, measure(ask, self.vectors, self.nearest))
        connection.close()
        loop.close()

    def prefixes(self, kind: str = "IVF_SQ") -> None:
        """Search the first dimensions alone, and compare what is found again by all."""
        for field in list(self.table.schema)[3:]:
            width = field.type.list_size
            self.build(kind, field.name)
            for nprobes in NPROBES:
                setting = {"nprobes": nprobes}
                figures = self._prefix(setting, width, as_bytes=False)
                self._note(f"{kind} of the first {width}, {CANDIDATES} again by vectors", setting, figures)
                if figures["recall@10"] >= WANTED_RECALL:
                    break
            figures = self._prefix(setting, width, as_bytes=True)
            self._note(f"{kind} of the first {width}, {CANDIDATES} again by bytes", setting, figures)

    def additions(self, kind: str, setting: Mapping[str, int | None], share: float = 0.01) -> None:
        """Write a share of the products again under their ids, after the index was made, and search before and after
        the index takes them in."""
        count = max(1, round(share * len(self.vectors.products)))
        self.table.delete(f"product_id IN ({', '.join(repr(f'p{row}') for row in range(count))})")
        self.table.add(rows_of(self.vectors, 0, count, self.table.schema))
        figures = measure(lambda row: self._ask(row, setting), self.vectors, self.nearest)
        self._note(f"{kind}, {share:.0%} not indexed", setting, figures)
        begin = time.perf_counter()
        self.table.optimize()
        seconds = time.perf_counter() - begin
        figures = measure(lambda row: self._ask(row, setting), self.vectors, self.nearest)
        self._note(f"{kind}, {share:.0%} taken in, in {seconds:.1f} s", setting, figures)

    def _ask(self, row: int, setting: Mapping[str, int | None]) -> pa.Table:
        return search(self.table, self.vectors.queries[row], setting)

    def _prefix(self, setting: Mapping[str, int | None], width: int, as_bytes: bool) -> dict[str, float]:
        def ask(row: int) -> pa.Table:
            return search_prefix(self.table, self.vectors.queries[row], setting, width, as_bytes)

        return measure(ask, self.vectors, self.nearest)

    def _note(self, name: str, setting: Mapping[str, int | None], figures: Mapping[str, float]) -> None:
        told = ", ".join(
            f"{key} {'all' if value == EVERY else value}" for key, value in setting.items() if value is not None
        )
        self.searches.append({"index": name, "setting": told, **figures})
        print(f"{name}, {told}: " + ", ".join(f"{key} {value:.3f}" for key, value in figures.items()), flush=True)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of figures as a Markdown table."""
    digits = {"recall@10": 3, "bytes/product": 0, "memory MB": 0}
    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    for row in rows:
        cells = [f"{v:,.{digits.get(name, 1)}f}" if isinstance(v, float) else str(v) for name, v in row.items()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def run(bench: Bench, kinds: Iterable[str], with_prefixes: bool = True) -> dict[str, Any]:
    """Make and search all indexes; filters and additions are tried on each, the first dimensions at the end."""
    for kind in kinds:
        bench.build(kind)
        setting = bench.try_settings(kind)
        bench.asynchronous(kind, setting)
        bench.filtered(kind, setting)
        bench.additions(kind, setting)
    if with_prefixes:
        bench.prefixes()
    return {"products": len(bench.vectors.products), "dimension": bench.vectors.products.shape[1],
            "queries": len(bench.vectors.queries), "cached MB": bench.session.size_bytes / MB,
            "builds": bench.builds, "searches": bench.searches}  # fmt: skip


def _memory(peak: bool) -> float:
    """Memory of this process in MB, now or at the most."""
    name = "VmHWM:" if peak else "VmRSS:"
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024 / MB


def main() -> None:
    """Print two tables, of making the indexes and of searching them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=100_000, help="products")
    parser.add_argument("--searches", type=int, default=300, help="queries")
    parser.add_argument("--indexes", nargs="+", choices=INDEXES, default=["IVF_FLAT", "IVF_SQ", "IVF_RQ"])
    parser.add_argument("--partition_rows", type=int, default=PARTITION_ROWS, help="products of a partition")
    parser.add_argument("--no_prefixes", action="store_true", help="leave out the first dimensions alone")
    parser.add_argument("--vectors", type=Path, help="file of encoded vectors (.npz), made if it is not there")
    parser.add_argument("--model", help="folder or Hub id of the encoder that makes it")
    parser.add_argument("--products", nargs="+", help="catalogue: Parquet files, globs or folders")
    parser.add_argument("--queries", nargs="+", help="queries: Parquet files, globs or folders")
    parser.add_argument("--work", help="folder for the table; a temporary one by default")
    parser.add_argument("--output", type=Path, help="JSON file for all figures")
    arguments = parser.parse_args()
    if arguments.vectors and not arguments.vectors.exists():
        encode_vectors(arguments.vectors, arguments.model, arguments.products, arguments.queries)
    if arguments.vectors:
        vectors = catalogue_vectors(arguments.vectors, arguments.size, arguments.searches)
    else:
        vectors = clustered_vectors(arguments.size, arguments.searches)
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        bench = Bench(Path(folder), vectors, arguments.partition_rows)
        results = run(bench, arguments.indexes, not arguments.no_prefixes)
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"\n{results['products']:,} products of {results['dimension']} dimensions, {results['queries']} queries\n")
    print(markdown(results["builds"]), "\n", markdown(results["searches"]), sep="\n")


if __name__ == "__main__":
    main()
