"""A catalogue that somebody gave → products one by one, within limits, and an error for every row that is none."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from moon2_dataset.build.clean import DROP_REASONS, NOTE_REASONS, Cleaned, clean_id, clean_product
from moon2_dataset.build.image_root import ImageRoot
from moon2_dataset.build.mapping import Column
from moon2_dataset.build.picture_addresses import picture_addresses
from moon2_dataset.build.pictures import MISSING, NOT_FETCHED
from moon2_dataset.build.raw_rows import RawRow
from moon2_dataset.build.sources import FORMATS, Source, open_source
from moon2_dataset.build.tables import ImageFolder
from moon2_dataset.row_errors import RowError, errors_as_csv

from .zip_pictures import unpack

__all__ = ["CatalogueSource", "Limits", "RowError", "check_hub_name", "errors_as_csv"]

MAX_SIDE = 512  # pixels; longer pictures are made smaller
MAX_MESSAGE = 400  # characters
CHUNK = 1 << 20
_PART_OF_HUB_NAME = re.compile(r"[\w.-]{1,96}", re.ASCII)


@dataclass(frozen=True)
class Limits:
    """How much of a catalogue is read: by default as much as a stranger may ask for. None is no limit.

    Args:
        rows: products; what comes after is left out, with an error that says so.
        file_bytes: of the file that is given.
        unpacked_bytes: of what a ZIP, a gzipped or a Parquet file unpacks to.
        files: in a ZIP.
        ratio: of unpacked to packed size of a file in a ZIP, from the size on where it matters.
        pixels: of a picture; one with more is not decoded.
    """

    rows: int | None = 100_000
    file_bytes: int | None = 512 << 20
    unpacked_bytes: int | None = 4 << 30
    files: int | None = 100_000
    ratio: int = 200
    pixels: int = 50_000_000


class CatalogueSource:
    """Products of a catalogue that somebody gave, who need not be trusted: iterate over it, once or more often.

    Reading never raises for a row: what is wrong with one goes to `errors`. Files are read in the given folder alone,
    whatever paths and links say, and nothing is fetched from the web but a data set that is named. Used as a context
    manager it deletes what it unpacked.

    Args:
        path: a CSV, TSV, JSON Lines or Parquet file, a folder with such files or with pictures, a ZIP of pictures or
            of a table and pictures, or a data set on the Hub as "hf:OWNER/NAME[:CONFIG][:SPLIT]". Of a picture without
            a table the name without suffix is the id and the title, folders are the category path.
        scratch: folder to unpack in.
        columns: field -> column for what the guess gets wrong; see `open_source`.
        image_root: folder where relative image paths start, and the only one that pictures are read from; None:
            the folder of the file.
        limits: how much is read.

    Attributes:
        errors: of the last reading, in order.
        num_rows: how many rows there are, or None where only reading tells.
        is_cut: whether the last reading ended at the limit of rows, before the last row.
        unopened: ids of the products, as far as read, with a picture whose file cannot be opened.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: it is no catalogue, not safe to unpack, or too large; the message says the way out.

    Example:
        >>> with CatalogueSource("shop.csv", scratch=Path("uploads")) as source:
        ...     changes = index.add(source)
        >>> source.errors
        [RowError(row=4, product_id='17', message='shop.csv line 6: neither a title nor a picture …', dropped=True)]
    """

    def __init__(
        self,
        path: str | os.PathLike,
        scratch: Path,
        columns: Mapping[str, str | Sequence[Column]] | None = None,
        image_root: Path | None = None,
        limits: Limits = Limits(),  # noqa: B008, it is frozen
    ) -> None:
        self.limits = limits
        self.errors: list[RowError] = []
        self.is_cut = False
        self.unopened: set[str] = set()
        self._unpacked: Path | None = None
        self._before: list[RowError] = []  # what unpacking found
        try:
            self._source = self._open(path, Path(scratch), columns)
            self._image_root = image_root and ImageRoot(image_root, picture_addresses(self._source, "images"))
        except BaseException:
            self.close()
            raise
        self.num_rows = self._source.num_rows
        if self.num_rows is not None and limits.rows is not None:
            self.num_rows = min(self.num_rows, limits.rows)

    def __enter__(self) -> CatalogueSource:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Delete what was unpacked."""
        if self._unpacked is not None:
            shutil.rmtree(self._unpacked, ignore_errors=True)
            self._unpacked = None

    def explain(self) -> list[str]:
        """Lines that tell what the source is and which column was taken for what, and why."""
        return self._source.explain()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.errors, self.is_cut, self.unopened = list(self._before), False, set()
        seen: set[str] = set()
        mapping = self._source.mapping
        rows = (row for batch in self._source.batches(size=100) for row in batch)
        for count, row in enumerate(rows):
            if self.limits.rows is not None and count >= self.limits.rows:
                message = f"over {self.limits.rows:,} rows; the rest is left out: give the catalogue in parts"
                self.errors.append(RowError(row.number, "", message))
                self.is_cut = True
                return
            within = self._image_root.folder if self._image_root else row.folder or self._nowhere
            cleaned = clean_product(row, mapping, self._image_root, MAX_SIDE, within, self.limits.pixels)
            if not isinstance(cleaned, Cleaned):
                told = _told(row.place, DROP_REASONS.get(cleaned.reason_code, cleaned.reason_code), cleaned.detail)
                self.errors.append(RowError(row.number, _id_of(row, mapping), told))
                continue
            product = cleaned.product
            if self._is_pictures:
                product["product_id"] = str(PurePosixPath(product["product_id"]).with_suffix(""))
            product_id = product["product_id"]
            if product_id in seen:
                told = _told(row.place, "an earlier row has this product_id and stays; give every product its own")
                self.errors.append(RowError(row.number, product_id, told))
                continue
            seen.add(product_id)
            for code, detail in cleaned.notes:
                told = _told(row.place, NOTE_REASONS.get(code, code), detail)
                self.errors.append(RowError(row.number, product_id, f"{told}; the product stays", dropped=False))
                if code in (MISSING, NOT_FETCHED):
                    self.unopened.add(product_id)
            yield product

    def _open(
        self, path: str | os.PathLike, scratch: Path, columns: Mapping[str, str | Sequence[Column]] | None
    ) -> Source:
        scratch.mkdir(parents=True, exist_ok=True)
        self._nowhere = scratch / ".nowhere"  # is not made: data of the Hub bring their pictures as bytes
        if isinstance(path, str) and path.startswith("hf:"):
            check_hub_name(path)
            self._is_pictures = False
            return open_source(path, columns)
        if "://" in str(path):
            raise ValueError(f"{str(path)[:200]}: addresses are not fetched; download the file and give it")
        place = Path(path)
        if not place.exists():
            raise FileNotFoundError(
                f"{str(path)[:200]}: no such file; give a file, a folder, or hf:OWNER/NAME for a data set on the Hub"
            )
        if place.is_file():
            self._check_size(place)
            if place.suffix.casefold() == ".zip":
                self._unpacked = Path(tempfile.mkdtemp(dir=scratch, prefix="zip-"))
                inside = self._unpacked / (re.sub(r"[^\w-]+", "_", place.stem)[:80] or "zip")  # as messages call it
                inside.mkdir()
                self._before = [RowError(number, "", told) for number, told in unpack(place, inside, self.limits)]
                place = _innermost(inside)
        source = open_source(place, columns)
        self._is_pictures = isinstance(source.parts[0], ImageFolder)
        return source

    def _check_size(self, file: Path) -> None:
        size, most = file.stat().st_size, self.limits.file_bytes
        if most is not None and size > most:
            raise ValueError(f"{file.name}: {size >> 20:,} MB; give a file of at most {most >> 20:,} MB")
        suffixes = [suffix.casefold() for suffix in file.suffixes[-2:]]
        if suffixes[-1:] == [".zip"]:
            return
        packed = suffixes[-1:] == [".gz"]
        if (suffixes[-2] if packed and len(suffixes) > 1 else suffixes[-1] if suffixes else "") not in FORMATS:
            raise ValueError(
                f"{file.name}: no known format; give {', '.join(FORMATS)} (text files may be .gz) or .zip"
            )
        most = self.limits.unpacked_bytes
        if most is not None and (_gzip_size(file, most) if packed else _parquet_size(file)) > most:
            raise ValueError(f"{file.name}: unpacks to over {most >> 20:,} MB; give a smaller file, or several")


def check_hub_name(name: str) -> None:
    """Check that "hf:OWNER/NAME[:CONFIG][:SPLIT]" can be nothing else than a data set on the Hub.

    Raises:
        ValueError: it is no such name, or a folder of this machine stands there under it.
    """
    shown = repr(name[:200])
    repo, *parts = name.removeprefix("hf:").split(":")
    owner, _, rest = repo.partition("/")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"{shown}: no name of a data set on the Hub; give hf:OWNER/NAME") from error
    named = [owner, rest, *parts]
    if len(parts) > 2 or not all(_PART_OF_HUB_NAME.fullmatch(part) and part.strip(".") for part in named):
        raise ValueError(f"{shown}: no name of a data set on the Hub; give hf:OWNER/NAME[:CONFIG][:SPLIT]")
    if Path(repo).exists():
        raise ValueError(f"{shown}: a folder of this machine has that name; give its path, or start elsewhere")


def _told(place: str, reason: str, detail: str = "") -> str:
    told = f"{place}: {reason}" + (f" ({detail})" if detail else "")
    return told if len(told) <= MAX_MESSAGE else f"{told[:MAX_MESSAGE]}…"


def _id_of(row: RawRow, mapping: Mapping[str, Sequence[Column]]) -> str:
    return next((found for column in mapping.get("product_id", ()) if (found := clean_id(row.values.get(column)))), "")


def _innermost(folder: Path) -> Path:
    """The folder itself, or the one it holds and nothing else, as ZIPs of a whole folder do."""
    while len(entries := list(folder.iterdir())) == 1 and entries[0].is_dir():
        folder = entries[0]
    return folder


def _gzip_size(file: Path, limit: int) -> int:
    """Bytes that a gzipped file unpacks to, or a number over `limit` as soon as that is sure."""
    size = 0
    try:
        with gzip.open(file) as stream:
            while size <= limit and (chunk := stream.read(CHUNK)):
                size += len(chunk)
    except (OSError, EOFError, zlib.error):  # what could be read is read, and the damage told then
        pass
    return size


def _parquet_size(file: Path) -> int:
    """Bytes that the columns of a Parquet file unpack to, as its footer says; 0 for other files."""
    if file.suffix.casefold() not in (".parquet", ".pq"):
        return 0
    try:
        metadata = pq.read_metadata(file)
    except Exception:  # whatever is wrong with it, opening it says so
        return 0
    return sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
