"""The encoder that comes with the package, and how an index names the encoder it was made with."""

from __future__ import annotations

from pathlib import Path

BUNDLED_MODEL = Path(__file__).with_name("moon2-mini")


def lasting_name(model: str) -> str:
    """How an index names an encoder: the bundled one by its name alone, for it lies elsewhere in every installation.

    Args:
        model: folder or Hub id.

    Returns:
        "moon2-mini", the whole path of another folder, or the id.
    """
    place = Path(model)
    if not place.is_dir():
        return model
    return BUNDLED_MODEL.name if place.resolve() == BUNDLED_MODEL.resolve() else str(place.resolve())


def model_place(name: str) -> str:
    """Folder or Hub id of the encoder that an index names; see `lasting_name`."""
    return str(BUNDLED_MODEL) if name == BUNDLED_MODEL.name else name
