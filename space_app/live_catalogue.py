"""The catalogue of a running Space: what answers now, what is derived from it, and the work that changes it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moon2_training.encode import Encoder
from moon2_training.saved_encoder import load_encoder

from .bundled_model import lasting_name, model_place
from .catalogue_folder import CatalogueFolder
from .catalogue_index import CatalogueIndex, Changes, fingerprint_of
from .catalogue_source import CatalogueSource, Limits, RowError
from .refreshed import Refreshed
from .search import WORDS_WEIGHT, CatalogueSearch
from .shared_encoder import SharedEncoder
from .understand import CatalogueLabels

SHOWN_FINGERPRINT = 12  # of its 32 digits


@dataclass
class Job:
    """A change of the catalogue that is under way or over.

    Attributes:
        kind: "add" or "swap".
        done: products that are done.
        total: of so many, None where only reading tells.
        state: "running", "done", "cancelled" or "failed".
        message: what came of it.
        changes: what was added, where the kind is "add" and it is over.
        errors: of rows.
    """

    kind: str
    done: int = 0
    total: int | None = None
    state: str = "running"
    message: str = ""
    changes: Changes | None = None
    errors: list[RowError] = field(default_factory=list)
    _cancelled: threading.Event = field(default_factory=threading.Event, repr=False)
    _over: threading.Event = field(default_factory=threading.Event, repr=False)

    def cancel(self) -> None:
        """Ask it to stop; it does so before its next batch."""
        self._cancelled.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is over, or some seconds; whether it is over."""
        return self._over.wait(timeout)

    def moved(self, done: int, total: int | None) -> None:
        """As a `Progress` callback: so many are done."""
        self.done, self.total = done, total


class Answering(NamedTuple):
    """What answers at one moment; it is replaced as a whole, so an answer never mixes two models.

    Args:
        index: the catalogue.
        encoder: of it.
        hybrid: search that fuses words and vectors.
        vectors: search by vectors alone.
        labels: of the catalogue.
        average: of its vectors.
    """

    index: CatalogueIndex
    encoder: SharedEncoder
    hybrid: CatalogueSearch
    vectors: CatalogueSearch
    labels: Refreshed[CatalogueLabels]
    average: Refreshed[np.ndarray]

    @classmethod
    def of(cls, index: CatalogueIndex) -> Answering:
        """Both searches of an index with its encoder, and what is derived from it."""

        def labelled(labels: CatalogueLabels | None) -> CatalogueLabels:
            if labels is None:
                return CatalogueLabels(index.encoder, *index.labels())
            labels.update(*index.labels())
            return labels

        return cls(
            index,
            index.encoder,
            CatalogueSearch(index.encoder, index, WORDS_WEIGHT),
            CatalogueSearch(index.encoder, index, 0.0),
            Refreshed(lambda: index.version, labelled),
            Refreshed(lambda: index.version, lambda _: index.average()),
        )


class LiveCatalogue:
    """A data folder's catalogue that answers while it is changed. Safe to use from several threads.

    One change runs at a time, each in a thread of its own. Made by `open`.

    Args:
        folder: the data folder.
        index: that answers, with a `SharedEncoder`.
        models: folders or Hub ids of the encoders that may take over.
        limits: how much is read of a catalogue that is given.

    Raises:
        ValueError: two of the models have one name.

    Example:
        >>> catalogue = LiveCatalogue.open(CatalogueFolder(data_folder()), "moon2-mini")
        >>> job = catalogue.start_add("shop.csv")
        >>> job.wait(), job.message
        (True, '600 added, 0 replaced, 0 as before; 600 encoded')
    """

    def __init__(
        self,
        folder: CatalogueFolder,
        index: CatalogueIndex,
        models: Sequence[str] = (),
        limits: Limits = Limits(),  # noqa: B008, it is frozen
    ) -> None:
        self.folder = folder
        self.limits = limits
        self._models: dict[str, str] = {}  # name -> folder or Hub id
        for place in dict.fromkeys([index.manifest["model"], *map(lasting_name, models)]):
            if self._models.setdefault(model_name(place), place) != place:
                raise ValueError(f"two models are called {model_name(place)!r}; rename the folder of one")
        self.job: Job | None = None
        self._now = Answering.of(index)
        self._starting = threading.Lock()

    @classmethod
    def open(
        cls,
        folder: CatalogueFolder,
        model: str,
        models: Sequence[str] = (),
        limits: Limits = Limits(),  # noqa: B008, it is frozen
    ) -> LiveCatalogue:
        """Open the catalogue of a data folder, or make an empty one.

        Args:
            folder: the data folder.
            model: folder or Hub id of the encoder for a new catalogue; one that is there keeps its own.
            models: others that may take over.
            limits: how much is read of a catalogue that is given.

        Raises:
            FileNotFoundError: no such model.
        """
        place = folder.model() or model
        encoder = SharedEncoder(Encoder(*load_encoder(place)))
        index = folder.open_or_create(encoder, place, fingerprint_of(encoder))
        return cls(folder, index, [model, *models], limits)

    @property
    def now(self) -> Answering:
        """What answers now; take it once for each answer."""
        return self._now

    @property
    def models(self) -> list[str]:
        """Names of the encoders that may answer: ids on the Hub, or names of folders, nobody need know where."""
        return list(self._models)

    @property
    def model(self) -> str:
        """Name of the encoder that answers."""
        return model_name(self._now.index.manifest["model"])

    def labels(self) -> CatalogueLabels:
        """The category paths and attribute values that the catalogue knows.

        While another thread reads them anew, they are those of before the last change; so with `average`.
        """
        return self._now.labels.get()

    def average(self) -> np.ndarray:
        """(D,) mean of the catalogue's multimodal vectors; zeros where it is empty."""
        return self._now.average.get()

    def start_add(self, path: str | Path, replace_all: bool = False) -> Job:
        """Start to add the products of a catalogue; see `CatalogueSource` for what may be given.

        Args:
            path: a file, or "hf:OWNER/NAME".
            replace_all: delete products that the catalogue given does not have, once all of it has been read.

        Raises:
            ValueError: another change is under way.
        """

        def add(job: Job) -> None:
            index = self._now.index
            there: set[str] = set()
            with CatalogueSource(path, self.folder.scratch, limits=self.limits) as source:

                def noted():
                    for product in source:
                        there.add(product["product_id"])
                        yield product

                job.moved(0, source.num_rows)
                changes = index.add(noted(), job.moved, job._cancelled, source.num_rows)
                job.errors = [*source.errors, *changes.errors]
            job.changes = changes
            told = (
                f"{changes.added:,} added, {changes.replaced:,} replaced, {changes.unchanged:,} as before; "
                f"{changes.encoded:,} encoded"
            )
            if source.is_cut:
                told += f"; not all was read, for the catalogue has over {self.limits.rows:,} rows"
                told += "; nothing deleted" if replace_all else ""
            elif replace_all and there and not changes.cancelled:
                kept = there | {error.product_id for error in job.errors}  # unreadable now is no reason to delete
                told += f"; {index.delete(set(index.ids()) - kept):,} deleted"
            job.message = told
            job.state = "cancelled" if changes.cancelled else "done"

        return self._start("add", add)

    def put(self, products: Sequence[Mapping[str, Any]]) -> Changes:
        """Add or replace a few products, whose pictures were checked.

        Raises:
            ValueError: another change is under way.
        """
        return self._now.index.add(products)

    def delete(self, product_ids: Sequence[str]) -> int:
        """Delete products; how many there were.

        Raises:
            ValueError: another change is under way.
        """
        return self._now.index.delete(product_ids)

    def start_swap(self, model: str) -> Job:
        """Start to encode the catalogue with another model, which answers when all is done.

        Args:
            model: one of `models`.

        Raises:
            ValueError: it is none of them, it answers already, or another change is under way.
        """
        if model not in self._models:  # its code would be run
            raise ValueError(f"model {model[:200]!r} is not allowed here; choose one of {', '.join(self._models)}")
        if model == self.model:
            raise ValueError(f"model {model!r} answers already; choose another one")
        place = model_place(self._models[model])

        def swap(job: Job) -> None:
            job.moved(0, len(self._now.index))
            encoder = SharedEncoder(Encoder(*load_encoder(place)))
            index = self.folder.reindex(
                self._now.index, encoder, place, fingerprint_of(encoder), job.moved, job._cancelled
            )
            if index is None:
                job.state, job.message = "cancelled", "the model stays; the next swap to this one goes on from here"
                return
            self._now = Answering.of(index)
            job.state, job.message = "done", f"{len(index):,} products encoded; {model} answers"

        return self._start("swap", swap)

    def _start(self, kind: str, work: Callable[[Job], None]) -> Job:
        with self._starting:
            if self.job is not None and self.job.state == "running":
                raise ValueError("another change of the catalogue is under way; wait until it is done, or cancel it")
            job = self.job = Job(kind)

        def run() -> None:
            try:
                work(job)
            except Exception as error:  # whatever it is, who asked must learn of it
                job.message = str(error) or type(error).__name__
                job.state = "failed"
            finally:
                job._over.set()

        threading.Thread(target=run, name=f"catalogue-{kind}", daemon=True).start()
        return job


def model_name(model: str) -> str:
    """What a model is called: its id on the Hub, or the name of its folder."""
    return Path(model).name if Path(model).is_absolute() else model
