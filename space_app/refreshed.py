"""What is made of a whole catalogue, and made anew when that has changed, without a stop for those who ask."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Refreshed(Generic[Value]):
    """A value that one thread makes anew when what it is made of has changed; others get the last one meanwhile.

    So a thread gets a value from before its own change where another thread is at work. All wait for the first value.

    Args:
        version: of what it is made of.
        make: makes it; is given the last one, None at first.

    Example:
        >>> facets = Refreshed(lambda: table.version, lambda last: count(table))
        >>> facets.get()
    """

    def __init__(self, version: Callable[[], int], make: Callable[[Value | None], Value]) -> None:
        self._version, self._make = version, make
        self._held: tuple[int, Value] | None = None
        self._making = threading.Lock()

    def get(self) -> Value:
        """The value, made anew where it is due and nobody is at it."""
        held = self._held
        if held is not None and held[0] == self._version():
            return held[1]
        if not self._making.acquire(blocking=held is None):
            return held[1]
        try:
            version = self._version()  # before the value: one of newer rows is made again, one of older never kept
            if self._held is None or self._held[0] != version:
                self._held = version, self._make(None if self._held is None else self._held[1])
            return self._held[1]
        finally:
            self._making.release()
