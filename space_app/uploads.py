"""Files that visitors sent: found in the folder for uploads alone, and read within limits."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder

MAX_PICTURE = 20 << 20  # bytes

Upload = Mapping[str, Any] | str | None


def uploaded_file(upload: Mapping[str, Any]) -> Path:
    """The file of an upload as Gradio describes it.

    Raises:
        ValueError: it was not uploaded here.
    """
    path = upload.get("path")
    folder = Path(get_upload_folder()).resolve()
    file = Path(path).resolve() if isinstance(path, str) and path else folder
    if folder not in file.parents or not file.is_file():
        raise ValueError("the file was not uploaded here; upload it, then give what the upload answers")
    return file


def uploaded_picture(upload: Upload) -> bytes | None:
    """The bytes of a picture that was uploaded, or given as a "data:" address; they are not looked into.

    Raises:
        ValueError: it was not uploaded here, is too large, or the address cannot be read.
    """
    if not upload:
        return None
    address = upload if isinstance(upload, str) else upload.get("url") or ""
    if address.startswith("data:"):
        head, _, body = address.partition(",")
        if not head.endswith(";base64"):
            raise ValueError("the picture's data: address is not in base64; give data:image/png;base64,…")
        _check_size(len(body) * 3 // 4)
        try:
            return base64.b64decode(body, validate=True)
        except binascii.Error as error:
            raise ValueError(f"the picture's data: address is damaged ({error}); encode it again") from error
    if isinstance(upload, str):
        raise ValueError("a picture is an upload or a data:image/…;base64 address; paths and links are not followed")
    file = uploaded_file(upload)
    _check_size(file.stat().st_size)
    return file.read_bytes()


def _check_size(size: int) -> None:
    if size > MAX_PICTURE:
        raise ValueError(f"the picture has {size >> 20} MB; give one of at most {MAX_PICTURE >> 20} MB")
