"""Products of Parquet files, a Lance table or a data set on the Hub, read in order, a few in memory at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from .data_files import table_files
from .rows import Rows, SchemaError
from .schema import conform_products, plain_type

Paths = str | os.PathLike | Sequence[str | os.PathLike]

COLUMNS = ("product_id", "title", "images")
READ_BYTES = 32 << 20  # of a file at once, roughly
MOST_ROWS = 1000  # at once
LANCE = ".lance"
NAMED = 5  # ids that a message lists


class Part(Protocol):
    """One file or table of a stream."""

    name: str
    num_rows: int
    fingerprint: str

    def tables(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Rows from `start` to `stop` with these columns, those of them that are there."""
        ...


class ParquetPart:
    """A Parquet file.

    Args:
        path: in the file system.
        name: what messages call it.
        files: the file system; None: the local one.

    Raises:
        SchemaError: it cannot be read as Parquet.
    """

    def __init__(self, path: str, name: str, files: AbstractFileSystem | None = None) -> None:
        self.path, self.name, self.files = path if files else os.path.abspath(path), name, files
        with self._open() as parquet:
            self.num_rows = parquet.metadata.num_rows
        if files is None:
            state = os.stat(self.path)
            self.fingerprint = f"{Path(path).resolve()} {state.st_size} {state.st_mtime_ns}"
        else:
            self.fingerprint = f"{path} {files.info(path)['size']}"  # the path of a file on the Hub names the commit

    def tables(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Rows from `start` to `stop`; row groups before and behind them are not read."""
        first = 0
        with self._open() as parquet:
            columns = [column for column in columns if column in parquet.schema_arrow.names]
            for group in range(parquet.num_row_groups):
                rows = parquet.metadata.row_group(group).num_rows
                if first < stop and start < first + rows:
                    yield from self._group(parquet, group, first, start, stop, columns)
                first += rows

    def _group(
        self, parquet: pq.ParquetFile, group: int, first: int, start: int, stop: int, columns: list[str]
    ) -> Iterator[pa.Table]:
        meta = parquet.metadata.row_group(group)
        size = max(1, min(MOST_ROWS, READ_BYTES * meta.num_rows // max(1, meta.total_byte_size)))
        try:
            for batch in parquet.iter_batches(size, row_groups=[group], columns=columns):
                batch.validate(full=True)  # texts that are none would stop whoever reads them
                table = pa.Table.from_batches([batch]).slice(max(0, start - first))
                table = table.slice(0, max(0, stop - max(first, start)))
                if len(table):
                    yield table
                first += batch.num_rows
                if first >= stop:
                    return
        except (pa.ArrowException, OSError) as error:
            raise SchemaError(
                f"{self.name}: rows from {first} on cannot be read ({error}); write the file again"
            ) from error

    def _open(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(
                self.path, filesystem=self.files, memory_map=self.files is None, page_checksum_verification=True
            )
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
            raise SchemaError(f"{self.name}: cannot be read as Parquet ({error}); write the file again") from error


class LancePart:
    """A Lance table, in the version it has now.

    Args:
        path: of the table's folder, NAME.lance.

    Raises:
        SchemaError: lancedb is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path.absolute(), path.name
        self.version: int | None = None
        self.version = self._table.version
        self.num_rows = self._table.count_rows()
        self.fingerprint = f"{path.resolve()} version {self.version}"

    def tables(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Rows from `start` to `stop`."""
        columns = [column for column in columns if column in self._table.schema.names]
        rows = MOST_ROWS if "images" not in columns else 1
        while start < stop:
            end = min(start + rows, stop, self.num_rows)
            if end <= start:
                return
            table = self._table.take_offsets(list(range(start, end))).select(columns).to_arrow()
            yield table.select(columns)
            start = end
            rows = max(1, min(MOST_ROWS, READ_BYTES * len(table) // max(1, table.nbytes)))

    @cached_property
    def _table(self) -> Any:
        try:
            import lancedb
        except ImportError as error:
            raise SchemaError(f'{self.name}: to read a Lance table, pip install "lancedb>=0.40"') from error
        table = lancedb.connect(self.path.parent).open_table(self.path.stem)
        if self.version is not None:  # in another process: the same rows
            table.checkout(self.version)
        return table

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_table"}


class ProductStream:
    """A catalogue in the products schema that is read in order, from any row on; it may be larger than memory.

    It can be pickled and read in another process that sees the same files.

    Args:
        paths: a Parquet file, a glob, a folder (its products*.parquet, or every Parquet file where none has such a
            name), NAME.lance, "hf:OWNER/NAME[:CONFIG][:SPLIT]" for a data set of Parquet files on the Hub, or a list
            of these.

    Attributes:
        parts: the files and tables.
        from_hub: whether one is of the Hub, whose paths of pictures are nothing on this machine.
        root: where relative paths of pictures start.
        num_rows: of all of them.
        fingerprint: changes when a file does.

    Raises:
        FileNotFoundError: there is nothing.
        SchemaError: a file cannot be read, has no products in it, or is a Lance table and lancedb is not installed.

    Example:
        >>> stream = ProductStream("shop/products-train.parquet")
        >>> for table in stream.tables(start=100_000):
        ...     print(table["title"][0])
    """

    def __init__(self, paths: Paths) -> None:
        given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        self.parts: list[Part] = [part for path in given for part in _parts(path)]
        self.from_hub = any(str(path).startswith("hf:") for path in given)
        if len({part.name for part in self.parts}) < len(self.parts):
            for part in self.parts:
                part.name = str(part.path)
        self.root = Path.cwd()
        self.num_rows = sum(part.num_rows for part in self.parts)
        told = "\n".join(part.fingerprint for part in self.parts)
        self.fingerprint = hashlib.blake2b(told.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
        if not self.num_rows:
            raise SchemaError(f"{', '.join(part.name for part in self.parts)}: no rows; give at least one")

    def place(self, row: int) -> str:
        """What messages call a row, e.g. "products.parquet row 18"."""
        return Rows([(part.name, part.num_rows) for part in self.parts], self.num_rows).place(row)

    def tables(self, start: int = 0, stop: int | None = None, columns: Sequence[str] = COLUMNS) -> Iterator[pa.Table]:
        """Read rows in order, a few at a time.

        Args:
            start, stop: of the rows, over all parts.
            columns: of the products schema.

        Yields:
            Tables with these columns as `conform_products` makes them; pictures stay {"bytes", "path"}.

        Raises:
            SchemaError: a column is missing or of another type, or a file is damaged.
        """
        stop, before = self.num_rows if stop is None else stop, 0
        for part in self.parts:
            if before < stop and start < before + part.num_rows:
                for table in part.tables(max(0, start - before), stop - before, columns):
                    plain = pa.schema([(field.name, plain_type(field.type)) for field in table.schema])
                    if "title" not in columns:  # which the schema asks for
                        plain, table = plain.append(_NO_TITLE), table.append_column(_NO_TITLE, _nulls(table))
                    yield conform_products(table.cast(plain), part.name).select(list(columns))
            before += part.num_rows

    def ids(self) -> Iterator[str]:
        """The ids of all products, in order; of a Parquet file nothing else is read."""
        for table in self.tables(columns=["product_id"]):
            yield from table["product_id"].to_pylist()

    def refuse_repeated_ids(self) -> None:
        """Look whether every product has an id, and one of its own; eight bytes a product are held.

        Raises:
            SchemaError: naming the rows and the ids.
        """
        hashes = np.fromiter(map(_hash, self.ids()), dtype=np.uint64, count=self.num_rows)
        ordered = np.sort(hashes)
        suspects = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
        blank = set(hashes[hashes == _hash("")].tolist())
        if not suspects and not blank:
            return
        first: dict[str, int] = {}
        repeated: dict[str, tuple[int, int]] = {}
        for row, product_id in enumerate(self.ids()):
            if not product_id.strip():
                raise SchemaError(f"{self.place(row)}: no product_id; give every product an id")
            if int(hashes[row]) in suspects and first.setdefault(product_id, row) != row:
                repeated.setdefault(product_id, (first[product_id], row))
        if repeated:
            product_id, (origin, row) = next(iter(repeated.items()))
            named = ", ".join(list(repeated)[:NAMED]) + ", …" * (len(repeated) > NAMED)
            others = f" ({len(repeated):,} such ids: {named})" if len(repeated) > 1 else ""
            raise SchemaError(
                f"{self.place(row)}: product_id {product_id} is already in {self.place(origin)}{others}; give every "
                "product an id of its own"
            )


_NO_TITLE = pa.field("title", pa.string())


def _nulls(table: pa.Table) -> pa.Array:
    return pa.nulls(len(table), pa.string())


def _hash(product_id: str) -> int:
    text = product_id.strip() and product_id
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _parts(path: str | os.PathLike) -> list[Part]:
    if isinstance(path, str) and path.startswith("hf:"):
        return hub_parts(path)
    if Path(path).suffix == LANCE and Path(path).is_dir():
        return [LancePart(Path(path))]
    return [ParquetPart(str(file), file.name) for file in table_files(path, "products")]


def hub_parts(spec: str) -> list[Part]:
    """The Parquet files of one split of a data set on the Hub, of which only the wanted columns are fetched.

    Args:
        spec: "hf:OWNER/NAME[:CONFIG][:SPLIT]". A single part after the name is a config if there is one of that
            name, else a split. A local folder with such files may stand for OWNER/NAME.

    Raises:
        FileNotFoundError: there is no such data set.
        SchemaError: it has several configs or splits, or no Parquet files.
    """
    name, *named = spec.removeprefix("hf:").split(":")
    try:
        configs = datasets.get_dataset_config_names(name)
        config = named.pop(0) if named and (named[0] in configs or len(named) == 2) else None
        if config is None and len(configs) > 1 and "default" not in configs:
            raise SchemaError(f"{spec}: configs {', '.join(configs)}; give one, e.g. hf:{name}:{configs[0]}")
        files = datasets.load_dataset_builder(name, config).config.data_files or {}
    except (OSError, datasets.exceptions.DatasetNotFoundError) as error:
        raise FileNotFoundError(f"{spec}: cannot be opened ({error})") from error
    split = named[0] if named else next(iter(files)) if len(files) == 1 else None
    if split not in files:
        splits = [str(split) for split in files]
        raise SchemaError(
            f"{spec}: splits {', '.join(splits)}; give one, e.g. hf:{name}:{splits[0] if splits else ''}"
        )
    if not all(str(file).endswith(".parquet") for file in files[split]):
        raise SchemaError(f"{spec}: not made of Parquet files; bring it into the products schema, moon2 build-dataset")
    parts: list[Part] = []
    for file in files[split]:
        system, inside = url_to_fs(str(file))
        local = "file" in system.protocol
        parts.append(ParquetPart(inside, f"{name}/{Path(inside).name}", None if local else system))
    return parts
