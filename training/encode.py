"""Encode many items: batches of similar length, prepared by threads ahead of the model, results in the order given."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import send_to_device
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel, AutoProcessor, BatchFeature, PreTrainedModel, ProcessorMixin

from modeling_moon2 import Moon2Config, Moon2Routing
from modeling_moon2.layout_moon2 import sequence_packing, vision_layout
from modeling_moon2.processing_moon2 import load_image, text_parts

from .checksums import check_checksums, find_unreadable
from .encoded_pictures import decode_picture, picture_size
from .items import item_name, take_view
from .non_finite import check_vectors, non_finite_weight
from .plain_files import plain_weights

VIEWS = ("text", "image", "multimodal")
BATCHES_PER_WINDOW = 64  # items are sorted by length within a window, so that reading stays nearly sequential
CHARACTERS_PER_TOKEN = 4
SMALL_MODEL = 200_000_000  # parameters
MAX_WORKERS = 8  # a thread holds a batch of decoded pictures
# What differs between a model in memory and the same one saved and loaded; the weights tell their types themselves.
NOT_IN_FINGERPRINT = ("_name_or_path", "architectures", "auto_map", "dtype", "processor_class", "transformers_version")


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
            plans = self._plans(reader, self._windows(items), view, False)
            work = partial(self._inputs, view=view, lenient=False)
            for batch in _ahead(plans, work, {"max_workers": self.workers}):
                yield batch.inputs

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
    ) -> Iterator[tuple[_Batch, Any]]:
        """Yield batches and what `take` takes from the model's outputs, None for a batch without inputs.

        Batches run side by side, each on one thread, or one after the other on all of them; unless told, whichever is
        faster. An embedding's last digits may depend on it.
        """

        def run(batch: _Batch) -> tuple[_Batch, Any]:
            if batch.inputs is None:
                return batch, None
            inputs = send_to_device(dict(batch.inputs), self.model.device)
            with torch.no_grad():  # what FSDP gathers in inference mode would break the training step after it
                return batch._replace(inputs=None), take(self.model(**inputs, return_views=view is None))

        was_training, threads = self.model.training, torch.get_num_threads()
        self.model.eval()
        try:
            with ThreadPoolExecutor(1) as reader:
                plans = self._plans(reader, windows, view, skip_lacking)
                first = next(plans, None)
                if first is None:
                    return
                if side_by_side is None:
                    side_by_side = self._has_small_operations() and len(first.batches) > 1
                work = partial(self._inputs, view=view, lenient=lenient)
                if side_by_side:
                    options = {"max_workers": threads, "initializer": torch.set_num_threads, "initargs": (1,)}
                    yield from _ahead(chain([first], plans), lambda *part: run(work(*part)), options)
                    return
                before = None
                for batch in _ahead(chain([first], plans), work, {"max_workers": self.workers}):
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

    def _plans(
        self,
        reader: ThreadPoolExecutor,
        windows: Iterable[tuple[Sequence[dict[str, Any]], range]],
        view: str | None,
        skip_lacking: bool,
    ) -> Iterator[_Plan]:
        """Windows with their batches, longest items first, so that too big a one fails at once; one is read ahead."""
        windows = iter(windows)

        def planned() -> _Plan | None:
            for items, rows in windows:
                return _Plan(items, rows, self._plan(items, rows, view, skip_lacking))
            return None

        following = reader.submit(planned)
        while (plan := following.result()) is not None:
            following = reader.submit(planned)
            yield plan

    def _plan(
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

    def _inputs(
        self,
        items: Sequence[dict[str, Any]],
        rows: np.ndarray,
        window_rows: int,
        last: bool,
        view: str | None,
        lenient: bool,
    ) -> _Batch:
        taken = {row: take_view(items[row], row, view or "multimodal") for row in rows.tolist()}
        budget = self.processor.image_processor.size["longest_edge"]
        taken = {
            row: (text, [decode_picture(image, budget) for image in images]) for row, (text, images) in taken.items()
        }
        if not taken:
            return _Batch(rows, None, [], window_rows, last)
        try:
            return _Batch(rows, self._processed(taken, view), [], window_rows, last)
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
        return _Batch(rows, self._processed(taken, view) if taken else None, losses, window_rows, last)

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
            self._processed({row: taken[row]}, "multimodal")
        except ValueError as error:
            losses.append(Loss(row, str(error).removeprefix("item 0"), dropped=True))
            del taken[row]

    def _processed(self, taken: Mapping[int, tuple[Any, list]], view: str | None) -> BatchFeature:
        """Model inputs with all that the model would derive from ids and grids alone, which is done on the host."""
        texts, images = zip(*taken.values(), strict=True)
        inputs = self.processor(text=list(texts), images=list(images), return_tensors="pt")
        if "image_grid_thw" in inputs:
            inputs["image_layout"] = vision_layout(self.model.config.vision_config, inputs["image_grid_thw"])
        if view is None:
            end = self.processor.vision_end_token_id
            inputs["packing"] = sequence_packing(inputs["input_ids"], inputs["attention_mask"], end)
        return inputs


class _Batch(NamedTuple):
    """Rows of a window and the model inputs made of them; the last batch of a window says so."""

    rows: np.ndarray
    inputs: BatchFeature | None
    losses: list[Loss]
    window_rows: int
    last: bool


class _Plan(NamedTuple):
    """A window: its items, which of them are in it, and the rows of every batch."""

    items: Sequence[dict[str, Any]]
    rows: range
    batches: list[np.ndarray]


def _ahead(plans: Iterable[_Plan], work: Callable[..., Any], pool_options: dict[str, Any]) -> Iterator[Any]:
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


def _all_views(output: Any) -> tuple[torch.Tensor, ...]:
    return (
        output.text_embeddings,
        output.image_embeddings,
        output.multimodal_embeddings,
        output.has_text,
        output.has_image,
    )


def _has_view(item: dict[str, Any], view: str | None) -> bool:
    has_text, has_image = bool(text_parts(item["text"])), bool(item["images"])
    return {"text": has_text, "image": has_image}.get(view, has_text or has_image)


def load_encoder(model_id: str | os.PathLike, **options: Any) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a model, in evaluation mode, and its processor onto the accelerator, or the CPU where there is none.

    Args:
        model_id: folder of a saved model, or its id on the Hub.
        options: for `AutoModel.from_pretrained`, such as attn_implementation.

    Raises:
        FileNotFoundError: there is no model in the folder, or none of that name on the Hub.
        ValueError: it is a model of another kind, a file of it is damaged, its weights are not in safetensors, or one
            is not finite.
    """
    if Path(model_id).is_dir():
        if not (Path(model_id) / "config.json").is_file():
            raise FileNotFoundError(f"{model_id}: no config.json there; give the folder of a saved model")
        check_checksums(model_id)
    with _naming_damage(model_id):
        try:
            config = AutoConfig.from_pretrained(model_id, trust_remote_code=True)
        except OSError as error:
            if Path(model_id).is_dir():
                raise
            raise FileNotFoundError(f"{model_id}: no such folder, and no model of that name on the Hub") from error
        if config.model_type != Moon2Config.model_type:
            raise ValueError(f"{model_id}: holds a {config.model_type} model; give a MOON2.0 one")
        with plain_weights(model_id):
            model = AutoModel.from_pretrained(model_id, trust_remote_code=True, use_safetensors=True, **options)
        processor = AutoProcessor.from_pretrained(model_id, trust_remote_code=True)
    if "device_map" not in options:
        model = model.to(torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu"))
    weight = non_finite_weight(model)
    if weight is not None:
        raise ValueError(
            f"{model_id}: the weight {weight} holds NaN or infinity as {model.dtype}; give an earlier checkpoint, or "
            "download it again"
        )
    return model.eval(), processor


@contextmanager
def _naming_damage(model_id: str | os.PathLike) -> Iterator[None]:
    """Say of whatever libraries raise over a damaged folder which file it is."""
    try:
        yield
    except Exception as error:
        if not Path(model_id).is_dir() or (found := find_unreadable(model_id)) is None:
            raise
        raise ValueError(f"{found[0]}: damaged ({found[1]}); save the model again, or download it again") from error


def encoder_fingerprint(model: PreTrainedModel, processor: ProcessorMixin) -> str:
    """Hash what an embedding depends on: the weights with their names and types, the configuration, the processor.

    The same for a model in memory, saved and loaded again, wherever it stands; another where it is loaded in another
    type, for then it answers with other numbers.

    Args:
        model: a Moon2Model.
        processor: its Moon2Processor.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    tokenizer = processor.tokenizer
    parts = [model.config.to_dict(), processor.image_processor.to_dict()]
    parts += [tokenizer.backend_tokenizer.to_str(), tokenizer.model_max_length, processor.chat_template]
    digest.update(json.dumps([_told(part) for part in parts], sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _told(part: Any) -> Any:
    """A part of a configuration without what says where it came from."""
    if isinstance(part, Mapping):
        return {str(key): _told(value) for key, value in part.items() if key not in NOT_IN_FINGERPRINT}
    return part
