"""Parquet files, folders of images, folders that `datasets` saved, and data sets on the Hub, read row by row."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from .column_sample import IMAGE_SUFFIXES
from .raw_rows import RawRow

READ_BYTES = 32 << 20  # of a Parquet file or saved data set at once, roughly
MOST_BYTES = 8 * READ_BYTES  # where every row may point at the same large value of a dictionary
_CAMERA_NAME = re.compile(r"^(?:img|image|dsc[nf]?|pxl|photo|pic|screenshot|whatsapp image)?[\W\d_]*$", re.IGNORECASE)


class ParquetTable:
    """A Parquet file, of which only the wanted columns are read.

    Args:
        file: with any columns.
        name: what messages call it.

    Raises:
        ValueError: if it cannot be read as Parquet.
    """

    def __init__(self, file: Path, name: str) -> None:
        self.file, self.name, self.folder = file, name, file.parent
        self.counts: Counter[str] = Counter()
        try:
            with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
                self.num_rows = parquet.metadata.num_rows
                self.columns = list(dict.fromkeys(parquet.schema_arrow.names))
                groups = parquet.num_row_groups
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
            raise ValueError(f"{name}: cannot be read as Parquet ({error})") from error
        self.description = f"Parquet, {self.num_rows:,} rows in {groups} group{'s' * (groups != 1)}"

    def rows(self, start: int, columns: Sequence[str]) -> Generator[RawRow, None, int]:
        """Rows from `start` on with these columns; row groups before it are not read. Returns how many there are."""
        columns = [column for column in columns if column in self.columns]
        number = 0
        with pq.ParquetFile(self.file, page_checksum_verification=True) as parquet:
            for group in range(parquet.num_row_groups):
                meta = parquet.metadata.row_group(group)
                end = number + meta.num_rows
                if end > start:
                    for row in self._group(parquet, group, number, end, columns):
                        if row.number >= start:
                            yield row
                number = end
        return number

    def _group(
        self, parquet: pq.ParquetFile, group: int, number: int, end: int, columns: Sequence[str]
    ) -> Iterator[RawRow]:
        try:
            size = _rows_at_once(parquet.metadata.row_group(group), columns)
            for batch in parquet.iter_batches(size, row_groups=[group], columns=list(columns)):
                yield from _plain_rows(batch, number, self.name, self.folder)
                number += batch.num_rows
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:  # the other groups may be whole
            for lost in range(number, end):
                yield RawRow(lost, f"{self.name} row {lost}", {}, f"its row group cannot be read ({error})"[:200])


class SavedRows:
    """A data set that `datasets` saved with `save_to_disk`.

    Args:
        folder: of one split, or of a DatasetDict with a single split.

    Raises:
        ValueError: naming the splits, if there are several; it is damaged, or names files outside the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.name, self.folder = folder.name, folder
        self.counts: Counter[str] = Counter()
        try:
            data = datasets.load_from_disk(str(folder))
        except Exception as error:  # whatever stands in its JSON files
            raise ValueError(f"{folder}: cannot be read as saved by datasets ({error}); save it again") from error
        if isinstance(data, datasets.DatasetDict):
            if len(data) != 1:
                raise ValueError(
                    f"{folder}: splits {', '.join(data)}; give one of them, e.g. {folder / next(iter(data))}"
                )
            data = next(iter(data.values()))
        self.data = data.with_format("arrow")
        self.files = sorted({Path(part["filename"]) for part in data.cache_files})
        for file in self.files:
            if not file.resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"{folder}: its data would be read from {file}, outside the folder; save it again")
        self.columns, self.num_rows = list(data.column_names), len(data)
        self.description = f"saved by datasets, {self.num_rows:,} rows"

    def rows(self, start: int, columns: Sequence[str]) -> Generator[RawRow, None, int]:
        """Rows from `start` on with these columns. Returns how many there are."""
        data = self.data.select_columns([column for column in columns if column in self.columns])
        size = max(1, min(1000, READ_BYTES * len(data) // max(1, self.data.data.nbytes)))
        for first in range(start, len(data), size):
            table = data[first : first + size]
            number = first
            for batch in table.to_batches():
                yield from _plain_rows(batch, number, self.name, self.folder)
                number += batch.num_rows
        return len(data)


class HubRows:
    """One split of a data set on the Hub, streamed; only its Parquet, CSV, JSON or image files are read.

    Args:
        spec: "hf:OWNER/NAME[:CONFIG][:SPLIT]". A single part after the name is a config if there is one of that
            name, else a split. A local folder with such files may stand for OWNER/NAME.

    Raises:
        ValueError: naming the configs or splits to choose from.
    """

    def __init__(self, spec: str) -> None:
        name, *parts = spec.removeprefix("hf:").split(":")
        if not name or len(parts) > 2:
            raise ValueError(f"{spec}: give hf:OWNER/NAME, hf:OWNER/NAME:SPLIT or hf:OWNER/NAME:CONFIG:SPLIT")
        try:
            configs = datasets.get_dataset_config_names(name)
            config = parts.pop(0) if parts and (parts[0] in configs or len(parts) == 2) else None
            if config is None and len(configs) > 1 and "default" not in configs:
                raise ValueError(f"{spec}: configs {', '.join(configs)}; give one, e.g. hf:{name}:{configs[0]}")
            builder = datasets.load_dataset_builder(name, config)
        except (OSError, datasets.exceptions.DatasetNotFoundError) as error:
            raise ValueError(f"{spec}: cannot be opened ({error})") from error
        files = builder.config.data_files or {}
        splits = list(files) or list(builder.info.splits or {})
        split = parts[0] if parts else splits[0] if len(splits) == 1 else None
        if split not in splits:
            raise ValueError(f"{spec}: splits {', '.join(map(str, splits))}; give one, e.g. {spec}:{splits[0]}")
        self.data = builder.as_streaming_dataset(split=split)
        if self.data.features:
            pictures = any("Image(" in str(feature) for feature in self.data.features.values())
            self.data = self.data.decode(False) if pictures else self.data
        self.name, self.folder = f"{name}:{split}", None
        self.counts: Counter[str] = Counter()
        known = (builder.info.splits or {}).get(split)
        self.num_rows = known.num_examples if known is not None and known.num_examples else None
        self.columns = list(self.data.features or next(iter(self.data), {}))
        # The addresses of files on the Hub name the commit.
        self.fingerprint = hashlib.blake2b(f"{name} {split} {files.get(split)}".encode(), digest_size=16).hexdigest()
        self.description = f"streamed from {name}, split {split}"

    def rows(self, start: int, columns: Sequence[str]) -> Generator[RawRow, None, int]:
        """Rows from `start` on with these columns. Returns how many there are."""
        wanted = [column for column in columns if column in self.columns]
        number = start
        for values in self.data.skip(start) if start else self.data:
            values = {column: _fetched(values[column]) for column in wanted if column in values}
            yield RawRow(number, f"{self.name} row {number}", values)
            number += 1
        return number


class ImageFolder:
    """A folder of images: each is a product, sub-folders are its category path, the file name is its title.

    Args:
        folder: is walked in the order of names; links to folders are not followed.
    """

    columns = ["product_id", "title", "category_path", "images"]

    def __init__(self, folder: Path) -> None:
        self.name, self.folder = folder.name, folder
        self.counts: Counter[str] = Counter()
        digest, self.num_rows = hashlib.blake2b(str(folder.resolve()).encode("utf-8", "replace"), digest_size=16), 0
        others = 0
        for path in self._walk(folder):
            if path.suffix.casefold() not in IMAGE_SUFFIXES:
                others += 1
                continue
            state = path.stat()
            digest.update(f"{path}\0{state.st_size}\0{state.st_mtime_ns}\n".encode("utf-8", "replace"))
            self.num_rows += 1
        self.counts["not_an_image_file"] = others
        self.fingerprint = digest.hexdigest()
        left = f" ({others:,} other files are left out)" if others else ""
        self.description = f"{self.num_rows:,} images{left}"

    def rows(self, start: int, columns: Sequence[str]) -> Generator[RawRow, None, int]:
        """Rows from `start` on with these columns. Returns how many there are."""
        number = 0
        for path in self._walk(self.folder):
            if path.suffix.casefold() not in IMAGE_SUFFIXES:
                continue
            if number >= start:
                relative = path.relative_to(self.folder)
                stem = re.sub(r"[_\s]+", " ", relative.stem).strip()
                values = {
                    "product_id": relative.as_posix(),
                    "title": "" if _CAMERA_NAME.match(stem) else stem,  # IMG_0001 says nothing
                    "category_path": [re.sub(r"[_\s]+", " ", part) for part in relative.parent.parts],
                    "images": relative.as_posix(),
                }
                values = {column: values[column] for column in columns if column in values}
                yield RawRow(number, f"{self.name}/{relative.as_posix()}", values, folder=self.folder)
            number += 1
        return number

    def _walk(self, folder: Path) -> Iterator[Path]:
        with os.scandir(folder) as entries:
            found = sorted(
                (entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name
            )
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(Path(entry.path))
            elif entry.is_file():
                yield Path(entry.path)


def _rows_at_once(group: pq.RowGroupMetaData, columns: Sequence[str]) -> int:
    """Rows of a group that are safe to hold: a dictionary may hold one large value that a byte a row points at."""
    size = min(1000, READ_BYTES * group.num_rows // max(1, group.total_byte_size))
    for number in range(group.num_columns):
        chunk = group.column(number)
        if chunk.path_in_schema.partition(".")[0] in columns and any("DICT" in name for name in chunk.encodings):
            size = min(size, MOST_BYTES // max(1, chunk.total_uncompressed_size))
    return max(1, size)


def _plain_rows(batch: pa.RecordBatch, number: int, name: str, folder: Path | None) -> Iterator[RawRow]:
    """The rows of an Arrow batch; one that Python cannot hold (broken text, dates out of range) is an error."""
    try:
        rows = batch.to_pylist()
    except Exception:
        rows = None
    for index in range(batch.num_rows):
        place = f"{name} row {number + index}"
        try:
            values = rows[index] if rows is not None else batch.slice(index, 1).to_pylist()[0]
        except Exception as error:
            yield RawRow(number + index, place, {}, f"a value cannot be read ({error})"[:200])
        else:
            yield RawRow(number + index, place, values, folder=folder)


def _is_on_the_hub(path: str) -> bool:
    """Whether an address is a file on the Hub, maybe inside an archive there: never one of this machine or elsewhere.

    The rows of a data set may hold any address, and so may name files that only this machine can read.
    """
    *inner, last = path.split("::")
    return last.startswith("hf://") and all(part.startswith(("zip://", "tar://", "gzip://")) for part in inner)


def _fetched(value: Any) -> Any:
    """A streamed image with its bytes, where only the address of its file on the Hub came with it."""
    if isinstance(value, list):
        return [_fetched(part) for part in value]
    if isinstance(value, dict) and set(value) == {"bytes", "path"} and value["bytes"] is None:
        path = value["path"]
        if isinstance(path, str) and _is_on_the_hub(path):
            try:
                with fsspec.open(path, "rb") as stream:
                    return {"bytes": stream.read(), "path": path.rpartition("/")[2]}
            except Exception:  # whatever the file system of the address raises: counted as an image that is missing
                return value
    return value
