"""Encode many items: batches of similar length, prepared by threads ahead of the model, results in the order given."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import send_to_device
from tqdm.auto import tqdm
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from modeling_moon2 import Moon2Routing

from .batch_inputs import Batch, BatchInputs, Loss, ahead
from .non_finite import check_vectors

VIEWS = ("text", "image", "multimodal")
BATCHES_PER_WINDOW = 64  # items are sorted by length within a window, so that reading stays nearly sequential
SMALL_MODEL = 200_000_000  # parameters
MAX_WORKERS = 8  # a thread holds a batch of decoded pictures


class Views(NamedTuple):
    """Embeddings of N items in three views, zero where an item lacks the view.

    Args:
        text: (N, D) float32, normalised.
        image: (N, D) float32, normalised.
        multimodal: (N, D) float32, normalised; of whatever the item has.
        has_text: (N,) bool.
        has_image: (N,) bool.
    """

    text: np.ndarray
    image: np.ndarray
    multimodal: np.ndarray
    has_text: np.ndarray
    has_image: np.ndarray


class Encoded(NamedTuple):
    """Embeddings of the N items of a window.

    Args:
        vectors: view -> (N, D) float32, normalised; zero where an item lacks the view.
        present: view -> (N,) bool, whether the item has it.
        losses: what could not be read, in the order of the items.
    """

    vectors: dict[str, np.ndarray]
    present: dict[str, np.ndarray]
    losses: list[Loss]


class Encoder:
    """Encode sequences of items with a MOON2.0 model on the device where it stands.

    An item is {"text": str | fields | None, "images": list}; for fields see the processor's `text_parts`. An image is
    a PIL image, bytes, a path, a numpy array or an undecoded {"bytes", "path"} of `datasets`. Errors call an item by
    its index, or by its "name" if it has one. Items are read twice, for their length and when their batch comes, and
    not kept, so memory stays bounded for a sequence backed by files of any size.

    Args:
        model: a Moon2Model.
        processor: its Moon2Processor.
        batch_size: items per forward.
        workers: threads that decode pictures and make model inputs of them, each a batch; None: as many as the
            machine has processors less one, at most eight. A small model on a CPU computes several batches side by
            side, on as many threads as torch has, each of which makes its own inputs.

    Example:
        >>> encoder = Encoder(model, processor)
        >>> encoder.encode([{"text": "red mug", "images": []}], view="text").shape
        (1, 256)
    """

    def __init__(
        self, model: PreTrainedModel, processor: ProcessorMixin, batch_size: int = 64, workers: int | None = None
    ) -> None:
        self.model = model
        self.processor = processor
        self.batch_size = batch_size
        self.workers = workers or max(1, min(MAX_WORKERS, (os.cpu_count() or 1) - 1))
        self.width = model.config.get_text_config().hidden_size

    def encode(self, items: Sequence[dict[str, Any]], view: str = "multimodal", progress: bool = True) -> np.ndarray:
        """Encode one view of every item.

        Args:
            items: N items.
            view: "text", "image" or "multimodal"; the last takes whatever an item has.
            progress: show a bar.

        Returns:
            (N, D) float32, normalised.

        Raises:
            ValueError: an item lacks the view or cannot be read, or its vector is not finite; the message names the
                item.
        """
        if view not in VIEWS:
            raise ValueError(f"view is {view!r}; choose one of {', '.join(VIEWS)}")
        embeddings = np.empty((len(items), self.width), dtype=np.float32)
        with tqdm(total=len(items), unit="item", disable=not progress) as bar:
            for batch, vectors in self._forward(self._windows(items), view, lambda output: output.embeddings):
                embeddings[batch.rows] = check_vectors(vectors.cpu().numpy(), batch.rows, items, self.model)
                bar.update(len(batch.rows))
        return embeddings

    def encode_views(self, items: Sequence[dict[str, Any]], progress: bool = True) -> Views:
        """Encode the text, the image and the multimodal view of every item in one pass.

        Args:
            items: N items, each with text, images or both.
            progress: show a bar.

        Raises:
            ValueError: an item has neither or cannot be read, or a vector is not finite; the message names the item.
        """
        embeddings = [np.zeros((len(items), self.width), dtype=np.float32) for _ in VIEWS]
        masks = [np.zeros(len(items), dtype=bool) for _ in range(2)]
        views = Views(*embeddings, *masks)
        with tqdm(total=len(items), unit="item", disable=not progress) as bar:
            for batch, parts in self._forward(self._windows(items), None, _all_views):
                for array, part in zip(views, parts, strict=True):
                    array[batch.rows] = part.cpu().numpy()
                for vectors in embeddings:
                    check_vectors(vectors[batch.rows], batch.rows, items, self.model)
                bar.update(len(batch.rows))
        return views

    def encode_windows(
        self,
        windows: Iterable[Sequence[dict[str, Any]]],
        views: Sequence[str] = VIEWS,
        lenient: bool = False,
        advance: Callable[[int], Any] = lambda items: None,
    ) -> Iterator[Encoded]:
        """Encode a stream of items of any length, window by window; the next window is read meanwhile.

        Args:
            windows: items that are sorted by length among themselves and held in memory together, two windows at a
                time.
            views: which; of an item that lacks one, the vectors are zero.
            lenient: leave out a picture that cannot be read, and an item of which nothing is left, and tell of it in
                `losses`.
            advance: is told of every batch how many items are done.

        Returns:
            The embeddings of every window, in order; computed as they are asked for. Whether they are finite is left
            to who asks.

        Raises:
            ValueError: no such view; or, unless `lenient`, an item cannot be read; the message names the item.
        """
        if not views or not set(views) <= set(VIEWS):
            raise ValueError(f"views is {list(views)!r}; give one or some of {', '.join(VIEWS)}")
        alone = views[0] if len(views) == 1 else None
        take = _all_views if alone is None else lambda output: (output.embeddings,)
        encoded = None
        ranges = ((window, range(len(window))) for window in windows)
        small = self._has_small_operations()  # whatever is left to do, for the same numbers
        for batch, parts in self._forward(ranges, alone, take, lenient, skip_lacking=True, side_by_side=small):
            if encoded is None:
                shape = (batch.window_rows, self.width)
                vectors = {view: np.zeros(shape, dtype=np.float32) for view in views}
                encoded = Encoded(vectors, {view: np.zeros(shape[0], dtype=bool) for view in views}, [])
            encoded.losses.extend(batch.losses)
            if parts is not None and alone is not None:
                encoded.vectors[alone][batch.rows] = parts[0].cpu().numpy()
                encoded.present[alone][batch.rows] = True
            elif parts is not None:
                found = Views(*(part.cpu().numpy() for part in parts))
                present = {"text": found.has_text, "image": found.has_image, "multimodal": True}
                for view in views:
                    encoded.vectors[view][batch.rows] = getattr(found, view)
                    encoded.present[view][batch.rows] = present[view]
            advance(len(batch.rows))
            if batch.last:
                encoded.losses.sort()
                yield encoded
                encoded = None

    def routing(self, items: Sequence[dict[str, Any]], progress: bool = True) -> Iterator[Moon2Routing | None]:
        """Yield the routing statistics of every batch, whose order is not that of the items; None of a dense model.

        Args:
            items: N items, each with text, images or both.
            progress: show a bar.

        Raises:
            ValueError: an item has neither or cannot be read; the message names the item.
        """
        with tqdm(total=len(items), unit="item", disable=not progress) as bar:
            for batch, routing in self._forward(self._windows(items), None, lambda output: output.routing):
                yield routing
                bar.update(len(batch.rows))

    def model_inputs(self, items: Sequence[dict[str, Any]], view: str | None = None) -> Iterator[BatchFeature]:
        """Yield the model inputs of every batch in the order in which they are encoded, on the host.

        Args:
            items: N items.
            view: that is encoded; None: all of them in one pass.

        Raises:
            ValueError: an item lacks the view or cannot be read; the message names the item.
        """
        with ThreadPoolExecutor(1) as reader:
            batches = self._batch_inputs()
            plans = batches.plans(reader, self._windows(items), view, False)
            work = partial(batches.make, view=view, lenient=False)
            for batch in ahead(plans, work, {"max_workers": self.workers}):
                yield batch.inputs

    def _batch_inputs(self) -> BatchInputs:
        return BatchInputs(self.processor, self.model.config.vision_config, self.batch_size)

    def _windows(self, items: Sequence[dict[str, Any]]) -> Iterator[tuple[Sequence[dict[str, Any]], range]]:
        window = self.batch_size * BATCHES_PER_WINDOW
        return ((items, range(start, min(start + window, len(items)))) for start in range(0, len(items), window))

    def _forward(
        self,
        windows: Iterable[tuple[Sequence[dict[str, Any]], range]],
        view: str | None,
        take: Callable[[Any], Any],
        lenient: bool = False,
        skip_lacking: bool = False,
        side_by_side: bool | None = None,
    ) -> Iterator[tuple[Batch, Any]]:
        """Yield batches and what `take` takes from the model's outputs, None for a batch without inputs.

        Batches run side by side, each on one thread, or one after the other on all of them; unless told, whichever is
        faster. An embedding's last digits may depend on it.
        """

        def run(batch: Batch) -> tuple[Batch, Any]:
            if batch.inputs is None:
                return batch, None
            inputs = send_to_device(dict(batch.inputs), self.model.device)
            with torch.no_grad():  # what FSDP gathers in inference mode would break the training step after it
                return batch._replace(inputs=None), take(self.model(**inputs, return_views=view is None))

        was_training, threads = self.model.training, torch.get_num_threads()
        self.model.eval()
        try:
            with ThreadPoolExecutor(1) as reader:
                batches = self._batch_inputs()
                plans = batches.plans(reader, windows, view, skip_lacking)
                first = next(plans, None)
                if first is None:
                    return
                if side_by_side is None:
                    side_by_side = self._has_small_operations() and len(first.batches) > 1
                work = partial(batches.make, view=view, lenient=lenient)
                if side_by_side:
                    options = {"max_workers": threads, "initializer": torch.set_num_threads, "initargs": (1,)}
                    yield from ahead(chain([first], plans), lambda *part: run(work(*part)), options)
                    return
                before = None
                for batch in ahead(chain([first], plans), work, {"max_workers": self.workers}):
                    following = run(batch)
                    if before is not None:  # only now, so that reading its vectors keeps no accelerator waiting
                        yield before
                    before = following
                yield before
        finally:
            torch.set_num_threads(threads)  # the number that new threads begin with
            self.model.train(was_training)

    def _has_small_operations(self) -> bool:
        """Whether the model's operations are too small for all threads of the CPU to share one well."""
        return (
            self.model.device.type == "cpu"
            and torch.get_num_threads() > 1
            and self.model.num_parameters() <= SMALL_MODEL
            and not torch.distributed.is_initialized()  # processes meet in a forward, in one order
            and not hasattr(self.model, "hf_device_map")  # weights are moved in a forward
        )


def _all_views(output: Any) -> tuple[torch.Tensor, ...]:
    return (
        output.text_embeddings,
        output.image_embeddings,
        output.multimodal_embeddings,
        output.has_text,
        output.has_image,
    )
