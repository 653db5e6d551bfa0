"""What the files of products and queries hold: their columns, and counts over their rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Features

from .data_files import Splits
from .rows import SchemaError
from .schema import (
    OPTIONAL_PRODUCT_FEATURES,
    OPTIONAL_QUERY_FEATURES,
    PRODUCT_FEATURES,
    QUERY_FEATURES,
    conform_products,
    conform_queries,
    plain_type,
)

SCHEMAS = {
    "products": (conform_products, Features(PRODUCT_FEATURES | OPTIONAL_PRODUCT_FEATURES)),
    "queries": (conform_queries, Features(QUERY_FEATURES | OPTIONAL_QUERY_FEATURES)),
}
MOST_LABELS = 12  # a text column outside the schema with more distinct values is not counted by value

_BATCH_ROWS = 4096


@dataclass
class ProductStatistics:
    """Counts over the products of one split.

    Attributes:
        products: rows.
        images: of all products together.
        with_image, with_title, with_description, with_category: products that have it.
        categories: number of distinct categories at every level, coarse to fine.
        leaf_categories: number of distinct category paths.
        attributes: name -> products that carry it.
        enriched_titles: products with an enriched title that differs from their title.
        expanded_images: of all products together.
        core_regions: products with a box.
        labels: for columns outside the schema that hold a few values, value -> rows; of a column with a list of
            {name, value} for each "column: name".
    """

    products: int = 0
    images: int = 0
    with_image: int = 0
    with_title: int = 0
    with_description: int = 0
    with_category: int = 0
    categories: list[int] = field(default_factory=list)
    leaf_categories: int = 0
    attributes: Counter[str] = field(default_factory=Counter)
    enriched_titles: int = 0
    expanded_images: int = 0
    core_regions: int = 0
    labels: dict[str, Counter[str]] = field(default_factory=dict)


@dataclass
class QueryStatistics:
    """Counts over the queries of one split.

    Attributes:
        rows: one for each right product of a query.
        queries: distinct query_id.
        several: queries with more than one right product.
        most: right products of the query that has most.
        text_only, photo_only, both: queries by what they hold; as in an evaluation, their first row counts.
        negatives: of all rows together.
        with_negatives: rows that have some.
        grades: smallest and largest, None if there is no such column.
        labels: as in `ProductStatistics`.
    """

    rows: int = 0
    queries: int = 0
    several: int = 0
    most: int = 0
    text_only: int = 0
    photo_only: int = 0
    both: int = 0
    negatives: int = 0
    with_negatives: int = 0
    grades: tuple[float, float] | None = None
    labels: dict[str, Counter[str]] = field(default_factory=dict)


def table_features(kind: str, splits: Splits) -> tuple[Features, dict[str, list[str]]]:
    """Read which columns the files of a table have; their rows are not read.

    Args:
        kind: "products" or "queries".
        splits: split -> its files.

    Returns:
        The features of all columns, those of the schema first; and by column the splits that have it.

    Raises:
        SchemaError: naming the file that is no Parquet, lacks a column, or has a column of another type.
    """
    conform, known = SCHEMAS[kind]
    features: dict[str, object] = {}
    present: dict[str, list[str]] = {}
    for split, files in splits.items():
        for file in files:
            schema = _schema(file)
            plain = pa.schema([(column.name, plain_type(column.type)) for column in schema])
            conform(plain.empty_table(), file.name)
            try:
                found = {
                    name: known.get(name, feature) for name, feature in Features.from_arrow_schema(schema).items()
                }
            except ValueError as error:
                raise SchemaError(f"{file.name}: {error}; leave that column out") from error
            for name, feature in found.items():
                if features.setdefault(name, feature) != feature:
                    raise SchemaError(f"{file.name}: column {name} is {feature}, elsewhere {features[name]}")
                if split not in present.setdefault(name, []):
                    present[name].append(split)
    order = [name for name in known if name in features]
    return Features({name: features[name] for name in dict.fromkeys([*order, *features])}), present


def num_bytes(files: Sequence[Path]) -> tuple[int, int]:
    """Size of the rows of Parquet files before compression, and of the files."""
    groups = [pq.read_metadata(file) for file in files]
    rows = sum(meta.row_group(group).total_byte_size for meta in groups for group in range(meta.num_row_groups))
    return rows, sum(file.stat().st_size for file in files)


def product_statistics(files: Sequence[Path]) -> ProductStatistics:
    """Count over the products of Parquet files, batch by batch; pictures are not read.

    What is kept in memory grows with the number of distinct categories and attribute names, not with the rows.

    Args:
        files: of one split.
    """
    counts = ProductStatistics()
    paths: set[tuple[str, ...]] = set()
    for batch in _batches(files, "products"):
        counts.products += len(batch)
        lengths = {
            name: _lengths(batch, name) for name in ("images", "category_path", "expanded_images", "core_region")
        }
        counts.images += int(lengths["images"].sum())
        counts.with_image += int((lengths["images"] > 0).sum())
        counts.with_title += _filled(batch, "title")
        counts.with_description += _filled(batch, "description")
        counts.with_category += int((lengths["category_path"] > 0).sum())
        if "enriched_title" in batch.column_names:
            told = pc.not_equal(batch["enriched_title"], pc.fill_null(batch["title"].cast(pa.string()), ""))
            counts.enriched_titles += int(
                (_is_filled(batch, "enriched_title") & pc.fill_null(told, False).to_numpy()).sum()
            )
        counts.expanded_images += int(lengths["expanded_images"].sum())
        counts.core_regions += int((lengths["core_region"] > 0).sum())
        if "category_path" in batch.column_names:
            joined = pc.unique(pc.binary_join(batch["category_path"], "\x1f"))
            paths |= {tuple(path.split("\x1f")) for path in joined.to_pylist() if path}
        if "attributes" in batch.column_names:
            counts.attributes.update(_attribute_names(batch["attributes"]))
        _count_labels(batch, "products", counts.labels)
    depth = max(map(len, paths), default=0)
    counts.categories = [len({path[: level + 1] for path in paths if len(path) > level}) for level in range(depth)]
    counts.leaf_categories = len(paths)
    _drop_many_valued(counts.labels)
    return counts


def query_statistics(files: Sequence[Path]) -> QueryStatistics:
    """Count over the queries of Parquet files, batch by batch; photos are not read.

    Nine bytes are kept in memory for every row: a hash of its query_id and what it holds.

    Args:
        files: of one split.
    """
    counts = QueryStatistics()
    keys, holds = [np.empty(0, dtype=np.uint64)], [np.empty(0, dtype=np.uint8)]
    for batch in _batches(files, "queries"):
        counts.rows += len(batch)
        ids = batch["query_id"].cast(pa.string()).to_numpy()
        keys.append(pd.util.hash_array(ids.astype(object), categorize=False))
        texts = _is_filled(batch, "text")
        photos = batch["image"].is_valid().to_numpy() if "image" in batch.column_names else np.zeros(len(batch), bool)
        holds.append(texts.astype(np.uint8) + 2 * photos.astype(np.uint8))
        negatives = _lengths(batch, "negative_ids")
        counts.negatives += int(negatives.sum())
        counts.with_negatives += int((negatives > 0).sum())
        if "grade" in batch.column_names and batch["grade"].null_count < len(batch):
            grades = pc.min_max(batch["grade"]).as_py()
            low, high = counts.grades or (np.inf, -np.inf)
            counts.grades = (min(low, grades["min"]), max(high, grades["max"]))
        _count_labels(batch, "queries", counts.labels)
    _, first, positives = np.unique(np.concatenate(keys), return_index=True, return_counts=True)
    held = np.bincount(np.concatenate(holds)[first], minlength=4)
    counts.queries = len(first)
    counts.several, counts.most = int((positives > 1).sum()), int(positives.max(initial=0))
    counts.text_only, counts.photo_only, counts.both = (int(count) for count in held[1:])
    _drop_many_valued(counts.labels)
    return counts


def _schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise SchemaError(f"{file.name}: cannot be read as Parquet ({error}); write the file again") from error


def _batches(files: Sequence[Path], kind: str) -> Iterator[pa.Table]:
    """The rows of files without the bytes of their images, and without columns outside the schema but labels."""
    known = SCHEMAS[kind][1]
    for file in files:
        try:
            with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
                labels = {column.name for column in parquet.schema_arrow if _is_label(column.type)}
                leaves = [parquet.schema.column(number).path for number in range(len(parquet.schema))]
                light = {leaf.partition(".")[0] for leaf in leaves if not leaf.endswith(".bytes")}
                columns = [
                    leaf
                    for leaf in leaves
                    if (name := leaf.partition(".")[0]) in known or name in labels
                    if not leaf.endswith(".bytes") or name not in light
                ]
                for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns):
                    plain = pa.schema([(column.name, plain_type(column.type)) for column in batch.schema])
                    yield pa.Table.from_batches([batch]).cast(plain)
        except (pa.ArrowException, OSError) as error:
            raise SchemaError(f"{file.name}: cannot be read as Parquet ({error}); write the file again") from error


def _is_label(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) and pa.types.is_struct(kind.value_type):
        return sorted((part.name, str(part.type)) for part in kind.value_type) == [
            ("name", "string"),
            ("value", "string"),
        ]
    return pa.types.is_boolean(kind) or pa.types.is_string(plain_type(kind))


def _lengths(batch: pa.Table, column: str) -> np.ndarray:
    if column not in batch.column_names or pa.types.is_null(batch.schema.field(column).type):
        return np.zeros(len(batch), dtype=np.int64)
    return pc.fill_null(pc.list_value_length(batch[column]), 0).to_numpy()


def _is_filled(batch: pa.Table, column: str) -> np.ndarray:
    """Rows whose text is not blank: (rows,) bool."""
    if column not in batch.column_names:
        return np.zeros(len(batch), dtype=bool)
    text = pc.fill_null(batch[column].cast(pa.string()), "")
    return pc.not_equal(pc.utf8_trim_whitespace(text), "").to_numpy()


def _filled(batch: pa.Table, column: str) -> int:
    return int(_is_filled(batch, column).sum())


def _attribute_names(attributes: pa.ChunkedArray) -> dict[str, int]:
    """Name -> rows that have an attribute of that name."""
    pairs = pa.table(
        {"row": pc.list_parent_indices(attributes), "name": pc.struct_field(pc.list_flatten(attributes), "name")}
    )
    counted = pairs.group_by(["row", "name"]).aggregate([]).group_by("name").aggregate([("row", "count")])
    return dict(zip(counted["name"].to_pylist(), counted["row_count"].to_pylist(), strict=True))


def _count_labels(batch: pa.Table, kind: str, labels: dict[str, Counter[str]]) -> None:
    """Count the values of columns outside the schema, until there are too many of them."""
    for column in batch.column_names:
        if column not in SCHEMAS[kind][1]:
            for name, values in _labels(column, batch[column].combine_chunks()):
                counted = labels.setdefault(name, Counter())
                if len(counted) <= MOST_LABELS:
                    for entry in pc.value_counts(pc.fill_null(values.cast(pa.string()), "none")):
                        counted[entry["values"].as_py()] += entry["counts"].as_py()


def _labels(column: str, values: pa.Array) -> Iterator[tuple[str, pa.Array]]:
    if not pa.types.is_list(values.type):
        yield column, values
        return
    pairs = pc.list_flatten(values)
    names = pc.struct_field(pairs, "name")
    for name in pc.unique(names).drop_null():
        yield f"{column}: {name}", pc.struct_field(pairs, "value").filter(pc.equal(names, name))


def _drop_many_valued(labels: dict[str, Counter[str]]) -> None:
    for name in [name for name, counter in labels.items() if len(counter) > MOST_LABELS]:
        del labels[name]
