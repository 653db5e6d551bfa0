"""A catalogue on disk that can be searched: vectors of every view beside the products, and full text."""

from __future__ import annotations

import itertools
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lancedb.expr import col
from lancedb.index import FTS, BTree
from lancedb.query import AsyncFTSQuery, AsyncVectorQuery, MatchQuery
from lancedb.table import AsyncTable

from moon2_training.checksums import lance_checksums, lance_files
from moon2_training.encode import VIEWS, Encoder
from moon2_training.evaluate import AnyEncoder
from moon2_training.lance_versions import compact
from moon2_training.saved_encoder import encoder_fingerprint
from moon2_training.vector_columns import VECTOR_COLUMNS, vector_column
from moon2_training.written_vectors import WrittenVectors

from .ann_index import ANN_FROM, approximately, build_ann, is_outgrown, is_scattered
from .catalogue_source import RowError
from .filters import Filters
from .index_manifest import MANIFEST, check_encoder, new_manifest, read_manifest, write_json
from .indexed_rows import make_thumbnail, product_row, row_item
from .product_table import ProductTable, check_files
from .unwritten_rows import UnwrittenRows
from .vectors_in_memory import VectorsInMemory

BATCH_PRODUCTS = 256  # encoded together
IDS_AT_ONCE = 1000
CHECKED_BYTES = 256 << 20  # a table of no more is compared with its checksums when it is opened
# Queries ask for multimodal vectors; products for those like them, by any one view.
SEARCHES = (*((view, "multimodal") for view in VIEWS), ("text", "text"), ("image", "image"))

Cancel = threading.Event | Callable[[], bool]
Progress = Callable[[int, int | None], None]


class Changes(NamedTuple):
    """What `CatalogueIndex.add` did.

    Args:
        added: products that were not there.
        replaced: products whose row was written anew.
        unchanged: products that were there just so.
        encoded: of added and replaced, those that were encoded; the others kept their vectors, or were taken.
        errors: products that are not in the index, and why.
        cancelled: whether it stopped before the last product.
        taken: of added and replaced, those whose vectors were written before.
    """

    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    encoded: int = 0
    errors: tuple[RowError, ...] = ()
    cancelled: bool = False
    taken: int = 0


class CatalogueIndex(ProductTable):
    """A catalogue on disk, searched by vectors and by words.

    Made by `create` or `open`. Searching from several threads is fine, also while one adds or deletes; a second writer
    is refused, in this process and in others.

    Attributes:
        folder: where it is.
        encoder: that its vectors are of.
        manifest: as `read_manifest` gives it.

    Example:
        >>> index = CatalogueIndex.create("shop-index", Encoder(model, processor))
        >>> index.add(products).added
        600
    """

    def __init__(self, folder: Path, encoder: AnyEncoder, manifest: dict[str, Any], ann_from: int = ANN_FROM) -> None:
        super().__init__(folder, manifest)
        self.encoder = encoder
        self.ann_from = ann_from
        self._in_memory = VectorsInMemory(self)

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike,
        encoder: AnyEncoder,
        model: str = "",
        fingerprint: str | None = None,
        ann_from: int = ANN_FROM,
    ) -> CatalogueIndex:
        """Make an empty index.

        Args:
            folder: to make; may be there and empty.
            encoder: that encodes its products and the queries for them.
            model: folder or Hub id the encoder was loaded from, for messages.
            fingerprint: of the encoder; None: of its weights, see `encoder_fingerprint`.
            ann_from: products beyond which search is approximate.

        Raises:
            ValueError: an index is there.
        """
        folder = Path(folder)
        if (folder / MANIFEST).exists():
            raise ValueError(f"{folder}: an index is there; open it, or give another folder")
        folder.mkdir(parents=True, exist_ok=True)
        manifest = new_manifest(model, fingerprint or fingerprint_of(encoder), encoder.width)
        index = cls(folder, encoder, manifest, ann_from)
        index._write_manifest()  # last: without it there is no index
        return index

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike,
        encoder: AnyEncoder,
        fingerprint: str | None = None,
        ann_from: int = ANN_FROM,
    ) -> CatalogueIndex:
        """Open an index that is there.

        Args:
            folder: of it.
            encoder: the one it was made with.
            fingerprint: of the encoder; None: of its weights.
            ann_from: products beyond which search is approximate.

        Raises:
            FileNotFoundError: there is no index.
            OtherEncoderError: it was made with another encoder.
            ValueError: another version of this package made it, or it is damaged.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        check_files(folder, CHECKED_BYTES)
        check_encoder(folder, manifest, fingerprint or fingerprint_of(encoder), encoder.width)
        return cls(folder, encoder, manifest, ann_from)

    def add(
        self,
        products: Iterable[Mapping[str, Any]],
        progress: Progress | None = None,
        cancel: Cancel | None = None,
        total: int | None = None,
        vectors: WrittenVectors | None = None,
    ) -> Changes:
        """Add products, and replace those whose id is there. What has not changed is passed over.

        Products are encoded and written in batches, each whole or not at all; what was encoded before a cancel stays,
        and what was written before a crash, which is a few seconds behind; the next call with the same products goes
        on after it. A product is encoded again only if
        its title or its pictures have changed. Of several products with one id the last one stays.

        Args:
            products: in the products schema, with their pictures as {"bytes", "path"}; at most four of a product are
                kept.
            progress: is told after every batch how many products are done, and `total`.
            cancel: a `threading.Event` or a function; asked before every batch.
            total: how many there are, if known.
            vectors: that `moon2 encode` wrote with this encoder; a product that is there unchanged is not encoded.

        Raises:
            ValueError: another writer is at work.
        """
        with self.writing():
            known = self._keys()
            counts: Counter[str] = Counter()
            errors: list[RowError] = []
            iterator, cancelled = iter(products), False
            unwritten = UnwrittenRows(self._table)
            try:
                while not (cancelled := _is_cancelled(cancel)):
                    batch = list(itertools.islice(iterator, BATCH_PRODUCTS))
                    if not batch:
                        break
                    if unwritten.holds(product["product_id"] for product in batch):
                        unwritten.write()
                    unwritten.add(*self._changed(batch, counts["done"], known, counts, errors, vectors))
                    counts["done"] += len(batch)
                    if progress is not None:
                        progress(counts["done"], total)
            finally:
                unwritten.write()
            self._refresh(bool(counts["added"] or counts["replaced"]))
        told = {name: counts[name] for name in ("added", "replaced", "unchanged", "encoded", "taken")}
        return Changes(**told, errors=tuple(errors), cancelled=cancelled)

    def delete(self, product_ids: Iterable[str]) -> int:
        """Delete products; ids that are not there are passed over.

        Returns:
            How many there were.

        Raises:
            ValueError: another writer is at work.
        """
        ids = sorted(set(product_ids))
        with self.writing():
            deleted = sum(
                self._table.delete(col("product_id").isin(ids[start : start + IDS_AT_ONCE])).num_deleted_rows
                for start in range(0, len(ids), IDS_AT_ONCE)
            )
            self._refresh(bool(deleted))
        return deleted

    def nearest(
        self,
        vectors: np.ndarray,
        k: int = 10,
        filters: Filters | None = None,
        view: str = "multimodal",
        exact: bool = False,
    ) -> list[list[tuple[str, float]]]:
        """The products nearest to vectors.

        Args:
            vectors: (Q, D) float32.
            k: products of each.
            filters: that products must pass; they are applied first, so k are found where so many pass.
            view: of the products, whose vectors are compared.
            exact: compare with all, also where an index for approximate search is there.

        Returns:
            For every vector, (product_id, cosine similarity) of each product, nearest first.

        Raises:
            ValueError: no such view, or vectors of another width.
        """
        column = vector_column(view)
        vectors = np.asarray(vectors, dtype=np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.manifest["dimension"]:
            raise ValueError(f"vectors are {vectors.shape}; give (Q, {self.manifest['dimension']})")
        expression = filters.expression() if filters else None
        if expression is None and not self.manifest["ann"] and self._in_memory.fit():
            return self._in_memory.nearest(vectors, k, view)

        def near(table: AsyncTable, vector: np.ndarray) -> AsyncVectorQuery:
            query = table.query().nearest_to(vector).column(column).distance_type("cosine").limit(k)
            query = query.select(["product_id", "_distance"])
            if expression is not None:
                query = query.where(expression)
            if exact:
                return query.bypass_vector_index()
            ann = self.manifest["ann"]
            return approximately(query, ann, expression is not None) if ann else query

        found = []
        for vector in vectors:
            table = self._reader.read(partial(near, vector=vector))
            similarities = (1.0 - table["_distance"].to_numpy()).tolist()
            found.append(list(zip(table["product_id"].to_pylist(), similarities, strict=True)))
        return found

    def with_words(self, text: str, k: int = 10, filters: Filters | None = None) -> list[tuple[str, float]]:
        """The products whose titles hold words of a text, by BM25.

        Args:
            text: any; nothing in it is an operator.
            k: products.
            filters: that products must pass.

        Returns:
            (product_id, score) of each product, best first; fewer than k where no more have any of the words.
        """
        if not any(letter.isalnum() for letter in text):
            return []
        expression = filters.expression() if filters else None

        def with_any(table: AsyncTable) -> AsyncFTSQuery:
            query = table.query().nearest_to_text(MatchQuery(text, "title")).limit(k).select(["product_id", "_score"])
            return query if expression is None else query.where(expression)

        table = self._reader.read(with_any)
        found = zip(table["product_id"].to_pylist(), table["_score"].to_pylist(), strict=True)
        return sorted(found, key=lambda hit: (-hit[1], hit[0]))  # equal ones come in any order

    def _keys(self) -> dict[str, tuple[bytes, bytes]]:
        """product_id -> keys of all of its row, and of what is encoded."""
        table = self._scan(["product_id", "content_key", "encoded_key"])
        keys = zip(table["content_key"].to_pylist(), table["encoded_key"].to_pylist(), strict=True)
        return dict(zip(table["product_id"].to_pylist(), keys, strict=True))

    def _changed(
        self,
        batch: Sequence[Mapping[str, Any]],
        first: int,
        known: dict[str, tuple[bytes, bytes]],
        counts: Counter[str],
        errors: list[RowError],
        vectors: WrittenVectors | None,
    ) -> tuple[list[dict[str, Any]], bool]:
        """The rows of a batch that are to be written, and whether one of them is there."""
        last = {product["product_id"]: first + place for place, product in enumerate(batch)}
        rows: list[dict[str, Any]] = []
        for number, product in enumerate(batch, start=first):
            if last[product["product_id"]] != number:
                continue
            try:
                row = product_row(product) | {"number": number}
            except ValueError as error:
                errors.append(RowError(number, str(product["product_id"] or ""), str(error)))
                continue
            if known.get(row["product_id"], ())[:1] == (row["content_key"],):
                counts["unchanged"] += 1
            else:
                rows.append(row)
        same = [row["product_id"] for row in rows if known.get(row["product_id"], ())[1:] == (row["encoded_key"],)]
        before = self.products(same, [*VECTOR_COLUMNS, "thumbnail"])
        taken = self._encode([row for row in rows if row["product_id"] not in before], errors, vectors)
        for row in rows:
            row |= before.get(row["product_id"], {})
        rows = [row for row in rows if vector_column("multimodal") in row]
        replaced = sum(row["product_id"] in known for row in rows)
        known.update((row["product_id"], (row["content_key"], row["encoded_key"])) for row in rows)
        encoded = len(rows) - len(before) - taken
        counts.update(added=len(rows) - replaced, replaced=replaced, encoded=encoded, taken=taken)
        return rows, replaced > 0

    def _encode(self, rows: Sequence[dict[str, Any]], errors: list[RowError], vectors: WrittenVectors | None) -> int:
        """Give rows a thumbnail and the vectors of their views; one that cannot be encoded gets none.

        Returns:
            Rows whose vectors were written before.
        """
        good = []
        for row in rows:
            try:
                row["thumbnail"] = make_thumbnail(row["images"][0]["bytes"]) if row["images"] else None
                good.append(row)
            except ValueError as error:
                errors.append(RowError(row["number"], row["product_id"], f"its picture: {error}"))
        taken = 0
        if vectors is not None:
            written = vectors.get([row["product_id"] for row in good], [row["encoded_key"].hex() for row in good])
            for row in good:
                row |= written.get(row["product_id"], {})
            taken, good = len(written), [row for row in good if row["product_id"] not in written]
        if not good:
            return taken
        try:
            self._give_vectors(good)
        except ValueError:  # one of them; which, is found alone
            for row in good:
                try:
                    self._give_vectors([row])
                except ValueError as error:
                    errors.append(RowError(row["number"], row["product_id"], str(error)))
        return taken

    def _give_vectors(self, rows: Sequence[dict[str, Any]]) -> None:
        views = self.encoder.encode_views([row_item(row) for row in rows], progress=False)
        for place, row in enumerate(rows):
            if not np.isfinite(views.multimodal[place]).all():
                raise ValueError(f"product {row['product_id']}: its vector is not finite; check the weights")
            row[vector_column("text")] = views.text[place] if views.has_text[place] else None
            row[vector_column("image")] = views.image[place] if views.has_image[place] else None
            row[vector_column("multimodal")] = views.multimodal[place]

    def _refresh(self, is_changed: bool) -> None:
        """Bring the indexes of the table up to what was written, and make those that are due, or that a run which was
        killed has left out.

        What partitions have not taken in is compared one by one, and every time they take in something, however
        little, all later searches look into one segment more; so neither is done for every addition.
        """
        there = {name for index in self._table.list_indices() for name in index.columns}
        ann = self.manifest["ann"]
        is_due = len(self) > self.ann_from and (ann is None or is_outgrown(self._table, ann))
        lacking = {"title", "product_id", "category_key"} - there if len(self) else set()
        is_listed = self.manifest["files"].keys() == lance_files(self.files).keys()
        if not (is_changed or is_due or lacking) and is_listed:
            return
        if is_due or ann is None or is_scattered(self._table):
            compact(self._table)  # first: it moves rows, and indexes after them
        if "title" in lacking:
            self._table.create_index("title", config=FTS(base_tokenizer="icu", remove_stop_words=False))
        for column in sorted(lacking - {"title"}):
            self._table.create_index(column, config=BTree())
        if is_due:
            self.manifest["ann"] = build_ann(self._table, {view: vector_column(view) for view in VIEWS}, SEARCHES)
        self._write_manifest()

    def _write_manifest(self) -> None:
        self.manifest["files"] = lance_checksums(self.files, self.manifest["files"])
        write_json(self.folder / MANIFEST, self.manifest)


def fingerprint_of(encoder: Encoder) -> str:
    """The fingerprint of an encoder's model and processor; see `encoder_fingerprint`."""
    return encoder_fingerprint(encoder.model, encoder.processor)


def _is_cancelled(cancel: Cancel | None) -> bool:
    if cancel is None:
        return False
    return cancel.is_set() if isinstance(cancel, threading.Event) else cancel()
