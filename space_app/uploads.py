"""Files that visitors sent: found in the folder for uploads alone, and read within limits."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

MAX_PICTURE = 20 << 20  # bytes
NOT_FETCHED = "addresses are not fetched; download the file and upload it"

Upload = Mapping[str, Any] | str | None


def uploaded_file(upload: Mapping[str, Any]) -> Path:
    """The file of an upload as Gradio describes it.

    Raises:
        ValueError: it was not uploaded here.
    """
    path = upload.get("path")
    folder = Path(get_upload_folder()).resolve()
    try:
        file = Path(path).resolve() if isinstance(path, str) and path else folder
        is_there = folder in file.parents and file.is_file()
    except (OSError, ValueError):  # no name at all: half of a surrogate pair, a NUL in it, too long
        is_there = False
    if not is_there:
        raise ValueError("the file was not uploaded here; upload it, then give what the upload answers")
    return file


def uploaded_picture(upload: Upload) -> bytes | None:
    """The bytes of a picture that was uploaded, or given as a "data:" address; they are not looked into.

    Raises:
        ValueError: it was not uploaded here, is too large, or the address cannot be read.
    """
    if not upload:
        return None
    if not isinstance(upload, Mapping | str):
        raise ValueError(f"the picture is a {type(upload).__name__}; give an upload or a data:image/…;base64 address")
    address = upload if isinstance(upload, str) else str(upload.get("url") or "")
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


def refuse_addresses(values: Any) -> None:
    """Look through what a visitor sent for files that are given as web addresses, which Gradio would fetch.

    Args:
        values: of JSON.

    Raises:
        ValueError: there is one.
    """
    rest = [values]
    while rest:
        value = rest.pop()
        if isinstance(value, Mapping):
            path = value.get("path")
            if isinstance(path, str) and _is_address(path):
                raise ValueError(NOT_FETCHED)
            rest.extend(value.values())
        elif isinstance(value, list | tuple):
            rest.extend(value)


class NoFetching:
    """Middleware that refuses files given as web addresses, which Gradio would fetch and hand on to whoever asks.

    Args:
        app: what it stands before.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            _, _, file = scope["path"].partition("/file=")
            if _is_address(file):
                await JSONResponse({"error": NOT_FETCHED}, status_code=403)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _is_address(path: str) -> bool:
    return path.lstrip(" /")[:8].casefold().startswith(("http:", "https:"))


def _check_size(size: int) -> None:
    if size > MAX_PICTURE:
        raise ValueError(f"the picture has {size >> 20} MB; give one of at most {MAX_PICTURE >> 20} MB")
