"""The data folder: which index answers now, and how one that another model makes takes its place."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

from moon2_training.evaluate import AnyEncoder

from .bundled_model import lasting_name, model_place
from .catalogue_index import Cancel, CatalogueIndex, Changes, Progress, fingerprint_of
from .index_manifest import read_manifest, write_json
from .product_table import ProductTable

DATA_DIR = "MOON2_DATA_DIR"
POINTER = "catalogue.json"
_INDEX_NAME = re.compile(r"index-[0-9a-f]{12}")


def data_folder(given: str | os.PathLike | None = None) -> Path:
    """The data folder: the one given, else what MOON2_DATA_DIR says, else moon2 in the user's folder for data."""
    if given or os.environ.get(DATA_DIR):
        return Path(given or os.environ[DATA_DIR])
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "moon2"


class CatalogueFolder:
    """A data folder with one catalogue. A small file in it names the index that answers; it is replaced as a whole.

    Args:
        folder: see `data_folder`; made where it is not there.

    Attributes:
        scratch: folder inside for what is unpacked.

    Example:
        >>> folder = CatalogueFolder(data_folder())
        >>> index = folder.open_or_create(encoder, "runs/mini")
        >>> index = folder.reindex(index, other_encoder, "runs/better")  # the old one answers until then
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.scratch = self.folder / "uploads"

    def current(self) -> Path | None:
        """Folder of the index that answers, or None before the first one.

        Raises:
            ValueError: the file that names it is damaged.
        """
        pointer = self.folder / POINTER
        if not pointer.is_file():
            return None
        try:
            name = json.loads(pointer.read_text(encoding="utf-8"))["index"]
            if not _INDEX_NAME.fullmatch(name):  # no other folder is opened, whoever wrote it
                raise ValueError(f"{name!r} is no name of an index")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{pointer}: damaged ({error}); delete it and index the catalogue again") from error
        return self.folder / name

    def model(self) -> str | None:
        """Folder or Hub id of the encoder that the index was made with; None before the first index.

        Raises:
            ValueError, FileNotFoundError: the index is damaged or gone.
        """
        current = self.current()
        return None if current is None else model_place(read_manifest(current)["model"])

    def open(self, encoder: AnyEncoder, fingerprint: str | None = None) -> CatalogueIndex:
        """Open the index that answers.

        Raises:
            FileNotFoundError: there is none.
            OtherEncoderError: it was made with another encoder.
        """
        current = self.current()
        if current is None:
            raise FileNotFoundError(f"{self.folder}: no index there; make one with `moon2 index`")
        return CatalogueIndex.open(current, encoder, fingerprint)

    def open_or_create(self, encoder: AnyEncoder, model: str = "", fingerprint: str | None = None) -> CatalogueIndex:
        """Open the index that answers, or make the first one.

        Args:
            encoder: of products and queries.
            model: folder or Hub id it was loaded from, for messages and for `model`.
            fingerprint: of the encoder; None: of its weights.

        Raises:
            OtherEncoderError: the index was made with another encoder.
        """
        fingerprint = fingerprint or fingerprint_of(encoder)
        if self.current() is not None:
            return self.open(encoder, fingerprint)
        index = self._open_at(self._folder_of(fingerprint), encoder, lasting_name(model), fingerprint)
        self._point_to(index)
        return index

    def reindex(
        self,
        index: ProductTable,
        encoder: AnyEncoder,
        model: str = "",
        fingerprint: str | None = None,
        progress: Progress | None = None,
        cancel: Cancel | None = None,
    ) -> CatalogueIndex | None:
        """Encode the catalogue of an index with another encoder, in a folder beside it, and let that one answer then.

        Meant to run in a thread of its own: the old index answers meanwhile, and may be changed; what was changed is
        brought over at the end, when other changes are refused. After a cancel or a crash the next call with the same
        encoder goes on where it stopped. The old index keeps its files until the next call, for queries that read it.

        Args:
            index: that answers now, or its products alone.
            encoder: the other one.
            model: folder or Hub id it was loaded from.
            fingerprint: of it; None: of its weights.
            progress: as in `CatalogueIndex.add`.
            cancel: as in `CatalogueIndex.add`.

        Returns:
            The new index, or None if it was cancelled.

        Raises:
            ValueError: the encoder is the one of the index, a product cannot be encoded, or another writer is at work.
        """
        fingerprint = fingerprint or fingerprint_of(encoder)
        target = self._folder_of(fingerprint)
        if target == index.folder:
            raise ValueError(
                f"{index.folder}: made with this encoder already; add to it, only what changed is encoded"
            )
        self._remove_others(index.folder, target)
        new = self._open_at(target, encoder, lasting_name(model), fingerprint)
        if _copy(index, new, progress, cancel).cancelled:
            return None
        with index.writing(wait=True):
            changes = _copy(index, new, None, cancel)
            if changes.cancelled:
                return None
            if changes.errors:
                raise ValueError(f"{changes.errors[0].message} ({len(changes.errors)} such); replace or delete them")
            new.delete(set(new.ids()) - set(index.ids()))
            self._point_to(new)
        return new

    def _folder_of(self, fingerprint: str) -> Path:
        return self.folder / f"index-{hashlib.blake2b(fingerprint.encode(), digest_size=6).hexdigest()}"

    def _open_at(self, folder: Path, encoder: AnyEncoder, model: str, fingerprint: str) -> CatalogueIndex:
        try:
            return CatalogueIndex.open(folder, encoder, fingerprint)
        except FileNotFoundError:
            return CatalogueIndex.create(folder, encoder, model, fingerprint)

    def _point_to(self, index: CatalogueIndex) -> None:
        write_json(self.folder / POINTER, {"index": index.folder.name})

    def _remove_others(self, *kept: Path) -> None:
        for folder in self.folder.glob("index-*"):
            if _INDEX_NAME.fullmatch(folder.name) and folder not in kept:
                shutil.rmtree(folder)


def _copy(index: ProductTable, new: CatalogueIndex, progress: Progress | None, cancel: Cancel | None) -> Changes:
    return new.add(index.stored(), progress, cancel, total=len(index))
