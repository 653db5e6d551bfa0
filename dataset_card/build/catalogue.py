"""The catalogue on its way: cleaned into numbered work files, and written out of them split by split."""

from __future__ import annotations

import io
import itertools
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm.auto import tqdm

from ..schema import PRODUCT_FEATURES, normalise_title
from ..shards import Shards, ShardWriter, Tally, is_row_group, numbered, read_notes, written
from .clean import Cleaned, Dropped, clean_product
from .duplicates import LOOK, ProductKeys, picture_look, stable_key
from .image_root import ImageRoot
from .raw_rows import RawRow
from .sources import Source

WORK_NAME = "catalogue"
WORK_ROWS = 2000  # rows of the source behind one work file; a killed run does at most so many again
SLICE = 25  # rows that a thread takes at a time
KEYS = pa.schema(
    [(name, pa.uint64()) for name in ("id_key", "title_key", "leaf_key", "text_key")]
    + [("look", pa.binary(LOOK.itemsize)), ("has_look", pa.bool_()), ("num_images", pa.int32())]
)
PRODUCT_SCHEMA = PRODUCT_FEATURES.arrow_schema
ALIAS_KEYS = pa.field("alias_keys", pa.list_(pa.uint64()))
WORK_SCHEMA = pa.schema([*PRODUCT_SCHEMA, *KEYS, ALIAS_KEYS])
_NO_LOOK = bytes(LOOK.itemsize)

In, Out = TypeVar("In"), TypeVar("Out")
_Result = tuple[RawRow, Cleaned | Dropped, dict[str, Any]]  # with the columns of KEYS and ALIAS_KEYS


class CatalogueCounts:
    """What became of the rows of a catalogue while it was cleaned.

    Attributes:
        rows: read.
        cleaned: that are products.
        dropped: why the others are not.
        notes: what products lost, such as an unreadable picture; a product may have several.
    """

    def __init__(self) -> None:
        self.rows = self.cleaned = 0
        self.dropped, self.notes = Tally(), Tally()

    def as_json(self) -> dict[str, Any]:
        """What `merge` takes."""
        return {
            "rows": self.rows,
            "cleaned": self.cleaned,
            "dropped": self.dropped.as_json(),
            "notes": self.notes.as_json(),
        }

    def merge(self, notes: Mapping[str, Any]) -> None:
        """Add what a work file notes."""
        self.rows += notes["rows"]
        self.cleaned += notes["cleaned"]
        self.dropped.merge(notes["dropped"])
        self.notes.merge(notes["notes"])


def clean_catalogue(
    source: Source, work: Path, image_root: ImageRoot | None, max_side: int, workers: int, progress: bool = True
) -> CatalogueCounts:
    """Clean a catalogue into work files; goes on after those that are there.

    Args:
        source: the catalogue.
        work: folder of the work files.
        image_root, max_side: as `clean_product` takes them.
        workers: threads.
        progress: show a bar.
    """
    counts, start, last = CatalogueCounts(), 0, False
    done = written(work, WORK_NAME)
    for path in done:
        notes = read_notes(path)
        counts.merge(notes)
        start, last = notes["next"], notes["last"]
    if last:
        return counts
    paths = numbered(work, WORK_NAME)
    for _ in done:
        next(paths)
    mapping = source.mapping

    def clean(rows: Sequence[RawRow]) -> list[_Result]:
        results = ((row, clean_product(row, mapping, image_root, max_side)) for row in rows)
        return [(row, found, _keys(found) if isinstance(found, Cleaned) else {}) for row, found in results]

    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=source.num_rows, initial=start, unit=" rows", desc="clean", disable=not progress) as bar,
    ):
        slices = (
            batch[first : first + SLICE]
            for batch in source.batches(start, size=20 * SLICE)
            for first in range(0, len(batch), SLICE)
        )
        results = (row for rows in _in_order(pool, clean, slices, 2 * workers + 2) for row in rows)
        while not last:
            last = _write_work_file(next(paths), results, start, bar, counts)
            start += WORK_ROWS
    return counts


def read_keys(work: Path) -> tuple[ProductKeys, np.ndarray]:
    """What is compared of all cleaned products, and their numbers of pictures (N,) int32."""
    table = pa.concat_tables(
        [
            KEYS.empty_table(),
            *(pq.read_table(path, schema=KEYS, page_checksum_verification=True) for path in written(work, WORK_NAME)),
        ]
    )
    looks = table["look"].combine_chunks()
    columns = {name: table[name].to_numpy() for name in KEYS.names if name != "look"}
    keys = ProductKeys(
        product_id=columns["id_key"],
        title=columns["title_key"],
        leaf=columns["leaf_key"],
        text=columns["text_key"],
        look=np.frombuffer(looks.buffers()[1], dtype=LOOK, count=len(looks)),
        pictured=columns["has_look"],
    )
    return keys, columns["num_images"]


def read_aliases(work: Path) -> tuple[np.ndarray, np.ndarray]:
    """Keys of the other names of products, (A,) uint64, and of the name that each stands for, (A,) uint64.

    That is the id of a cleaned product, or for a variation what it calls its parent: an id, or an alias again.
    """
    aliases, names = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
    for path in written(work, WORK_NAME):
        table = pq.read_table(path, columns=["id_key", ALIAS_KEYS.name], page_checksum_verification=True)
        lists = table[ALIAS_KEYS.name].combine_chunks()
        aliases.append(lists.flatten().to_numpy())
        names.append(np.repeat(table["id_key"].to_numpy(), lists.value_lengths().to_numpy()))
        variations = np.array(read_notes(path)["variations"], dtype=np.uint64).reshape(-1, 2)
        aliases.append(variations[:, 0])
        names.append(variations[:, 1])
    return np.concatenate(aliases), np.concatenate(names)


def read_ids(work: Path) -> pa.ChunkedArray:
    """The ids of all cleaned products."""
    tables = [
        pq.read_table(path, columns=["product_id"], page_checksum_verification=True)
        for path in written(work, WORK_NAME)
    ]
    return pa.chunked_array([chunk for table in tables for chunk in table["product_id"].chunks], pa.string())


def read_category_paths(work: Path) -> dict[int, tuple[str, ...]]:
    """Key of every category path -> its levels."""
    paths: dict[int, tuple[str, ...]] = {}
    for file in written(work, WORK_NAME):
        table = pq.read_table(file, columns=["leaf_key", "category_path"], page_checksum_verification=True)
        leaves, first = np.unique(table["leaf_key"].to_numpy(), return_index=True)
        for leaf, row in zip(leaves.tolist(), first.tolist(), strict=True):
            if leaf not in paths:
                paths[leaf] = tuple(table["category_path"][row].as_py())
    return paths


def read_products(work: Path, rows: Iterable[int]) -> dict[int, dict[str, Any]]:
    """Single products by their row among the cleaned ones."""
    wanted, found, before = sorted(set(rows)), {}, 0
    for path in written(work, WORK_NAME):
        after = before + pq.read_metadata(path).num_rows
        here = [row for row in wanted if before <= row < after]
        for table, first in _row_groups(path, PRODUCT_SCHEMA.names) if here else ():
            for row in here:
                if 0 <= row - before - first < len(table):
                    found[row] = table.slice(row - before - first, 1).to_pylist()[0]
        before = after
    return found


def write_products(
    work: Path, out: Path, split_of: np.ndarray, splits: Sequence[str], shard_rows: int, progress: bool = True
) -> None:
    """Write the products of every split into numbered files; goes on after those that are there.

    Args:
        work: folder of the work files.
        out: folder to write `products-SPLIT-00000.parquet` … in.
        split_of: (N,) of every cleaned product, the split's place in `splits`; less than 0 for none.
        splits: names.
        shard_rows: products of a file.
        progress: show a bar.
    """
    shards = [Shards(out, f"products-{split}", PRODUCT_SCHEMA, shard_rows) for split in splits]
    before = 0
    with tqdm(total=int((split_of >= 0).sum()), unit=" rows", desc="write", disable=not progress) as bar:
        for path in written(work, WORK_NAME):
            of_file = split_of[before : before + pq.read_metadata(path).num_rows]
            before += len(of_file)
            counts = [int((of_file == number).sum()) for number in range(len(splits))]
            if all(shard.has(count) for shard, count in zip(shards, counts, strict=True)):
                for shard, count in zip(shards, counts, strict=True):
                    shard.pass_over(count)
            else:
                for table, first in _row_groups(path, PRODUCT_SCHEMA.names):
                    of_group = of_file[first : first + len(table)]
                    for number, shard in enumerate(shards):
                        shard.add(table.filter(pa.array(of_group == number)))
            bar.update(sum(counts))
        for shard in shards:
            shard.finish()


def _row_groups(path: Path, columns: list[str]) -> Iterator[tuple[pa.Table, int]]:
    """(table, number of its first row) of every row group."""
    first = 0
    with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group, columns=columns)
            yield table, first
            first += len(table)


def _write_work_file(path: Path, results: Iterator[_Result], start: int, bar: tqdm, counts: CatalogueCounts) -> bool:
    """Write what becomes of the next WORK_ROWS rows; returns whether they were the last."""
    writer, of_file = ShardWriter(path, WORK_SCHEMA), CatalogueCounts()
    rows: list[dict[str, Any]] = []
    variations: list[tuple[int, int]] = []  # key of a variation's id or SKU, key of its parent
    nbytes = 0
    for row, result, keys in itertools.islice(results, WORK_ROWS):
        of_file.rows += 1
        if isinstance(result, Dropped):
            of_file.dropped.add(result.reason_code, f"{result.place}: {result.detail}".removesuffix(": "))
            parent = stable_key("product", result.parent)
            variations.extend((stable_key("product", alias), parent) for alias in result.aliases)
        else:
            of_file.cleaned += 1
            for reason, detail in result.notes:
                of_file.notes.add(reason, f"{row.place}: {detail}".removesuffix(": "))
            rows.append(result.product | keys)
            nbytes += sum(len(image["bytes"]) for image in result.product["images"])
            if is_row_group(len(rows), nbytes):
                writer.write(pa.Table.from_pylist(rows, schema=WORK_SCHEMA))
                rows, nbytes = [], 0
        if of_file.rows % SLICE == 0:
            bar.update(SLICE)
    bar.update(of_file.rows % SLICE)
    writer.write(pa.Table.from_pylist(rows, schema=WORK_SCHEMA))
    notes = of_file.as_json() | {"next": start + of_file.rows, "last": of_file.rows < WORK_ROWS}
    notes["variations"] = variations
    writer.close(notes)
    counts.merge(notes)
    return notes["last"]


def _keys(cleaned: Cleaned) -> dict[str, Any]:
    """The columns of KEYS and ALIAS_KEYS for a product."""
    product = cleaned.product
    title, path = normalise_title(product["title"]), product["category_path"]
    attributes = [(attribute["name"], attribute["value"]) for attribute in product["attributes"]]
    look = _look(product["images"][0]) if product["images"] else None
    return {
        "id_key": stable_key("product", product["product_id"]),
        "title_key": stable_key("title", title) if title else 0,
        "leaf_key": stable_key("category", "\x1f".join(path)) if path else 0,
        "text_key": stable_key("text", json.dumps([title, product["description"], path, attributes])),
        "look": look or _NO_LOOK,
        "has_look": look is not None,
        "num_images": len(product["images"]),
        "alias_keys": [stable_key("product", alias) for alias in cleaned.aliases],
    }


def _look(picture: dict[str, Any]) -> bytes | None:
    try:
        image = Image.open(io.BytesIO(picture["bytes"]))
        image.draft("RGB", (256, 256))  # a large JPEG is decoded at a fraction of its size
        return picture_look(image).tobytes()
    except Exception:  # damage that only shows at full depth ends in every kind of error; the picture is not compared
        return None


def _in_order(
    pool: ThreadPoolExecutor, function: Callable[[In], Out], items: Iterable[In], ahead: int
) -> Iterator[Out]:
    """Results in the order of the items, at most `ahead` items before the one that is waited for."""
    waiting: deque[Future[Out]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
