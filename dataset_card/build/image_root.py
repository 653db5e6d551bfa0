"""The folder that pictures are read from, and which of its files a web address stands for."""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np

from .column_sample import IMAGE_SUFFIXES
from .duplicates import stable_key

MAX_ADDRESS = 4096  # characters
MAX_LEVELS = 16  # of an address's path, that are looked at


def is_address(path: str) -> bool:
    """Whether a path has a scheme, such as https: or s3:, that is not that of a file."""
    return re.match(r"[a-zA-Z][\w+.-]+:", path) is not None and not path.casefold().startswith("file://")


class ImageRoot:
    """A folder where relative paths of pictures start, and where the pictures of web addresses lie.

    An address stands for the first file that is there: HOST/PATH, PATH, ever shorter ends of the path, at last its
    file name. But of an end that several addresses have it is not known whose picture lies there: such a file stands
    for none of them, unless it lies at HOST/PATH.

    Args:
        folder: that holds the files.
        addresses: of all pictures there are, in any order; without them no end is known to be that of several.
    """

    def __init__(self, folder: Path, addresses: Iterable[str] = ()) -> None:
        self.folder = folder
        self._shared = self._ends_of_several(addresses)

    def find(self, address: str) -> tuple[Path | None, bool]:
        """Look an address up.

        Returns:
            (its file or None, whether that file is the end of other addresses too and must not be used).
        """
        for number, end in enumerate(_ends(address)):
            if self._is_file(end):
                return self.folder / end, number > 0 and stable_key("image file", end) in self._shared
        return None, False

    def _ends_of_several(self, addresses: Iterable[str]) -> set[int]:
        """Keys of the files that are there and that several addresses end in."""
        files, owners = array("Q"), array("Q")
        for address in addresses:
            ends = _ends(address)
            owner = stable_key("image address", ends[0]) if ends else 0
            for end in filter(self._is_file, ends):
                files.append(stable_key("image file", end))
                owners.append(owner)
        pairs = np.unique(np.stack([np.frombuffer(files, np.uint64), np.frombuffer(owners, np.uint64)]), axis=1)
        values, counts = np.unique(pairs[0], return_counts=True)
        return set(values[counts > 1].tolist())

    def _is_file(self, end: str) -> bool:
        return os.path.isfile(os.path.join(self.folder, end))


def _ends(address: str) -> list[str]:
    """Where in a folder the picture of an address may lie, the surest first; the first tells addresses apart.

    That is host and path, and the query where the path does not end as an image does: `photo.php?id=7` is another
    picture than `photo.php?id=8`, `7.jpg?width=80` the same as `7.jpg`.
    """
    if len(address) > MAX_ADDRESS:
        return []
    try:
        parts = urlsplit(address)
    except ValueError:
        return []
    levels = [level for level in unquote(parts.path).split("/") if level not in ("", ".", "..")]
    if not levels:
        return []
    host = parts.netloc.rpartition("@")[2].casefold().strip(".")
    whole = "/".join([host, *levels] if host else levels)
    query = parts.query.replace("/", "%2F") if not levels[-1].casefold().endswith(IMAGE_SUFFIXES) else ""
    shorter = ["/".join(levels[first:]) for first in range(max(0, len(levels) - MAX_LEVELS), len(levels))]
    return list(dict.fromkeys([f"{whole}?{query}" if query else whole, whole, *shorter]))
