"""The products of an index on disk, as a LanceDB table that needs no encoder to be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from traceback import extract_tb
from typing import Any, NamedTuple

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock, Timeout
from lancedb.expr import Expr, col
from lancedb.query import AsyncQuery
from lancedb.table import AsyncTable

from moon2_dataset.disk_errors import naming, told_of_disk
from moon2_training.checksums import check_lance, lance_files
from moon2_training.vector_columns import vector_column

from .index_manifest import read_manifest
from .indexed_rows import PRODUCT_COLUMNS, SHOWN_COLUMNS, row_schema
from .refreshed import Refreshed
from .table_reader import TableReader

TABLE = "products"
ADDRESS = "_rowaddr"  # what LanceDB calls the place of a row
FRESHNESS = timedelta(seconds=5)  # after which `version` tells of another process's changes


class Facets(NamedTuple):
    """What can be filtered by.

    Args:
        categories: category path, and every path above it -> products.
        attributes: name -> value -> products, the commonest first.
    """

    categories: dict[tuple[str, ...], int]
    attributes: dict[str, dict[str, int]]


class RowVectors(NamedTuple):
    """The vectors of a view, and in which rows they stand.

    Args:
        read: (M,) uint64 addresses of all rows that were read, also of those that lack the view.
        rows: (N,) uint64 addresses of those that have it.
        ids: of their products.
        vectors: (N, D) float32, normalised.
    """

    read: np.ndarray
    rows: np.ndarray
    ids: list[str]
    vectors: np.ndarray


class ProductTable:
    """The products of an index; `len()` is their number.

    Args:
        folder: of the index.
        manifest: of it; None: read from there.

    Raises:
        FileNotFoundError: there is no index.
        ValueError: it is damaged.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any] | None = None) -> None:
        self.folder, self.files = folder, folder / f"{TABLE}.lance"
        self.manifest = read_manifest(folder) if manifest is None else manifest
        self._lock = FileLock(folder / ".lock")
        session = lancedb.Session()
        database = lancedb.connect(folder, read_consistency_interval=FRESHNESS, session=session)
        schema = row_schema(self.manifest["dimension"])
        with naming(folder):
            self._table = database.create_table(TABLE, schema=schema, exist_ok=True)
            self._reader = TableReader(folder, TABLE, session)
        self._facets = Refreshed(lambda: self.version, lambda _: self._count())

    def __len__(self) -> int:
        return self._table.count_rows()

    @property
    def version(self) -> int:
        """A number that changes whenever the table does."""
        return self._table.version

    def ids(self) -> list[str]:
        """The ids of all products."""
        return self._scan(["product_id"])["product_id"].to_pylist()

    def products(
        self, product_ids: Sequence[str], columns: Sequence[str] = SHOWN_COLUMNS
    ) -> dict[str, dict[str, Any]]:
        """Rows of products by their id; one that is not there is left out.

        Args:
            product_ids: which.
            columns: of the table: those of the products schema (images as {"bytes", "path"}), thumbnail (WebP bytes
                or None), and text_vector, image_vector, multimodal_vector.
        """
        wanted = list(dict.fromkeys(["product_id", *columns]))
        ids = list(dict.fromkeys(product_ids))
        if not ids:
            return {}
        table = self._scan(wanted, col("product_id").isin(ids))
        return {row["product_id"]: row for row in table.to_pylist()}

    def stored(self, batch_size: int = 64) -> Iterator[dict[str, Any]]:
        """All products in the products schema with their pictures, a few at a time in memory."""
        ids = self.ids()
        for start in range(0, len(ids), batch_size):
            yield from self.products(ids[start : start + batch_size], PRODUCT_COLUMNS).values()

    def vectors(self, view: str = "multimodal") -> tuple[list[str], np.ndarray]:
        """Ids of the products that have a view, and their vectors (N, D) float32, normalised.

        Raises:
            ValueError: no such view.
        """
        found = self.row_vectors(view)
        return found.ids, found.vectors

    def row_vectors(self, view: str, product_ids: Sequence[str] | None = None) -> RowVectors:
        """The vectors of a view with the addresses of their rows.

        Args:
            view: which.
            product_ids: of these products alone; None: of all.

        Raises:
            ValueError: no such view.
        """
        column = vector_column(view)
        where = None if product_ids is None else col("product_id").isin(list(product_ids))
        read, rows, ids = [np.empty(0, dtype=np.uint64)], [np.empty(0, dtype=np.uint64)], []
        blocks = [np.empty((0, self.manifest["dimension"]), dtype=np.float32)]
        for batch in self._reader.batches(_query(["product_id", column, ADDRESS], where)):
            read.append(batch[ADDRESS].to_numpy())
            there = batch.filter(batch[column].is_valid()) if batch[column].null_count else batch
            rows.append(there[ADDRESS].to_numpy())
            ids += there["product_id"].to_pylist()
            blocks.append(self._block(there[column]))
        return RowVectors(np.concatenate(read), np.concatenate(rows), ids, np.concatenate(blocks))

    def rows(self) -> tuple[np.ndarray, pa.ChunkedArray]:
        """(M,) uint64 addresses of all rows, and the ids of their products.

        A row keeps its address as long as it is as it was; one that is replaced, or moved by `optimize`, gets an
        address that none had before.
        """
        table = self._scan([ADDRESS, "product_id"])
        return table[ADDRESS].to_numpy(), table["product_id"]

    def average(self) -> np.ndarray:
        """(D,) float32 mean of all multimodal vectors; zeros where there is no product."""
        column = vector_column("multimodal")
        total, products = np.zeros(self.manifest["dimension"]), 0  # (D,)
        for batch in self._reader.batches(_query([column])):
            block = self._block(batch[column])
            total += block.sum(0, dtype=np.float64)
            products += len(block)
        return (total / max(products, 1)).astype(np.float32)

    def facets(self) -> Facets:
        """What can be filtered by, counted over all products.

        While another thread counts them anew, they are those of before the last change.
        """
        return self._facets.get()

    def labels(self) -> tuple[list[tuple[str, ...]], list[list[dict[str, str]]]]:
        """The distinct category paths of all products, and the attributes of every product."""
        table = self._scan(["category_path", "attributes"])
        return list(_counted_paths(table["category_path"])), table["attributes"].to_pylist()

    @contextmanager
    def writing(self, wait: bool = False) -> Iterator[None]:
        """Keep other writers out, of this process and of others; `add` and `delete` do so themselves.

        Args:
            wait: until another writer is done.

        Raises:
            ValueError: another writer is at work.
        """
        try:
            with naming(self.folder), self._lock.acquire(timeout=-1 if wait else 0):
                self._table.checkout_latest()
                yield
        except Timeout as error:
            raise ValueError(f"{self.folder}: another writer is at work; wait until it is done") from error

    def _count(self) -> Facets:
        table = self._scan(["category_path", "attributes"])
        categories: Counter[tuple[str, ...]] = Counter()
        for path, products in _counted_paths(table["category_path"]).items():
            for depth in range(1, len(path) + 1):
                categories[path[:depth]] += products
        pairs = pc.list_flatten(table["attributes"])
        attributes: dict[str, Counter[str]] = {}
        for (name, value), products in _counted([pc.struct_field(pairs, part) for part in ("name", "value")]).items():
            attributes.setdefault(name, Counter())[value] = products
        counted = {name: dict(values.most_common()) for name, values in sorted(attributes.items())}
        return Facets(dict(sorted(categories.items())), counted)

    def _block(self, vectors: pa.FixedSizeListArray) -> np.ndarray:
        """(n, D) float32: those that are there."""
        return vectors.drop_null().flatten().to_numpy().reshape(-1, self.manifest["dimension"])

    def _scan(self, columns: list[str], where: Expr | None = None) -> pa.Table:
        return self._reader.read(_query(columns, where))


def _query(columns: Sequence[str], where: Expr | None = None) -> Callable[[AsyncTable], AsyncQuery]:
    def query(table: AsyncTable) -> AsyncQuery:
        everything = table.query().select(list(columns))
        return everything if where is None else everything.where(where)

    return query


def _counted_paths(paths: pa.ChunkedArray) -> dict[tuple[str, ...], int]:
    """How often each list of texts occurs; the empty one is left out."""
    depths = pc.list_value_length(paths)
    counts: dict[tuple[str, ...], int] = {}
    for depth in filter(None, pc.unique(depths).to_pylist()):
        of_depth = paths.filter(pc.equal(depths, depth))
        counts |= _counted([pc.list_element(of_depth, level) for level in range(depth)])
    return counts


def _counted(columns: Sequence[pa.ChunkedArray]) -> dict[tuple[Any, ...], int]:
    """How often each row of columns occurs, in the order of their first."""
    names = list(map(str, range(len(columns))))
    groups = pa.table(list(columns), names).group_by(names, use_threads=False).aggregate([([], "count_all")])
    rows = zip(*(groups[name].to_pylist() for name in names), strict=True)
    return dict(zip(rows, groups["count_all"].to_pylist(), strict=True))


def check_files(folder: Path, most_bytes: int | None = None) -> int:
    """Compare the files of an index with their checksums, all of which are read; LanceDB keeps none itself.

    Args:
        folder: of the index.
        most_bytes: pass over an index that is larger.

    Returns:
        How many files were compared.

    Raises:
        FileNotFoundError: there is no index.
        ValueError: one is damaged; names it.
    """
    checksums, table = read_manifest(folder)["files"], folder / f"{TABLE}.lance"
    if most_bytes is not None and sum(file.stat().st_size for file in lance_files(table).values()) > most_bytes:
        return 0
    check_lance(table, checksums, "index the catalogue again in another data folder")
    return len(checksums)


@contextmanager
def naming_damage(folder: Path) -> Iterator[None]:
    """Say of what LanceDB raises over a damaged index which file it is.

    Args:
        folder: of the index.

    Raises:
        ValueError: instead of what LanceDB raises.
    """
    try:
        yield
    except Exception as error:
        if not any("lancedb" in Path(frame.filename).parts for frame in extract_tb(error.__traceback__)):
            raise
        if told_of_disk(error) is not None:
            raise
        check_files(folder)
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder}: cannot be read ({reason}); index the catalogue again") from error
