"""`moon2 index`: put a catalogue into the index of a data folder, bring it up to date, or give it another encoder."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from moon2_dataset.build.mapping import parse_columns
from moon2_dataset.recipe import RecipeParser
from moon2_dataset.row_errors import make_errors_folder
from moon2_training.encode import Encoder
from moon2_training.saved_encoder import load_encoder
from moon2_training.written_vectors import WrittenVectors

from .bundled_model import BUNDLED_MODEL
from .catalogue_folder import DATA_DIR, CatalogueFolder, data_folder
from .catalogue_index import CatalogueIndex, fingerprint_of
from .catalogue_source import CatalogueSource, Limits, RowError, errors_as_csv
from .index_manifest import OtherEncoderError
from .product_table import ProductTable, check_files, naming_damage

SHOWN_ERRORS = 10
LOOKED_UP = 64  # products of which an index is asked at once
OWNER_LIMITS = Limits(rows=None, file_bytes=None, unpacked_bytes=None, files=None)  # of who runs the command


@dataclass
class IndexArguments:
    """Options of `moon2 index [CATALOGUE]`.

    Raises:
        ValueError: nothing to do, or an argument that has no meaning.
    """

    catalogue: str | None = field(
        default=None,
        metadata={
            "help": "Products: a CSV, TSV, JSON Lines or Parquet file, a ZIP of pictures, a folder of tables or of "
            "pictures, or hf:OWNER/NAME[:SPLIT]. New products are added, changed ones replaced."
        },
    )
    model: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id of a MOON2.0 encoder; if not given, the one the index was made with, at first "
            "moon2-mini, which comes along."
        },
    )
    data_dir: str | None = field(
        default=None, metadata={"help": f"Folder of the index; {DATA_DIR}, or one for the user, if not given."}
    )
    columns: list[str] | None = field(
        default=None, metadata={"help": "Columns that are guessed wrong, such as title=Name images=img1,img2."}
    )
    image_root: str | None = field(
        default=None,
        metadata={"help": "Folder where relative image paths start; pictures outside it are not read. The folder of "
                  "the catalogue if not given."},
    )  # fmt: skip
    max_rows: int | None = field(default=None, metadata={"help": "Products to read at most; all if not given."})
    prune: bool = field(
        default=False, metadata={"help": "Delete products of the index that the catalogue no longer has."}
    )
    delete: list[str] | None = field(default=None, metadata={"help": "Ids of products to delete."})
    reindex: bool = field(
        default=False,
        metadata={"help": "Where the index was made with another encoder: encode its products with this one."},
    )
    vectors: str | None = field(
        default=None,
        metadata={"help": "What moon2 encode --views text image multimodal wrote with this encoder; products that are "
                  "unchanged since are not encoded again."},
    )  # fmt: skip
    check: bool = field(
        default=False, metadata={"help": "Compare all files of the index with their checksums, which reads it whole."}
    )
    errors: str | None = field(default=None, metadata={"help": "CSV file to write all row errors to."})

    def __post_init__(self):
        if not (self.catalogue or self.delete or self.reindex or self.check):
            raise ValueError("nothing to do; give a catalogue, --delete ID, --reindex true or --check true")
        if self.prune and not self.catalogue:
            raise ValueError("prune needs the catalogue that tells which products stay; give one")
        if self.vectors and not self.catalogue:
            raise ValueError("vectors are for the products of a catalogue; give one")
        if self.max_rows is not None and self.max_rows < 1:
            raise ValueError(f"max_rows={self.max_rows}; give 1 or more")
        if self.image_root is not None and not Path(self.image_root).is_dir():
            raise ValueError(f"image_root={self.image_root} is no folder")


def main(argv: Sequence[str] | None = None) -> None:
    """Run `moon2 index [CATALOGUE]`."""
    argv = list(argv or ())
    if argv and not argv[0].startswith("-"):
        argv[:1] = ["--catalogue", argv[0]]
    parser = RecipeParser(IndexArguments, prog="moon2 index", description="Put a catalogue into an index on disk.")
    (arguments,) = parser.parse_args_and_config(argv)
    begin = time.perf_counter()
    if arguments.errors:
        make_errors_folder(Path(arguments.errors))
    folder = CatalogueFolder(data_folder(arguments.data_dir))
    if arguments.check:
        if (current := folder.current()) is None:
            raise FileNotFoundError(f"{folder.folder}: no index there; make one with `moon2 index`")
        print(f"{check_files(current):,} files in {current} are as they were written")
        if not (arguments.catalogue or arguments.delete or arguments.reindex):
            return
    with naming_damage(folder.current() or folder.folder):
        index = open_with_model(folder, arguments.model, arguments.reindex)
        if arguments.delete:
            print(f"{index.delete(arguments.delete):,} products deleted")
        if arguments.catalogue:
            add_catalogue(arguments, folder, index)
        print(f"{len(index):,} products in {index.folder} ({time.perf_counter() - begin:.0f} s){_told_ann(index)}")


def open_with_model(folder: CatalogueFolder, model: str | None, reindex: bool = False) -> CatalogueIndex:
    """Open the index of a data folder with an encoder, or make the first one.

    Args:
        folder: the data folder.
        model: folder or Hub id of the encoder; None: the one the index was made with, the bundled one for a first.
        reindex: where the index was made with another encoder, encode its products anew.

    Raises:
        FileNotFoundError: no such model.
        OtherEncoderError: the index was made with another one.
    """
    made_with = folder.model()
    name = model or made_with or str(BUNDLED_MODEL)
    encoder = Encoder(*load_encoder(name))
    fingerprint = fingerprint_of(encoder)
    if not reindex or made_with is None:
        try:
            return folder.open_or_create(encoder, name, fingerprint)
        except OtherEncoderError as error:
            raise OtherEncoderError(f"{error}: --reindex true") from error
    old = ProductTable(folder.current())
    if old.manifest["fingerprint"] == fingerprint:
        return folder.open(encoder, fingerprint)
    check_files(old.folder)  # all of it is read anyway
    with Bar("encode") as bar:
        return folder.reindex(old, encoder, name, fingerprint, bar.update)


class Bar:
    """A tqdm bar that a `Progress` callback moves."""

    def __init__(self, label: str) -> None:
        self._bar = tqdm(desc=label, unit=" products")

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def update(self, done: int, total: int | None) -> None:
        """Show that so many are done, of so many if known."""
        self._bar.total = total
        self._bar.update(done - self._bar.n)


def add_catalogue(arguments: IndexArguments, folder: CatalogueFolder, index: CatalogueIndex) -> set[str]:
    """Add the catalogue of `arguments` to an index, and say what became of its rows.

    Returns:
        The ids of all its rows that can be read.

    Raises:
        FileNotFoundError, ValueError: it is no catalogue; see `CatalogueSource`.
    """
    given = parse_columns("columns", arguments.columns)
    root = arguments.image_root and Path(arguments.image_root)
    limits = replace(OWNER_LIMITS, rows=arguments.max_rows)
    with CatalogueSource(arguments.catalogue, folder.scratch, given, root, limits) as source:
        print("\n".join(source.explain()))
        there: set[str] = set()
        kept: list[str] = []
        vectors = None
        if arguments.vectors:
            manifest = index.manifest
            dtype = index.encoder.model.dtype
            vectors = WrittenVectors(arguments.vectors, manifest["fingerprint"], manifest["dimension"], dtype)
        with Bar("index") as bar:
            products = _to_add(source, index, there, kept)
            changes = index.add(products, bar.update, total=source.num_rows, vectors=vectors)
        errors = [*source.errors, *changes.errors]
    taken = f"{changes.taken:,} taken from {arguments.vectors}, " if arguments.vectors else ""
    print(
        f"{changes.added:,} added, {changes.replaced:,} replaced, {changes.unchanged:,} as before; "
        f"{taken}{changes.encoded:,} encoded"
    )
    if kept:
        print(f"{len(kept):,} products stay as they are, for a picture that they have cannot be opened now")
    _tell_errors(errors, arguments.errors)
    if source.is_cut:
        undeleted = ", and nothing deleted" if arguments.prune else ""
        print(
            f"not all of the catalogue was read{undeleted}, for it has over {arguments.max_rows:,} rows; "
            "raise --max_rows"
        )
    elif arguments.prune:
        named = there | {error.product_id for error in errors}  # a row that cannot be read now is no reason to delete
        print(f"{index.delete(set(index.ids()) - named):,} products deleted that the catalogue no longer has")
    return there


def _to_add(
    source: CatalogueSource, index: CatalogueIndex, ids: set[str], kept: list[str]
) -> Iterator[Mapping[str, Any]]:
    """Products of a catalogue, whose ids are noted, but those that would lose a picture, whose folder may be away."""
    given = iter(source)
    while products := list(itertools.islice(given, LOOKED_UP)):
        ids.update(product["product_id"] for product in products)
        unopened = [product["product_id"] for product in products if product["product_id"] in source.unopened]
        stored = index.products(unopened, ["images"]) if unopened else {}
        for product in products:
            there = stored.get(product["product_id"])
            if there is not None and len(there["images"]) > len(product["images"]):
                kept.append(product["product_id"])
            else:
                yield product


def _tell_errors(errors: Sequence[RowError], path: str | None) -> None:
    dropped = sum(error.dropped for error in errors)
    if errors:
        print(f"{dropped:,} rows left out, {len(errors) - dropped:,} with a loss:")
        print("\n".join(f"  {error.message}" for error in errors[:SHOWN_ERRORS]))
    if len(errors) > SHOWN_ERRORS:
        way = "all of them are in " + path if path else "--errors FILE.csv writes all of them"
        print(f"  … and {len(errors) - SHOWN_ERRORS:,} more; {way}")
    if path:
        Path(path).write_text(errors_as_csv(errors), encoding="utf-8", newline="")


def _told_ann(index: CatalogueIndex) -> str:
    ann = index.manifest["ann"]
    if ann is None:
        return "; search compares with all of them"
    shares = ", ".join(f"{view} {100 * recall:.1f} %" for view, recall in ann["recall@10"].items())
    return f"; approximate search finds of the ten nearest: {shares}"
