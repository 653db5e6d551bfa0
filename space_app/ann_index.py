"""Approximate search for large catalogues: partitions, and how many of them to look into, measured against all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import lancedb
import numpy as np
from lancedb.index import IvfFlat, IvfSq
from lancedb.query import AsyncVectorQuery, LanceVectorQueryBuilder

ANN_FROM = 50_000  # products; up to there every one is compared
PARTITION_ROWS = 4096  # products of a partition
SAMPLE_RATE = 64  # vectors a partition is found by; where products were deleted, LanceDB reads them slowly, one by one
REFINE_FACTOR = 2  # times the products wanted are compared exactly, of those that seem nearest by their bytes
SAMPLE = 200  # products that ask for their neighbours
DEPTH = 10
WANTED_RECALL = 0.95
WIDER = 1.5  # times the partitions looked into, where too little was found
SAME = 1e-5  # a similarity that differs by less is the same
BLOCK_ROWS = 16_384  # compared at once
EVERY = 1_000_000  # partitions: more than there are

KINDS = (("IVF_SQ", IvfSq, REFINE_FACTOR), ("IVF_FLAT", IvfFlat, None))  # the second where the first does not do

GROWTH = 2  # times the products it was made with, until it is made anew
SEGMENTS = 16  # LanceDB adds one for every addition it takes in, and searches all of them
UNINDEXED_ROWS = 2000  # that every search compares one by one
FRAGMENTS = 20  # files of them

VectorQuery = TypeVar("VectorQuery", LanceVectorQueryBuilder, AsyncVectorQuery)


def build_ann(
    table: lancedb.table.Table,
    columns: Mapping[str, str],
    pairs: Sequence[tuple[str, str]],
    wanted: float = WANTED_RECALL,
) -> dict[str, Any]:
    """Partition the vectors of a table and find how many partitions a search must look into.

    The partitions hold the vectors as bytes, a quarter of their size; the best by bytes are compared exactly. Products
    of the catalogue stand in for queries: for a sample of them the ten found are held against the ten nearest of all,
    and the number of partitions looked into grows until the share found is as wanted in all pairs of views. Where
    bytes do not suffice for that, the partitions are made anew of the vectors themselves.

    Args:
        table: of an index.
        columns: view -> the column with its vectors, normalised.
        pairs: (view of the query, view of the products) of the searches to come.
        wanted: recall@10 to reach.

    Returns:
        {"kind": LanceDB's name of the index, "products": rows at that time, "partitions", "nprobes": how many to look
        into, "refine_factor": times the products wanted that are compared exactly, None where all are, "recall@10":
        "query→products" -> share found, "sample": queries it was measured with}.
    """
    products = table.count_rows()
    partitions = math.ceil(products / PARTITION_ROWS)
    samples = {view: _sample(table, column) for view, column in columns.items()}
    searches = [(asked, view) for asked, view in pairs if len(samples[asked]) and len(samples[view])]
    nearest = _nearest_of_pairs(table, columns, samples, searches)

    def recalls_of(ann: Mapping[str, Any]) -> dict[str, float]:
        return {
            f"{asked}→{view}": _recall(table, columns[view], samples[asked], nearest[asked, view], ann)
            for asked, view in searches
        }

    for kind, config, refine_factor in KINDS:
        for view in {view for _, view in searches}:
            # A number of partitions would not last: `optimize` joins those far below the size an index was made for.
            made = config(distance_type="cosine", target_partition_size=PARTITION_ROWS, sample_rate=SAMPLE_RATE)
            table.create_index(columns[view], config=made, replace=True)
        ann = {
            "kind": kind,
            "products": products,
            "partitions": partitions,
            "nprobes": 1,
            "refine_factor": refine_factor,
        }
        recalls = recalls_of(ann)
        while min(recalls.values(), default=1.0) < wanted and ann["nprobes"] < partitions:
            ann["nprobes"] = min(math.ceil(WIDER * ann["nprobes"]), partitions)
            recalls = recalls_of(ann)
        if min(recalls.values(), default=1.0) >= wanted:
            break
    return ann | {"recall@10": recalls, "sample": max(map(len, samples.values()), default=0)}


def approximately(query: VectorQuery, ann: Mapping[str, Any], is_filtered: bool = False) -> VectorQuery:
    """Let a query look into as few partitions as `build_ann` found to do.

    Args:
        query: of a table.
        ann: what `build_ann` returned, also that of an earlier version, which had no "refine_factor".
        is_filtered: look into all, for what passes a filter may lie in any.
    """
    query = query.nprobes(EVERY if is_filtered else ann["nprobes"])
    refine_factor = ann.get("refine_factor")
    return query if refine_factor is None else query.refine_factor(refine_factor)


def is_outgrown(table: lancedb.table.Table, ann: Mapping[str, Any]) -> bool:
    """Whether partitions should be made anew: of far fewer products, in many segments, or by an earlier version."""
    segments = max((index.num_segments for index in _vector_indexes(table)), default=0)
    return "kind" not in ann or table.count_rows() > GROWTH * ann["products"] or segments > SEGMENTS


def is_scattered(table: lancedb.table.Table) -> bool:
    """Whether so much was written since the partitions took in additions that it slows searches."""
    indexes = _vector_indexes(table)
    unindexed = max((index.num_unindexed_rows for index in indexes), default=0)
    segments = max((index.num_segments for index in indexes), default=0)
    small = table.stats()["fragment_stats"]["num_small_fragments"]
    return unindexed > UNINDEXED_ROWS or small - segments > FRAGMENTS


def nearest_of_all(table: lancedb.table.Table, column: str, vectors: np.ndarray, k: int = DEPTH) -> np.ndarray:
    """Compare vectors with all of a column, in one pass over it.

    Args:
        table: with the column.
        column: of vectors, normalised, or null.
        vectors: (Q, D) float32, normalised.
        k: products of each.

    Returns:
        (Q, k) float32 cosine similarities of the nearest, ascending; -inf where there are fewer.
    """
    nearest = np.full((len(vectors), k), -np.inf, dtype=np.float32)
    for batch in table.search().select([column]).limit(None).to_batches(BLOCK_ROWS):
        block = batch[column].drop_null()
        rows = block.flatten().to_numpy(zero_copy_only=False).reshape(len(block), vectors.shape[1])
        found = np.concatenate([nearest, vectors @ rows.T], axis=1)  # (Q, k + rows)
        nearest = np.partition(found, -k, axis=1)[:, -k:]
    return np.sort(nearest, axis=1)


def _nearest_of_pairs(
    table: lancedb.table.Table,
    columns: Mapping[str, str],
    samples: Mapping[str, np.ndarray],
    pairs: Sequence[tuple[str, str]],
) -> dict[tuple[str, str], np.ndarray]:
    """For (view of the query, view of the products), what `nearest_of_all` finds; each column is read once."""
    nearest = {}
    for searched in dict.fromkeys(view for _, view in pairs):
        asking = [asked for asked, view in pairs if view == searched]
        found = nearest_of_all(table, columns[searched], np.concatenate([samples[asked] for asked in asking]))
        parts = np.split(found, np.cumsum([len(samples[asked]) for asked in asking])[:-1])
        nearest |= {(asked, searched): part for asked, part in zip(asking, parts, strict=True)}
    return nearest


def _sample(table: lancedb.table.Table, column: str) -> np.ndarray:
    """(n, D) vectors of a column, of products drawn with a fixed seed."""
    count = table.count_rows()
    offsets = np.sort(np.random.default_rng(0).choice(count, size=min(SAMPLE, count), replace=False))
    found = table.take_offsets(offsets.tolist()).select([column]).to_arrow()[column].drop_null()
    return np.array(found.to_pylist(), dtype=np.float32)


def _recall(
    table: lancedb.table.Table, column: str, vectors: np.ndarray, nearest: np.ndarray, ann: Mapping[str, Any]
) -> float:
    """Share of the ten nearest that searches find; of products equally near, any will do."""
    shares = []
    for vector, of_all in zip(vectors, nearest, strict=True):
        query = table.search(vector, vector_column_name=column).distance_type("cosine").limit(DEPTH)
        distances = approximately(query.select(["_distance"]), ann).to_arrow()["_distance"].to_numpy()
        of_all = of_all[np.isfinite(of_all)]
        shares.append(np.count_nonzero(1 - distances >= of_all[0] - SAME) / len(of_all))
    return float(np.mean(shares))


def _vector_indexes(table: lancedb.table.Table) -> list[Any]:
    return [index for index in table.list_indices() if index.index_type.startswith("Ivf")]
