"""Queries out of a log's work files: positives with grades, negatives, each in the split of its product."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Features
from tqdm.auto import tqdm

from ..schema import OPTIONAL_QUERY_FEATURES, QUERY_FEATURES
from ..shards import Shards, read_notes, written
from .log import CLICK, EVENTS, EXPOSURE, PARTITIONS, PURCHASE, WORK_NAME

POSITIVE_EVENTS = (EVENTS[PURCHASE], EVENTS[CLICK])
QUERY_REASONS = {
    "under_min_purchases": "fewer events than min_purchases",
    "over_category_limit": "the product is left out, for its category has max_per_category without it",
    "variant_of_a_clicked_product": "in one group with a product that was clicked or bought for the query",
    "in_another_split": "the query has no positive in that product's split",
    "over_max_negatives": "others were shown more often",
}
QUERY_SCHEMA = Features(QUERY_FEATURES | OPTIONAL_QUERY_FEATURES).arrow_schema


@dataclass
class LogRules:
    """What makes a positive and what a negative.

    Attributes:
        positive_events: "purchase", "click" or both.
        min_purchases: positive events of a query and a product that make it a positive.
        min_exposures: times that a product was shown for a query, and neither clicked nor bought, to be a negative.
        max_negatives: of a query in a split; those shown most often stay.
    """

    positive_events: Sequence[str]
    min_purchases: int
    min_exposures: int
    max_negatives: int


def positive_rows(work: Path, rules: LogRules, num_products: int) -> np.ndarray:
    """Products that some query has as a positive: (num_products,) bool, by row of the catalogue."""
    found = np.zeros(num_products, dtype=bool)
    for part in _parts(work):
        found[part.row[part.positive_events(rules) >= rules.min_purchases]] = True
    return found


def write_queries(
    work: Path,
    out: Path,
    rules: LogRules,
    split_of: np.ndarray,
    group: np.ndarray,
    ids: pa.ChunkedArray,
    splits: Sequence[str],
    shard_rows: int,
    progress: bool = True,
) -> dict[str, Any]:
    """Write the queries of every split into numbered files: a row for each positive, in its product's split.

    Args:
        work: folder of the work files.
        out: folder to write `queries-SPLIT-00000.parquet` … in.
        rules: what makes a positive and what a negative.
        split_of: (N,) of every product of the catalogue, the split's place in `splits`; less than 0 for none.
        group: (N,) int64, one number for products that are variants or copies of each other.
        ids: (N,) of the products.
        splits: names.
        shard_rows: rows of a file.
        progress: show a bar.

    Returns:
        JSON-ready counts: `positives` and `negatives` (pairs of a query and a product, and what became of them),
        `queries`, `queries_in_several_splits`, and of each split `query_rows`, `queries`, `mean_positives`,
        `queries_with_image`, `queries_with_negatives`, `negatives` and, but for the first, `queries_also_in_FIRST`.
    """
    shards = [Shards(out, f"queries-{split}", QUERY_SCHEMA, shard_rows) for split in splits]
    positives = Counter(pairs=0, under_min_purchases=0, over_category_limit=0, written=0)
    negatives = Counter(pairs=0, variant_of_a_clicked_product=0, over_category_limit=0, in_another_split=0)
    negatives.update(over_max_negatives=0, written=0)
    fields = ("query_rows", "queries", "queries_with_image", "queries_with_negatives", "negatives")
    of_split = [Counter(dict.fromkeys(fields, 0)) for _ in splits]
    total = Counter(queries=0, queries_in_several_splits=0)
    for part in tqdm(_parts(work), unit=" parts", desc="queries", disable=not progress):
        count = part.positive_events(rules)
        positive = count >= rules.min_purchases
        split = split_of[part.row]
        written_rows = np.flatnonzero(positive & (split >= 0))
        written_rows = written_rows[
            np.lexsort((part.row[written_rows], part.query[written_rows], split[written_rows]))
        ]
        positives.update(
            pairs=int((count > 0).sum()),
            under_min_purchases=int(((count > 0) & ~positive).sum()),
            over_category_limit=int((positive & (split < 0)).sum()),
            written=len(written_rows),
        )
        lists, starts = _negatives(part, rules, split, group[part.row], written_rows, len(splits), negatives)
        grades = 1 + np.log2(count[written_rows])
        table = _query_table(part, written_rows, ids, part.row[lists], starts, grades)

        several = np.zeros(len(part.keys), dtype=np.int64)
        in_first = np.zeros(len(part.keys), dtype=bool)
        for number, shard in enumerate(shards):
            here = split[written_rows] == number
            shard.add(table.filter(pa.array(here)))
            queries, first = np.unique(part.query[written_rows[here]], return_index=True)
            listed = np.diff(starts)[here][first]
            of_split[number].update(
                query_rows=int(here.sum()),
                queries=len(queries),
                queries_with_image=int(part.pictures.take(pa.array(queries)).is_valid().to_numpy(False).sum()),
                queries_with_negatives=int((listed > 0).sum()),
                negatives=int(listed.sum()),
                **({f"queries_also_in_{splits[0]}": int(in_first[queries].sum())} if number else {}),
            )
            several[queries] += 1
            if not number:
                in_first[queries] = True
        total.update(queries=int((several > 0).sum()), queries_in_several_splits=int((several > 1).sum()))
    for shard in shards:
        shard.finish()
    means = [counts["query_rows"] / counts["queries"] if counts["queries"] else 0.0 for counts in of_split]
    return {
        "positives": dict(positives),
        "negatives": dict(negatives),
        **total,
        "splits": {
            split: counts | {"mean_positives": mean}
            for split, counts, mean in zip(splits, map(dict, of_split), means, strict=True)
        },
    }


class _Part:
    """The pairs of a query and a product of one partition, summed over all work files.

    Args:
        table: in WORK_SCHEMA, with rows; of a query, the first row with a text or a picture says what it is.

    Attributes:
        keys: (Q,) uint64 of the queries, sorted.
        texts, pictures: (Q,) of the queries.
        query: (P,) int64 place of each pair's query in `keys`, sorted.
        row: (P,) int64 product row.
        counts: (P, 3) int64 events of each kind.
    """

    def __init__(self, table: pa.Table) -> None:
        query, row = table["query"].to_numpy(), table["row"].to_numpy()
        says = np.flatnonzero(pc.or_(table["text"].is_valid(), table["picture"].is_valid()).to_numpy())
        self.keys, first = np.unique(query[says], return_index=True)
        self.texts = table["text"].take(pa.array(says[first]))
        self.pictures = table["picture"].take(pa.array(says[first]))
        order = np.lexsort((row, query))
        query, row = np.searchsorted(self.keys, query[order]), row[order]
        new = np.flatnonzero(np.r_[True, (query[1:] != query[:-1]) | (row[1:] != row[:-1])])
        self.query, self.row = query[new], row[new]
        counts = np.stack([table[event].to_numpy()[order] for event in EVENTS], axis=1)
        self.counts = np.add.reduceat(counts, new, axis=0)

    def positive_events(self, rules: LogRules) -> np.ndarray:
        """(P,) int64."""
        return self.counts[:, [EVENTS.index(event) for event in rules.positive_events]].sum(axis=1)


def _parts(work: Path) -> Iterator[_Part]:
    files = [(path, read_notes(path)["row_groups"]) for path in written(work, WORK_NAME)]
    for number in range(PARTITIONS):
        tables = []
        for path, groups in files:
            if str(number) in groups:
                with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
                    tables.append(parquet.read_row_group(groups[str(number)]))
        if tables:
            yield _Part(pa.concat_tables(tables))


def _negatives(
    part: _Part,
    rules: LogRules,
    split: np.ndarray,
    group: np.ndarray,
    written_rows: np.ndarray,
    num_splits: int,
    counts: Counter[str],
) -> tuple[np.ndarray, np.ndarray]:
    """The negatives of every written row: pairs, row after row, and where each row's begin (rows + 1,)."""
    clicked = part.counts[:, [PURCHASE, CLICK]].sum(axis=1) > 0
    asked = np.zeros(len(part.keys), dtype=bool)
    asked[part.query[written_rows]] = True
    candidate = np.flatnonzero(~clicked & (part.counts[:, EXPOSURE] >= rules.min_exposures) & asked[part.query])
    counts["pairs"] += len(candidate)

    _, numbers = np.unique(group, return_inverse=True)
    relation = part.query * (int(numbers.max(initial=0)) + 1) + numbers
    related = np.isin(relation[candidate], relation[clicked])
    counts["variant_of_a_clicked_product"] += int(related.sum())
    candidate = candidate[~related]

    lost = split[candidate] < 0
    counts["over_category_limit"] += int(lost.sum())
    candidate = candidate[~lost]

    home = part.query * num_splits + split
    elsewhere = ~np.isin(home[candidate], home[written_rows])
    counts["in_another_split"] += int(elsewhere.sum())
    candidate = candidate[~elsewhere]

    candidate = candidate[np.lexsort((part.row[candidate], -part.counts[candidate, EXPOSURE], home[candidate]))]
    first = np.searchsorted(home[candidate], home[candidate])
    stays = np.arange(len(candidate)) - first < rules.max_negatives
    counts["over_max_negatives"] += int((~stays).sum())
    candidate = candidate[stays]
    counts["written"] += len(candidate)

    begin = np.searchsorted(home[candidate], home[written_rows])
    sizes = np.searchsorted(home[candidate], home[written_rows], side="right") - begin
    starts = np.r_[0, np.cumsum(sizes)]
    lists = np.arange(starts[-1]) - np.repeat(starts[:-1] - begin, sizes)
    return candidate[lists], starts


def _query_table(
    part: _Part,
    written_rows: np.ndarray,
    ids: pa.ChunkedArray,
    negative_rows: np.ndarray,
    starts: np.ndarray,
    grades: np.ndarray,
) -> pa.Table:
    query = part.query[written_rows]
    pictures = part.pictures.take(pa.array(query)).combine_chunks()
    image = pa.StructArray.from_arrays(
        [pictures, pa.nulls(len(pictures), pa.string())], ["bytes", "path"], mask=pictures.is_null()
    )
    negatives = ids.take(pa.array(negative_rows)).combine_chunks()
    columns = {
        "query_id": [f"q{key:016x}" for key in part.keys[query].tolist()],
        "text": part.texts.take(pa.array(query)),
        "image": image,
        "product_id": ids.take(pa.array(part.row[written_rows])),
        "negative_ids": pa.ListArray.from_arrays(pa.array(starts, pa.int32()), negatives),
        "grade": pa.array(grades),
    }
    return pa.table([columns[name] for name in QUERY_SCHEMA.names], schema=QUERY_SCHEMA)
