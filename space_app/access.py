"""Who may change the catalogue: those who send the administrator's token."""

from __future__ import annotations

import hmac
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

MCP_PATH = "/gradio_api/mcp"


def check_token(expected: str | None, given: Any) -> None:
    """Refuse whoever does not send the token.

    Args:
        expected: the administrator's token; None: nobody has one.
        given: what was sent.

    Raises:
        PermissionError: it is not that one.
    """
    if expected is None:
        raise PermissionError("this Space is read-only; start it with MOON2_ADMIN_TOKEN to change its catalogue")
    sent = given.strip().encode("utf-8", "surrogatepass") if isinstance(given, str) else b""
    if not hmac.compare_digest(sent, expected.encode()):
        raise PermissionError("that is not the administrator's token")


class TokenForAgents:
    """Middleware that asks for "Authorization: Bearer TOKEN" where agents come in, and lets everything else through.

    Args:
        app: what it stands before.
        token: the administrator's.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app = app
        self.token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and MCP_PATH in scope["path"]:
            sent = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
            try:
                check_token(self.token, sent.removeprefix("Bearer "))
            except PermissionError as error:
                answer = JSONResponse({"error": f"{error}; send it as Authorization: Bearer TOKEN"}, status_code=401)
                await answer(scope, receive, send)
                return
        await self.app(scope, receive, send)
