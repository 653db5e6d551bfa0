"""What a model fails at: a single item is counted with its reason, a model that does nothing but fail ends the run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 8  # items; a model that has never worked is given up after so many


class ModelFailures:
    """The items of a batch that a model raised an error on.

    An answer that makes no sense is no failure in this sense: the model works, and who reads the answer counts it.

    Args:
        model: what messages call it, such as "vlm Qwen/Qwen3-VL-2B-Instruct".

    Attributes:
        reasons: of the latest batch, number of the item -> what went wrong.
    """

    def __init__(self, model: str) -> None:
        self.model = model
        self.reasons: dict[int, str] = {}
        self.succeeded = 0  # in the latest batch
        self.has_worked = False

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Go through a batch of items.

        Raises:
            ValueError: the model failed at every item of it, and they were many, or it has never worked.
        """
        self.reasons, self.succeeded = {}, 0
        yield
        many = len(self.reasons) >= PATIENCE  # few may be odd ones that happen to come together
        if self.reasons and not self.succeeded and (many or not self.has_worked):
            self._give_up()

    def success(self, items: int = 1) -> None:
        """Note items that went well."""
        self.succeeded += items
        self.has_worked = True

    def failure(self, item: int, error: Exception | str) -> None:
        """Note an item that failed.

        Args:
            item: its number in the batch.
            error: what went wrong.

        Raises:
            ValueError: the model has never worked, and this was not the first try.
        """
        self.reasons[item] = error if isinstance(error, str) else described(error)
        if len(self.reasons) >= PATIENCE and not self.has_worked:
            self._give_up()

    def _give_up(self) -> None:
        first = next(iter(self.reasons.values()))
        raise ValueError(
            f"{self.model}: failed at {len(self.reasons)} items and succeeded at none; the first failed with {first}. "
            "Try the model on one item by itself, give another, or leave it out"
        )


def described(error: Exception) -> str:
    """The kind of an error and what it says, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
