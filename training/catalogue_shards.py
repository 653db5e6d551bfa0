"""Shards of a catalogue become shards of vectors: what is changed is encoded, what is not is taken over."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from moon2_dataset.build.clean import MAX_TITLE, clean_text
from moon2_dataset.product_stream import ProductStream
from moon2_dataset.shards import ShardWriter

from .encode import BATCHES_PER_WINDOW, Encoded, Encoder
from .items import IMAGES_PER_PRODUCT
from .stored_vectors import IN_TABLE, KEY_COLUMNS, NOWHERE, StoredVectors
from .vector_columns import encoded_digest, picture_digest, vector_array, vector_column
from .vector_files import NUMBER_TYPES, ShardFiles, ShardRecord, vectors_schema

WINDOW_BYTES = 128 << 20  # of pictures in a window; two windows are in memory
ROWS_AT_ONCE, BYTES_AT_ONCE = 32, 16 << 20  # products that are made and looked up together, and their pictures
NOTHING = ": neither title nor image; give at least one"
NOT_FINITE = ": its vector is not finite; check the weights"
STAYS = "; its vectors stay until it can"


@dataclass(frozen=True)
class ShardJob:
    """What is encoded, and how; can be pickled, for processes that see the same files.

    Args:
        stream: the catalogue.
        folder: OUT.partial.
        shard_rows: products of the catalogue behind one shard.
        views: some of text, image, multimodal.
        vector_dtype: float32 or float16.
        dimension: of the vectors; shorter than the encoder's, they are cut and normalised again.
        raise_errors: whether a product that cannot be encoded whole is an error.
        stored: Parquet files with vectors to take over.
        stored_errors: product id -> what its stored vectors lack.
        unchanged_in: Lance table whose rows stay there, so that only what is changed is written.
        notes: for the footer of every shard.
    """

    stream: ProductStream
    folder: Path
    shard_rows: int
    views: tuple[str, ...]
    vector_dtype: str
    dimension: int
    raise_errors: bool = False
    stored: tuple[Path, ...] = ()
    stored_errors: Mapping[str, Sequence[str]] = field(default_factory=dict)
    unchanged_in: Path | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_shards(self) -> int:
        return -(-self.stream.num_rows // self.shard_rows)

    def open_stored(self) -> StoredVectors:
        """The vectors to take over, and the rows that stay; their keys are read."""
        return StoredVectors(self.stored, self.unchanged_in)

    def rows_of(self, shard: int) -> range:
        """The rows of the catalogue behind a shard."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.stream.num_rows))


@dataclass
class _Window:
    """Products of one shard that are encoded and written together."""

    shard: int
    rows: list[int] = field(default_factory=list)  # in the catalogue
    ids: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)  # where the vectors stand, or NOWHERE
    items: list[dict[str, Any]] = field(default_factory=list)  # of the products without stored vectors
    errors: list[list[Any]] = field(default_factory=list)
    kept: list[list[Any]] = field(default_factory=list)
    seen: int = 0  # rows of the catalogue, also those that are no products
    unchanged: int = 0
    linked: int = 0
    last: bool = False


class _Product(NamedTuple):
    row: int
    product_id: str
    title: str
    pictures: list[dict[str, Any]]
    linked: bool
    unopened: dict[int, str]  # number of a picture -> why its file cannot be opened
    digest: str

    @property
    def num_bytes(self) -> int:
        """Of its pictures."""
        return sum(len(picture["bytes"] or b"") for picture in self.pictures)


def encode_shards(
    job: ShardJob,
    numbers: Sequence[int],
    encoder: Encoder,
    advance: Callable[[int], Any] = lambda rows: None,
    stored: StoredVectors | None = None,
) -> Iterator[ShardRecord]:
    """Encode shards one after the other; the next is read while one is encoded.

    A shard's bytes depend on its products, on what is stored and on the encoder with its batch size, not on the
    shards before it. A product keeps its vectors while the file of a picture that they were made of cannot be opened:
    its folder may be away.

    Args:
        job: what to encode.
        numbers: of the shards.
        encoder: with the job's model.
        advance: is told now and then how many rows of the catalogue are done.
        stored: of the job, for many calls; None: opened by this one, which reads the keys of them all.

    Yields:
        The record of every shard, when its file and record are written.

    Raises:
        ValueError: a product cannot be encoded whole, and the job raises errors, or a file is damaged.
    """
    stored = job.open_stored() if stored is None else stored
    files, schema = ShardFiles(job.folder), vectors_schema(job.views, job.dimension, job.vector_dtype)
    size = encoder.batch_size * BATCHES_PER_WINDOW
    read: deque[_Window] = deque()

    def windows() -> Iterator[list[dict[str, Any]]]:
        for number in numbers:
            for window in _windows(job, number, size, stored):
                read.append(window)
                yield window.items

    told = 0

    def tell(items: int) -> None:
        nonlocal told
        told += items
        advance(items)

    writer, record = None, None
    for encoded in encoder.encode_windows(windows(), job.views, lenient=True, advance=tell):
        window = read.popleft()
        if record is None:
            record = ShardRecord(window.shard)
            writer = ShardWriter(files.unfinished(), schema, use_dictionary=False)
        table, num_encoded = _table(job, window, encoded, stored, schema)
        writer.write(table)
        record.rows += len(table)
        record.encoded += num_encoded
        record.unchanged += window.unchanged
        record.linked += window.linked
        record.errors += sorted(window.errors)
        record.kept += window.kept
        advance(window.seen - told)  # what needed no encoder
        told = 0
        if window.last:
            writer.close(job.notes)
            files.finish(record, writer.path)
            yield record
            writer, record = None, None


def _windows(job: ShardJob, shard: int, size: int, stored: StoredVectors) -> Iterator[_Window]:
    """The products of a shard, as many at a time as are sorted together, or as their pictures leave room for."""
    window, held = _Window(shard), 0
    rows = job.rows_of(shard)
    for products in _products(job.stream, rows):
        places = stored.find([p.product_id for p in products], [p.digest for p in products])
        for product, place in zip(products, places.tolist(), strict=True):
            if window.seen == size or held >= WINDOW_BYTES:
                yield window
                window, held = _Window(shard), 0
            window.seen += 1
            window.linked += product.linked
            if not product.title and not product.pictures:
                _lose(job, window.errors, product.row, product.product_id, NOTHING, dropped=True)
                continue
            if place == NOWHERE and (why := _lacks_now(job, product)):
                place = stored.find_ids([product.product_id]).item()
                if place != NOWHERE:
                    _lose(job, window.kept, product.row, product.product_id, f"{why}{STAYS}", dropped=False)
            if place != NOWHERE:
                window.unchanged += 1
                for message in job.stored_errors.get(product.product_id, ()):
                    _lose(job, window.errors, product.row, product.product_id, message, dropped=False)
            if place == IN_TABLE:
                continue
            window.rows.append(product.row)
            window.ids.append(product.product_id)
            window.digests.append(product.digest)
            window.stored.append(place)
            if place == NOWHERE:
                window.items.append({"text": product.title, "images": product.pictures})
                held += product.num_bytes
    window.last = True
    yield window


def _products(stream: ProductStream, rows: range) -> Iterator[list[_Product]]:
    """Rows as products, a few at a time, for files that their pictures lie in may be of any size."""
    held: list[_Product] = []
    first = rows.start
    for table in stream.tables(rows.start, rows.stop):
        for row, values in enumerate(table.to_pylist(), start=first):
            held.append(_product(stream, row, values))
            if len(held) == ROWS_AT_ONCE or sum(product.num_bytes for product in held) >= BYTES_AT_ONCE:
                yield held
                held = []
        first += len(table)
    if held:
        yield held


def _product(stream: ProductStream, row: int, values: Mapping[str, Any]) -> _Product:
    """A row with its pictures as bytes; one that is not there keeps its path, and is told of when it is decoded."""
    pictures, linked, unopened = [], False, {}
    for number, picture in enumerate(values["images"][:IMAGES_PER_PRODUCT]):
        data, path = picture["bytes"], picture["path"]
        if not data and path and not stream.from_hub:
            linked = True
            try:
                data = (stream.root / path).read_bytes()
            except OSError as error:
                unopened[number] = f"{path} cannot be opened ({error.strerror or error})"
            except ValueError:  # no path at all
                pass
        pictures.append({"bytes": data, "path": None if stream.from_hub else path})
    title, _ = clean_text(values["title"], MAX_TITLE)  # as an index has it, which may take these vectors
    told = [picture_digest(picture["bytes"] or (picture["path"] or "").encode()) for picture in pictures]
    return _Product(row, values["product_id"], title, pictures, linked, unopened, encoded_digest(title, told).hex())


def _lacks_now(job: ShardJob, product: _Product) -> str | None:
    """What cannot be opened of a product and was not missing when its stored vectors were made; text needs nothing."""
    if job.views == ("text",):
        return None
    missing = job.stored_errors.get(product.product_id, ())
    found = [(f", image {number}: ", why) for number, why in product.unopened.items()]
    return next((name + why for name, why in found if not any(told.startswith(name) for told in missing)), None)


def _lose(job: ShardJob, losses: list[list[Any]], row: int, product_id: str, message: str, dropped: bool) -> None:
    if job.raise_errors:
        raise ValueError(f"{job.stream.place(row)}, product {product_id}{message}")
    losses.append([row, product_id, message, dropped])


def _table(
    job: ShardJob, window: _Window, encoded: Encoded, stored: StoredVectors, schema: pa.Schema
) -> tuple[pa.Table, int]:
    """The rows of a window in the order of the catalogue, and how many of them were encoded."""
    places = np.array(window.stored, dtype=np.int64)
    new = np.flatnonzero(places < 0)  # of items -> of rows
    lost = set()
    for loss in encoded.losses:
        row = int(new[loss.row])
        _lose(job, window.errors, window.rows[row], window.ids[row], loss.message, loss.dropped)
        if loss.dropped:
            lost.add(loss.row)
    for item in np.flatnonzero(~_finite(encoded)).tolist():
        row = int(new[item])
        _lose(job, window.errors, window.rows[row], window.ids[row], NOT_FINITE, dropped=True)
        lost.add(item)
    good = np.array([item for item in range(len(new)) if item not in lost], dtype=np.int64)
    columns = [
        pa.array([window.ids[row] for row in new[good]], pa.string()),
        pa.array([window.digests[row] for row in new[good]], pa.string()),
    ]
    for view in job.views:
        vectors = shortened(encoded.vectors[view][good], job.dimension)
        columns.append(vector_array(vectors, encoded.present[view][good], NUMBER_TYPES[job.vector_dtype]))
    assert schema.names == [*KEY_COLUMNS, *map(vector_column, job.views)]
    table = pa.Table.from_arrays(columns, names=schema.names).cast(schema)
    there = np.flatnonzero(places >= 0)
    if len(there):
        taken = stored.take(places[there])
        if taken["product_id"].to_pylist() != [window.ids[row] for row in there]:
            raise RuntimeError("two products share a key; this is a fault of the program")
        order = np.argsort(np.concatenate([new[good], there]), kind="stable")
        table = pa.concat_tables([table, taken.cast(schema)]).take(order)
    return table, len(good)


def _finite(encoded: Encoded) -> np.ndarray:
    return np.logical_and.reduce([np.isfinite(vectors).all(axis=1) for vectors in encoded.vectors.values()])


def shortened(vectors: np.ndarray, dimension: int) -> np.ndarray:
    """The first `dimension` numbers of vectors (N, D), normalised again; zero stays zero."""
    if vectors.shape[1] == dimension:
        return vectors
    vectors = vectors[:, :dimension]
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
