"""One encoder for many threads: one of them at a time, in the order they came, a few items each turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import numpy as np

from moon2_training.encode import Encoder, Views

ITEMS_A_TURN = 16  # a search waits for that many products of a catalogue that is being indexed, not for all of them

try:
    import spaces  # Hugging Face's ZeroGPU lends a GPU to functions that it wraps
except ImportError:
    spaces = None


class SharedEncoder:
    """An encoder that threads share. A single worker runs it, so turns are short and nobody is passed over.

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
        parts = [self.run(Encoder.encode, part, view, False) for part in _turns(items)]
        return np.concatenate(parts) if parts else np.empty((0, self.width), dtype=np.float32)

    def encode_views(self, items: Sequence[dict[str, Any]], progress: bool = False) -> Views:
        """As `Encoder.encode_views`."""
        if not items:
            return self.run(Encoder.encode_views, items, False)
        parts = [self.run(Encoder.encode_views, part, False) for part in _turns(items)]
        return Views(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _turns(items: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, len(items), ITEMS_A_TURN):
        turn = range(start, min(start + ITEMS_A_TURN, len(items)))
        yield [{"name": f"item {row}"} | items[row] for row in turn]  # errors count from the first of all
