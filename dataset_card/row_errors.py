"""What is wrong with the rows of a catalogue, to print and as CSV to download."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # begins what a spreadsheet would compute


class RowError(NamedTuple):
    """What is wrong with a row.

    Args:
        row: its number in the source, from 0.
        product_id: "" where the row has none that can be read.
        message: names the place, what is wrong and the way out.
        dropped: whether it cost the product; else only what the message names is lost, such as one picture.
    """

    row: int
    product_id: str
    message: str
    dropped: bool = True


def errors_as_csv(errors: Iterable[RowError]) -> str:
    """Row errors as CSV to download; what a spreadsheet would take for a formula gets an apostrophe before it."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(["row", "product_id", "message", "dropped"])
    for error in errors:
        texts = [f"'{text}" if text.startswith(_FORMULA) else text for text in (error.product_id, error.message)]
        writer.writerow([error.row, *texts, "yes" if error.dropped else "no"])
    return buffer.getvalue()


def make_errors_folder(path: Path) -> None:
    """Make the folder of a file for errors, before the work whose errors it shall hold.

    Raises:
        ValueError: there can be no file at `path`.
    """
    if path.is_dir():
        raise ValueError(f"errors: {path} is a folder; give a file in a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"errors: {error.filename} is no folder; give a file in a folder") from error
