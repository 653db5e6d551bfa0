"""Weights and states are read as tensors alone; a pickle, which could run code when it is read, is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError

from safetensors import SafetensorError

WAY_OUT = "give a model saved in safetensors: pickles (.bin, .pt) could run code and are not loaded"


@contextmanager
def plain_weights(model_id: str | os.PathLike) -> Iterator[None]:
    """Say in one line that the weights of a model are missing, damaged or a pickle.

    Args:
        model_id: folder or Hub id, for the message.

    Raises:
        ValueError: instead of what the loaders raise.
    """
    try:
        yield
    except (OSError, SafetensorError, UnpicklingError) as error:
        told = " ".join(str(error).split())[:300]
        raise ValueError(f"{model_id}: its weights cannot be read ({told}); {WAY_OUT}") from error


@contextmanager
def plain_checkpoint(folder: str | os.PathLike | None) -> Iterator[None]:
    """Say in one line that a file of a checkpoint holds more than tensors and numbers, and was not read.

    The Trainer reads optimizer.pt, scheduler.pt and rng_state.pth, which are pickles, with `weights_only=True`.

    Args:
        folder: of the checkpoint; None: training starts anew.

    Raises:
        ValueError: instead of what torch raises.
    """
    try:
        yield
    except UnpicklingError as error:
        raise ValueError(
            f"{folder}: a file of this checkpoint holds more than tensors and numbers, so it could run code and is "
            "not read; resume from a checkpoint that `moon2` wrote"
        ) from error
