"""Put a data set on the Hub as a repository of its own, if its folder is sound, and nothing else that lies in it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, List
from huggingface_hub import HfApi

from .augment.report import SHEET as SHEET_OF_FOLDER
from .card import CONTACT_SHEET, SHEET_OF_AUGMENTED, write_dataset_card
from .construction import REPORT
from .croissant import CROISSANT, write_croissant
from .data_files import data_files, is_for_training
from .hub_card import CARD
from .hub_errors import one_line_errors
from .reader import load_products, load_queries
from .rows import Rows
from .schema import validate_queries

# Where the product is (core_region) may be told of what is judged on; what it shows and says may not be changed.
AUGMENTED = {
    "enriched_title": lambda titles: pc.not_equal(pc.utf8_trim_whitespace(titles), ""),
    "expanded_images": lambda pictures: pc.greater(pc.list_value_length(pictures), 0),
}
BESIDE_DATA = [CARD, CROISSANT, REPORT, CONTACT_SHEET, SHEET_OF_FOLDER, f"products*.parquet{SHEET_OF_AUGMENTED}"]


def push_dataset(folder: str | os.PathLike, repo: str, private: bool = False, license: str | None = None) -> str:
    """Check a data set's folder, write its card and croissant.json, and upload it.

    Only products*.parquet, queries*.parquet, the card, croissant.json, the build report and contact sheets are
    sent. Data files that the folder no longer has are removed from the repository.

    Args:
        folder: as `moon2 build-dataset` or `moon2 augment` leaves it.
        repo: repository on the Hub, OWNER/NAME or NAME; made if it is not there.
        private: make the repository private; one that is there and public is refused.
        license: see `write_dataset_card`.

    Returns:
        Address of the repository.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder is not sound, which shows before anything is sent, or the Hub refuses.
    """
    folder = Path(folder)
    files = check_dataset_folder(folder)
    write_dataset_card(folder, repo, license)
    with one_line_errors(repo):
        api = HfApi(token=True)
        url = api.create_repo(repo, repo_type="dataset", private=private or None, exist_ok=True)
        if private and not api.dataset_info(url.repo_id).private:
            raise ValueError(f"{url} is there and public; make it private in its settings, or drop --private")
        if url.repo_id != repo:  # the Hub has put the owner before a bare NAME
            write_dataset_card(folder, url.repo_id, license)
        write_croissant(folder, url.repo_id)
        api.upload_folder(
            repo_id=url.repo_id,
            repo_type="dataset",
            folder_path=folder,
            commit_message="Upload data set",
            allow_patterns=[*(file.name for file in files), *BESIDE_DATA],
            delete_patterns=["products*.parquet", "queries*.parquet"],  # of an earlier build, in other parts
        )
    return str(url)


def check_dataset_folder(folder: Path) -> list[Path]:
    """Check every row of a data set's folder as training would, and that what is judged on was not augmented.

    Args:
        folder: with products*.parquet and queries*.parquet.

    Returns:
        The data files.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: naming file, row and way out.
    """
    tables = data_files(folder)
    for split, files in tables["queries"].items():
        if split not in tables["products"]:
            raise ValueError(f"{files[0]}: queries of split {split}, but no products of it; give both one split")
    for split, files in tables["products"].items():
        products = load_products(files)
        for column in ("images", "expanded_images"):
            _refuse_pictures_elsewhere(products, column, files)
        if not is_for_training(split):
            _refuse_augmented(products, files, split)
        if asked := tables["queries"].get(split):
            queries = validate_queries(load_queries(asked), products, _names(asked))
            _refuse_pictures_elsewhere(queries, "image", asked)
    return [file for splits in tables.values() for files in splits.values() for file in files]


def _refuse_pictures_elsewhere(table: Dataset, column: str, files: Sequence[Path]) -> None:
    """Pictures that are a path without bytes would stay on this machine."""
    if column not in table.column_names:
        return
    values, rows = _column(table, column), _rows(files)
    way_out = "put the picture's bytes into the table, as `moon2 build-dataset` does"
    if isinstance(table.features[column], List):
        bare = pc.struct_field(pc.list_flatten(values), "bytes").is_null().to_numpy()
        rows.refuse_entries(column, values, bare, "is a path without bytes", way_out)
    else:
        bare = pc.and_(values.is_valid(), pc.struct_field(values, "bytes").is_null()).to_numpy()
        rows.refuse(bare, f"{column} is a path without bytes", way_out)


def _refuse_augmented(products: Dataset, files: Sequence[Path], split: str) -> None:
    for column, is_filled in AUGMENTED.items():
        if column in products.column_names:
            _rows(files).refuse(
                is_filled(_column(products, column)).to_numpy(),
                f"{column} is filled, but {split} is held out to be judged on, and that is never augmented",
                "drop the column there, or call the split train",
            )


def _column(table: Dataset, column: str) -> pa.ChunkedArray:
    return table.select_columns([column]).with_format("arrow")[:][column]


def _rows(files: Sequence[Path]) -> Rows:
    names = _names(files)
    return Rows(names, sum(number for _, number in names))


def _names(files: Sequence[Path]) -> list[tuple[str, int]]:
    return [(file.name, pq.read_metadata(file).num_rows) for file in files]
