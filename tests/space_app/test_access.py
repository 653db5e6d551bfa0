"""The administrator's token, for changes and for agents."""

from __future__ import annotations

import hmac

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from moon2_space.access import TokenForAgents, check_token
from moon2_space.space import SpaceOptions

TOKEN = "a token of some length"


def test_the_token_and_no_other():
    check_token(TOKEN, TOKEN)
    check_token(TOKEN, f" {TOKEN}\n")
    for wrong in ("", "a token of some lengt", TOKEN.upper(), None, 7, "ä", "\ud800", [TOKEN]):
        with pytest.raises(PermissionError, match="not the administrator's token"):
            check_token(TOKEN, wrong)


def test_without_a_token_nobody_is_an_administrator():
    for given in (None, "", "None"):
        with pytest.raises(PermissionError, match="read-only; start it with MOON2_ADMIN_TOKEN"):
            check_token(None, given)


def test_agents_need_it_and_visitors_do_not():
    routes = [
        Route(path, lambda request: PlainTextResponse("in"), methods=["GET", "POST"])
        for path in ("/", "/gradio_api/mcp/", "/gradio_api/mcp/sse")
    ]
    client = TestClient(Starlette(routes=routes, middleware=[Middleware(TokenForAgents, token=TOKEN)]))
    assert client.get("/").text == "in"
    for path in ("/gradio_api/mcp/", "/gradio_api/mcp/sse"):
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            refused = client.post(path, headers=headers)
            assert refused.status_code == 401 and "Authorization: Bearer TOKEN" in refused.json()["error"]
        assert client.post(path, headers={"Authorization": f"Bearer {TOKEN}"}).text == "in"


def test_options_that_would_be_unsafe_are_refused():
    with pytest.raises(ValueError, match="admin_token has 5 characters; give 12 or more"):
        SpaceOptions(admin_token="admin")
    with pytest.raises(ValueError, match="mcp_server needs an admin_token"):
        SpaceOptions(mcp_server=True)
    assert TOKEN not in repr(SpaceOptions(admin_token=TOKEN))


def test_options_from_the_environment(monkeypatch):
    for name in ("MOON2_DATA_DIR", "MOON2_MODEL", "MOON2_MODELS", "MOON2_ADMIN_TOKEN", "MOON2_MCP"):
        monkeypatch.delenv(name, raising=False)
    assert SpaceOptions.from_environment() == SpaceOptions()
    monkeypatch.setenv("MOON2_MODELS", "runs/a, owner/b,")
    monkeypatch.setenv("MOON2_ADMIN_TOKEN", TOKEN)
    monkeypatch.setenv("MOON2_MCP", "1")
    options = SpaceOptions.from_environment()
    assert options.models == ("runs/a", "owner/b") and options.admin_token == TOKEN and options.mcp_server


def test_how_long_a_comparison_takes_tells_nothing_of_the_token(monkeypatch):
    compared = []

    def compare(*pair, real=hmac.compare_digest):
        compared.append(pair)
        return real(*pair)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for given in ("a token of some lengtH", "a", "", "\ud800", 5, None):
        with pytest.raises(PermissionError):
            check_token(TOKEN, given)
    check_token(TOKEN, f" {TOKEN} ")
    assert len(compared) == 7
