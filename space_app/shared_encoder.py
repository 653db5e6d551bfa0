"""One encoder for many threads: in the order they came, a few items each turn, small requests of a kind together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, NamedTuple

import numpy as np

from moon2_training.encode import Encoder, Views

ITEMS_A_TURN = 16  # a search waits for that many products of a catalogue that is being indexed, not for all of them

try:
    import spaces  # Hugging Face's ZeroGPU lends a GPU to functions that it wraps
except ImportError:
    spaces = None


class _Request(NamedTuple):
    items: list[dict[str, Any]]
    view: str
    answer: Future[np.ndarray]


class SharedEncoder:
    """An encoder that threads share. A single worker runs it, so turns are short and nobody is passed over.

    Queries that wait for it are encoded together: eight cost little more than one.

    Args:
        encoder: the encoder.

    Attributes:
        model, processor, width: of the encoder.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.model = encoder.model
        self.processor = encoder.processor
        self.width = encoder.width
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._waiting: deque[_Request] = deque()

        def call(function: Callable[..., Any], *arguments: Any) -> Any:
            return function(encoder, *arguments)

        self._call = call if spaces is None else spaces.GPU(call)

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run function(encoder, *arguments) when the encoder is free.

        Args:
            function: of a module, as another process may have to find it; short, for all others wait.
        """
        return self._worker.submit(copy_context().run, self._call, function, *arguments).result()

    def encode(self, items: Sequence[dict[str, Any]], view: str = "multimodal", progress: bool = False) -> np.ndarray:
        """As `Encoder.encode`."""
        parts = [self._encoded(part, view) for part in _turns(items)]
        return np.concatenate(parts) if parts else np.empty((0, self.width), dtype=np.float32)

    def encode_views(self, items: Sequence[dict[str, Any]], progress: bool = False) -> Views:
        """As `Encoder.encode_views`."""
        if not items:
            return self.run(Encoder.encode_views, items, False)
        parts = [self.run(Encoder.encode_views, part, False) for part in _turns(items)]
        return Views(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def _encoded(self, items: list[dict[str, Any]], view: str) -> np.ndarray:
        request = _Request(items, view, Future())
        self._waiting.append(request)
        self._worker.submit(copy_context().run, self._take_turn)
        return request.answer.result()

    def _take_turn(self) -> None:
        """Answer the request that waits longest, and those behind it that fit in; nothing if an earlier turn did."""
        if not self._waiting:
            return
        taken = [self._waiting.popleft()]
        while self._waiting:
            following = self._waiting[0]
            count = sum(len(request.items) for request in taken) + len(following.items)
            if following.view != taken[0].view or count > ITEMS_A_TURN:
                break
            taken.append(self._waiting.popleft())
        together = [item for request in taken for item in request.items]
        try:
            vectors = self._call(Encoder.encode, together, taken[0].view, False)
        except Exception:  # of one of them; which, is found alone
            for request in taken:
                self._answer_alone(request)
            return
        ends = np.cumsum([len(request.items) for request in taken])
        for request, part in zip(taken, np.split(vectors, ends[:-1]), strict=True):
            request.answer.set_result(part)

    def _answer_alone(self, request: _Request) -> None:
        try:
            request.answer.set_result(self._call(Encoder.encode, request.items, request.view, False))
        except Exception as error:
            request.answer.set_exception(error)


def _turns(items: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, len(items), ITEMS_A_TURN):
        turn = range(start, min(start + ITEMS_A_TURN, len(items)))
        yield [{"name": f"item {row}"} | items[row] for row in turn]  # errors count from the first of all
