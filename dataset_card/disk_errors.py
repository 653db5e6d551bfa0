"""What a disk may answer when something is written, as one line that names the file and says the way out."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

AGAIN = "then run the same command again"
WAYS_OUT = {
    errno.ENOSPC: f"the disk is full; free some space, {AGAIN}",
    errno.EDQUOT: f"your quota of the disk is used up; free some space, {AGAIN}",
    errno.EFBIG: f"files may not be that large; raise the limit (ulimit -f), {AGAIN}",
    errno.EROFS: "the disk can only be read; give an output elsewhere, or mount it for writing",
    errno.EACCES: "no permission; give another place, or change who may read and write there",
    errno.EPERM: "no permission; give another place, or change who may read and write there",
    errno.EIO: f"the disk fails; check it, {AGAIN}",
}
_IN_WORDS = re.compile(r"\(os error (\d+)\)")  # as what is written in Rust tells it: safetensors, Lance
_BY_TORCH = re.compile(r"PytorchStreamWriter failed writing|unexpected pos \d+ vs \d+|iostream error")


class DiskError(OSError):
    """Something could not be written; the message names it and says the way out."""


def told_of_disk(error: BaseException, path: str | os.PathLike | None = None) -> str | None:
    """What an error says of the disk.

    Args:
        error: any.
        path: of what was written; None: as far as the error names it.

    Returns:
        A line that names the file and says the way out, None where the error is of something else.
    """
    if isinstance(error, DiskError):
        return str(error)
    if _BY_TORCH.search(str(error)):
        return f"{path or 'a file'}: cannot be written; free some space on the disk, {AGAIN}"
    found = _IN_WORDS.search(str(error))
    number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
    if number not in WAYS_OUT:
        return None
    named = (error.filename2 or error.filename) if isinstance(error, OSError) else None  # of a copy, the new one
    return f"{named or path or ' '.join(str(error).split())}: {WAYS_OUT[number]}"


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Say of what the disk may answer which file it was, and the way out.

    Args:
        path: of what is written.

    Raises:
        DiskError: instead of what the disk, or the library that writes, raises.
    """
    try:
        yield
    except Exception as error:  # every library has its own
        told = told_of_disk(error, path)
        if told is None or isinstance(error, DiskError):
            raise
        raise DiskError(told) from error
