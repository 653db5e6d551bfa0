"""Reads products and queries from Parquet files and joins them for training and evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset

from .data_files import Paths, split_files
from .file_cache import cache_path, make_once
from .rows import Names, SchemaError
from .schema import (
    conform_products,
    conform_queries,
    normalise_title,
    plain_type,
    validate_products,
    validate_queries,
)

Conform = Callable[[pa.Table, str], pa.Table]

_CACHE_FORMAT = 1
_BATCH_ROWS = 1000


@dataclass(frozen=True, eq=False)
class ProductQueries:
    """A catalogue and the queries that ask for its products; `len()` is the number of query rows.

    Attributes:
        products: N products, in the form `validate_products` returns.
        queries: Q query rows, in the form `validate_queries` returns.
        product_index: product_id -> product row.
        positives: query_id -> {product_id: grade}, with grade 1.0 where the queries have none.
        positive_row: (Q,) int64, the product row that each query row points at.
        leaf: (N,) int64, one number for each distinct category path; products without a path share one.
        title_key: (N,) int64, equal for products with the same normalised title; a product without one has its own.
        product_key: (N,) int64, one for each product_id. Keys are the same in every process, and never 0.
    """

    products: Dataset
    queries: Dataset
    product_index: dict[str, int]
    positives: dict[str, dict[str, float]]
    positive_row: np.ndarray
    leaf: np.ndarray
    title_key: np.ndarray
    product_key: np.ndarray

    def __len__(self) -> int:
        return len(self.queries)


def load_products(path: Paths, split: str | None = None) -> Dataset:
    """Read and check a catalogue.

    The table is kept as an Arrow file in the cache of `datasets` (HF_DATASETS_CACHE) and memory-mapped from there;
    nothing is written beside the source. Images stay undecoded: {"bytes", "path"}.

    Args:
        path: a Parquet file, a glob, a folder, or a list of them. Of a folder, the files named products*.parquet are
            read, or every Parquet file where none has such a name.
        split: of folders; without it a folder may hold one split alone. Files and globs are read as they stand.

    Returns:
        The products of all files, in the form `validate_products` returns.

    Raises:
        FileNotFoundError: no Parquet file there.
        ValueError: a folder holds several splits, or not this one.
        SchemaError: naming file, row and way out.
    """
    products, names = _read(path, "products", conform_products, split)
    return validate_products(products, names)


def load_queries(path: Paths, split: str | None = None) -> Dataset:
    """Read and check queries, as `load_products` does a catalogue; of a folder, the files named queries*.parquet.

    Args:
        path: a Parquet file, a glob, a folder, or a list of them.
        split: as in `load_products`.

    Returns:
        The query rows of all files, in the form `validate_queries` returns.

    Raises:
        FileNotFoundError: no Parquet file there.
        ValueError: a folder holds several splits, or not this one.
        SchemaError: naming file, row and way out.
    """
    queries, names = _read(path, "queries", conform_queries, split)
    return validate_queries(queries, name=names)


def load_product_queries(products: Paths, queries: Paths, split: str | None = None) -> ProductQueries:
    """Read a catalogue and its queries and join them; messages name the files, where `join` knows only the tables.

    Args:
        products: where the catalogue is, as in `load_products`.
        queries: where the queries are, as in `load_queries`.
        split: of folders, as in `load_products`; "train" takes every split to learn from.

    Returns:
        Both tables, joined.

    Raises:
        FileNotFoundError: no Parquet file there.
        ValueError: a folder holds several splits, or not this one.
        SchemaError: naming file, row and way out.
    """
    product_table, product_name = _read(products, "products", conform_products, split)
    query_table, query_name = _read(queries, "queries", conform_queries, split)
    return join(product_table, query_table, product_name, query_name)


def join(
    products: Dataset, queries: Dataset, product_name: Names = "products", query_name: Names = "queries"
) -> ProductQueries:
    """Check a catalogue and its queries and join them.

    Args:
        products: a products table.
        queries: a queries table; every product_id in it must be in the catalogue.
        product_name: what messages call the products table, as in `validate_products`.
        query_name: what messages call the queries table.

    Returns:
        Both tables, joined.

    Raises:
        SchemaError: naming the row and the way out.
    """
    products = validate_products(products, product_name)
    queries = validate_queries(queries, products, query_name)

    catalogue = products.select_columns(["product_id", "title", "category_path"]).with_format("arrow")[:]
    ids, titles = catalogue["product_id"].to_pylist(), catalogue["title"].to_pylist()
    paths = pc.binary_join(catalogue["category_path"], "\x1f")
    product_index = {product_id: row for row, product_id in enumerate(ids)}

    graded = "grade" in queries.column_names
    asked = queries.select_columns(["query_id", "product_id"] + ["grade"] * graded).with_format("arrow")[:]
    positive_ids = asked["product_id"].to_pylist()
    grades = asked["grade"].to_pylist() if graded else [1.0] * len(queries)
    positives: dict[str, dict[str, float]] = {}
    for query_id, product_id, grade in zip(asked["query_id"].to_pylist(), positive_ids, grades, strict=True):
        positives.setdefault(query_id, {})[product_id] = grade

    return ProductQueries(
        products=products,
        queries=queries,
        product_index=product_index,
        positives=positives,
        positive_row=np.array([product_index[product_id] for product_id in positive_ids], dtype=np.int64),
        leaf=pc.index_in(paths, value_set=pc.unique(paths)).to_numpy().astype(np.int64),
        title_key=np.array([_title_key(title, product_id) for title, product_id in zip(titles, ids, strict=True)]),
        product_key=np.array([_key("product", product_id) for product_id in ids]),
    )


def _title_key(title: str, product_id: str) -> int:
    normalised = normalise_title(title)
    return _key("title", normalised) if normalised else _key("untitled", product_id)


def _key(kind: str, text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=kind.encode()).digest()
    return int.from_bytes(digest, "little", signed=True) or 1


def _read(path: Paths, kind: str, conform: Conform, split: str | None) -> tuple[Dataset, list[tuple[str, int]]]:
    """The conformed rows of all files, and (name, number of rows) of each file."""
    files = split_files(path, kind, split)
    same_name = len({file.name for file in files}) < len(files)
    labels = [str(file) if same_name else file.name for file in files]
    parts = [Dataset.from_file(str(_cached(file, label, conform))) for file, label in zip(files, labels, strict=True)]
    for part, label in zip(parts, labels, strict=True):
        for column in set(part.features) & set(parts[0].features):
            if part.features[column] != parts[0].features[column]:
                raise SchemaError(
                    f"{label}: column {column} is {part.features[column]}, in {labels[0]} "
                    f"{parts[0].features[column]}; give it one type"
                )
    names = [(label, len(part)) for label, part in zip(labels, parts, strict=True)]
    return datasets.concatenate_datasets(parts), names


def _cached(file: Path, label: str, conform: Conform) -> Path:
    """The conformed rows of a Parquet file as an Arrow file, written once for each state of the source."""

    def write(target: Path) -> None:
        tables = _conformed(file.resolve(), label, conform)
        first = next(tables)
        with pa.ipc.new_stream(target, first.schema) as stream:
            stream.write_table(first)
            for table in tables:
                stream.write_table(table)

    return make_once(cache_path(file, f"{_CACHE_FORMAT} {conform.__name__}", ".arrow"), write)


def _conformed(source: Path, label: str, conform: Conform) -> Iterator[pa.Table]:
    try:
        parquet = pq.ParquetFile(source, memory_map=True, page_checksum_verification=True)
        kept = pa.schema([(field.name, plain_type(field.type)) for field in parquet.schema_arrow])
        yield conform(parquet.schema_arrow.empty_table().cast(kept), label)
        for batch in parquet.iter_batches(_BATCH_ROWS):
            batch.validate(full=True)  # texts that are none would stop whoever reads them
            yield conform(pa.Table.from_batches([batch]).cast(kept), label)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise SchemaError(f"{label}: cannot be read as Parquet ({error}); write the file again") from error
