"""What an index says of itself: with which encoder it was made, and how well approximate search finds the nearest."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moon2_dataset.disk_errors import naming
from moon2_dataset.shards import put_in_place

FORMAT = 1
MANIFEST = "manifest.json"


def new_manifest(model: str, fingerprint: str, dimension: int) -> dict[str, Any]:
    """The manifest of an empty index.

    Args:
        model: folder or Hub id of the encoder.
        fingerprint: of the encoder.
        dimension: of its vectors.
    """
    made_with = {"model": model, "fingerprint": fingerprint, "dimension": dimension}
    return {"format": FORMAT, **made_with, "ann": None, "files": {}}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of an index.

    Returns:
        {"format", "model", "fingerprint", "dimension", "ann", "files"}; "ann" is None where search is exact, else what
        `build_ann` measured; "files" are the checksums of the table's files, none in what an earlier version made.

    Raises:
        FileNotFoundError: there is no index.
        ValueError: another version of this package made it, or it is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no index there; make one with `moon2 index`")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = manifest["format"]
        manifest.setdefault("files", {})
        missing = new_manifest("", "", 0).keys() - manifest.keys()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: damaged ({error!r}); index the catalogue again") from error
    if found != FORMAT:
        raise ValueError(f"{path}: format {found}, this version reads {FORMAT}; index the catalogue again")
    if missing:
        raise ValueError(f"{path}: damaged (no {', '.join(sorted(missing))}); index the catalogue again")
    return manifest


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file that is there whole, or as it was before: under another name first, then renamed."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with naming(path):
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    put_in_place(part, path)


class OtherEncoderError(ValueError):
    """An index was made with another encoder than the one that is to search it."""


def check_encoder(folder: Path, manifest: Mapping[str, Any], fingerprint: str, dimension: int) -> None:
    """Refuse an encoder that an index was not made with.

    Raises:
        OtherEncoderError: its vectors do not compare with those of the index.
    """
    if (fingerprint, dimension) != (manifest["fingerprint"], manifest["dimension"]):
        made_with = f"{manifest['model'] or 'an encoder'} ({manifest['fingerprint'][:12]})"
        raise OtherEncoderError(
            f"{folder}: the index was made with {made_with}; this encoder is another one ({fingerprint[:12]}), and "
            "their vectors do not compare; give the one it was made with, or index the catalogue again with this one"
        )
