"""Which files `moon2 augment` takes: products to learn from, never those that a model is judged on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..data_files import is_held_out, split_of, table_files
from ..schema import OPTIONAL_PRODUCT_FEATURES, conform_products


def find_products(given: Sequence[str], allow_held_out: bool = False) -> tuple[list[Path], list[Path]]:
    """Find the products to augment.

    Args:
        given: files, globs and folders. Of a folder those to learn from are taken; a file or a glob is meant as it
            stands, so that one which is held out, or holds queries, is refused.
        allow_held_out: take what products are judged on too.

    Returns:
        The files, and those of the folders that were left out because they are held out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is held out or holds queries, a folder has nothing to learn from, or two files have one
            name.
    """
    files: list[Path] = []
    left_out: list[Path] = []
    for place in given:
        found = table_files(place, "products")
        if Path(place).is_dir():
            found = [file for file in found if not _is_queries(file)]
            held_out = [] if allow_held_out else [file for file in found if is_held_out(file)]
            if not found:
                raise FileNotFoundError(f"{place}: no Parquet file of products there; give a folder that has some")
            if len(held_out) == len(found):
                raise ValueError(
                    f"{place}: {', '.join(file.name for file in found)} are held out to be judged on, by their names, "
                    "and those are never augmented; give a folder with products-train*.parquet"
                )
            files += [file for file in found if file not in held_out]
            left_out += held_out
        else:
            for file in found:
                _refuse(file, allow_held_out)
            files += found
    for number, file in enumerate(files):
        if twin := next((other for other in files[:number] if other.name == file.name), None):
            raise ValueError(f"two files called {file.name}, {twin} and {file}; give each a name of its own, and once")
    return files, left_out


def open_products(source: Path) -> pq.ParquetFile:
    """Open a file of products and check its columns.

    Args:
        source: the file.

    Raises:
        ValueError: it is no Parquet, has no rows, or holds no products.
    """
    try:
        parquet = pq.ParquetFile(source, memory_map=True, page_checksum_verification=True)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{source}: cannot be read as Parquet ({error}); write the file again") from error
    if not parquet.metadata.num_rows:
        raise ValueError(f"{source}: no rows; give at least one")
    names = [name for name in parquet.schema_arrow.names if name not in OPTIONAL_PRODUCT_FEATURES]
    conform_products(parquet.schema_arrow.empty_table().select(names), source.name)  # refuses other tables
    return parquet


def _refuse(file: Path, allow_held_out: bool) -> None:
    if _is_queries(file):
        raise ValueError(f"{file}: holds queries, by its name; give products")
    if is_held_out(file) and not allow_held_out:
        raise ValueError(
            f"{file}: '{split_of(file)}' in its name says that products are judged on it, and those are never "
            "augmented; give the training split, or --allow_held_out true"
        )


def _is_queries(file: Path) -> bool:
    return file.name.startswith("queries")
