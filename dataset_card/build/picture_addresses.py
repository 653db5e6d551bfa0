"""The web addresses of the pictures that a source names."""

from __future__ import annotations

from collections.abc import Iterator

from .clean import image_cell
from .image_root import is_address
from .mapping import columns_of
from .pictures import references
from .sources import Source


def picture_addresses(source: Source, field: str) -> Iterator[str]:
    """Read a source once for the addresses in the columns of a field, as `ImageRoot` takes them.

    Args:
        source: a catalogue or a log.
        field: "images" or "image".
    """
    mapped = source.mapping.get(field, ())
    used = columns_of({field: mapped})
    columns = [column for column in source.columns if column in used]
    for part in source.parts if mapped else ():
        for row in part.rows(0, columns):
            for column in mapped:
                for reference in references(image_cell(row.values, column)):
                    if isinstance(reference, dict) and reference.get("bytes") is None:
                        reference = reference.get("path")
                    if isinstance(reference, str) and is_address(reference):
                        yield reference
