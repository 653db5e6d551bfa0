"""Items in batches of similar length, and the model inputs made of them ahead of the model, in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from transformers import BatchFeature, ProcessorMixin

from modeling_moon2 import Moon2VisionConfig
from modeling_moon2.layout_moon2 import sequence_packing, vision_layout
from modeling_moon2.processing_moon2 import load_image, text_parts

from .encoded_pictures import decode_picture, picture_size
from .items import item_name, take_view

CHARACTERS_PER_TOKEN = 4


class Loss(NamedTuple):
    """What could not be encoded of an item.

    Args:
        row: of the item in its window.
        message: what is wrong, without the item's name.
        dropped: whether the item has no vector for it; else a picture is missing from its vectors.
    """

    row: int
    message: str
    dropped: bool


class Batch(NamedTuple):
    """Rows of a window and the model inputs made of them; the last batch of a window says so."""

    rows: np.ndarray
    inputs: BatchFeature | None
    losses: list[Loss]
    window_rows: int
    last: bool


class Plan(NamedTuple):
    """A window: its items, which of them are in it, and the rows of every batch."""

    items: Sequence[dict[str, Any]]
    rows: range
    batches: list[np.ndarray]


class BatchInputs:
    """Makes batches of the items of windows.

    Args:
        processor: a Moon2Processor.
        vision_config: of its model.
        batch_size: items of a batch.
    """

    def __init__(self, processor: ProcessorMixin, vision_config: Moon2VisionConfig, batch_size: int) -> None:
        self.processor = processor
        self.vision_config = vision_config
        self.batch_size = batch_size

    def plans(
        self,
        reader: ThreadPoolExecutor,
        windows: Iterable[tuple[Sequence[dict[str, Any]], range]],
        view: str | None,
        skip_lacking: bool,
    ) -> Iterator[Plan]:
        """Windows with their batches, longest items first, so that too big a one fails at once; one is read ahead."""
        windows = iter(windows)

        def planned() -> Plan | None:
            for items, rows in windows:
                return Plan(items, rows, self.plan(items, rows, view, skip_lacking))
            return None

        following = reader.submit(planned)
        while (plan := following.result()) is not None:
            following = reader.submit(planned)
            yield plan

    def plan(
        self, items: Sequence[dict[str, Any]], rows: range, view: str | None, skip_lacking: bool
    ) -> list[np.ndarray]:
        """The rows of every batch of a window: one batch at least, which may be empty."""
        kept, lengths = [], []
        for row in rows:
            item = items[row]
            if skip_lacking and not _has_view(item, view):
                continue
            kept.append(row)
            lengths.append(self._estimated_length(*take_view(item, row, view or "multimodal")))
        longest_first = np.array(kept, dtype=np.int64)[np.argsort(-np.array(lengths), kind="stable")]
        return np.split(longest_first, range(self.batch_size, len(kept), self.batch_size))

    def _estimated_length(self, text: str | Mapping | None, images: list) -> int:
        """Tokens of an item, from the length of its text and the headers of its images."""
        characters = sum(len(part) for _, part in text_parts(text))
        length = min(characters // CHARACTERS_PER_TOKEN, self.processor.tokenizer.model_max_length)
        image_processor = self.processor.image_processor
        for image in images:
            try:
                patches = image_processor.get_number_of_image_patches(*picture_size(image))
            except ValueError:  # said with the item's name when its batch is made
                continue
            length += patches // image_processor.merge_size**2
        return length

    def make(
        self,
        items: Sequence[dict[str, Any]],
        rows: np.ndarray,
        window_rows: int,
        last: bool,
        view: str | None,
        lenient: bool,
    ) -> Batch:
        """The model inputs of some rows of a window.

        Args:
            items: of the window.
            rows: of the batch.
            window_rows: number of rows in the window.
            last: whether it is the last batch of the window.
            view: that is encoded; None: all.
            lenient: leave out what cannot be read, and tell of it.

        Raises:
            ValueError: unless `lenient`, an item cannot be read; the message names it.
        """
        taken = {row: take_view(items[row], row, view or "multimodal") for row in rows.tolist()}
        budget = self.processor.image_processor.size["longest_edge"]
        taken = {
            row: (text, [decode_picture(image, budget) for image in images]) for row, (text, images) in taken.items()
        }
        if not taken:
            return Batch(rows, None, [], window_rows, last)
        try:
            return Batch(rows, self.processed(taken, view), [], window_rows, last)
        except ValueError as error:
            losses: list[Loss] = []
            for row in rows.tolist():
                self._examine(taken, row, losses)
            if not losses:
                raise
            if not lenient:
                first = losses[0]
                raise ValueError(f"{item_name(items[first.row], first.row)}{first.message}") from error
        rows = np.array(list(taken), dtype=np.int64)
        return Batch(rows, self.processed(taken, view) if taken else None, losses, window_rows, last)

    def _examine(self, taken: dict[int, tuple[Any, list]], row: int, losses: list[Loss]) -> None:
        """Find what is wrong with an item and take it out: a picture, or all of it where nothing is left."""
        text, images = taken[row]
        good = []
        for number, image in enumerate(images):
            try:
                good.append(load_image(image))
            except ValueError as error:
                losses.append(Loss(row, f", image {number}: {error}", dropped=False))
        taken[row] = text, good
        if not good and not text_parts(text):
            losses[-1] = losses[-1]._replace(dropped=True)
            del taken[row]
            return
        try:
            self.processed({row: taken[row]}, "multimodal")
        except ValueError as error:
            losses.append(Loss(row, str(error).removeprefix("item 0"), dropped=True))
            del taken[row]

    def processed(self, taken: Mapping[int, tuple[Any, list]], view: str | None) -> BatchFeature:
        """Model inputs with all that the model would derive from ids and grids alone, which is done on the host."""
        texts, images = zip(*taken.values(), strict=True)
        inputs = self.processor(text=list(texts), images=list(images), return_tensors="pt")
        if "image_grid_thw" in inputs:
            inputs["image_layout"] = vision_layout(self.vision_config, inputs["image_grid_thw"])
        if view is None:
            end = self.processor.vision_end_token_id
            inputs["packing"] = sequence_packing(inputs["input_ids"], inputs["attention_mask"], end)
        return inputs


def ahead(plans: Iterable[Plan], work: Callable[..., Any], pool_options: dict[str, Any]) -> Iterator[Any]:
    """Yield what work(items, rows, rows of the window, is last of it) makes of every batch, in order.

    As many batches as there are threads are worked on ahead of the one that is asked for.
    """
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(**pool_options) as pool:
        for plan in plans:
            for number, rows in enumerate(plan.batches, start=1):
                last = number == len(plan.batches)
                waiting.append(pool.submit(work, plan.items, rows, len(plan.rows), last))
                if len(waiting) > pool_options["max_workers"]:
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _has_view(item: dict[str, Any], view: str | None) -> bool:
    has_text, has_image = bool(text_parts(item["text"])), bool(item["images"])
    return {"text": has_text, "image": has_image}.get(view, has_text or has_image)
