"""An agent at the Space: the protocol's own client finds the tools, searches, and is refused without the token."""

from __future__ import annotations

import ast
import asyncio
from contextlib import asynccontextmanager

import httpx
import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client

from moon2_space.api import FoundProduct
from moon2_space.space import SpaceOptions, launch_space, open_catalogue

TOKEN = "a token for agents"


@pytest.fixture(scope="module")
def space(saved_model, drawn_products, tmp_path_factory):
    """Address of a Space for agents, with ten products."""
    data_dir = tmp_path_factory.mktemp("agents")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("GRADIO_TEMP_DIR", str(data_dir / "served"))
        options = SpaceOptions(data_dir, str(saved_model), admin_token=TOKEN, mcp_server=True)
        catalogue = open_catalogue(options)
        catalogue.put(drawn_products[:10])
        app, url = launch_space(options, catalogue=catalogue, block=False)
        yield url
        app.get_blocks().close(verbose=False)


@asynccontextmanager
async def session(url: str, token: str):
    async with (
        httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=60) as client,
        streamable_http_client(f"{url}gradio_api/mcp/", http_client=client) as (read, write, _),
        ClientSession(read, write) as agent,
    ):
        await agent.initialize()
        yield agent


def test_an_agent_finds_the_tools_and_searches(space, drawn_products):
    async def ask():
        async with session(space, TOKEN) as agent:
            tools = (await agent.list_tools()).tools
            answer = await agent.call_tool("search_text", {"text": drawn_products[3]["title"], "k": 3})
            return tools, answer

    tools, answer = asyncio.run(ask())
    by_name = {tool.name: tool for tool in tools}
    assert len(tools) == 16 and by_name["search_text"].description.startswith("Search by words.")
    for tool in tools:
        for name, told in tool.inputSchema["properties"].items():
            assert told["description"], f"{tool.name} does not tell what {name} is"
    assert not answer.isError
    found = ast.literal_eval(answer.content[0].text)  # as Gradio writes what is no text
    assert [set(product) for product in found] == [set(FoundProduct.__annotations__)] * 3
    assert drawn_products[3]["product_id"] in {product["product_id"] for product in found}


def test_a_mistake_of_an_agent_is_told(space):
    async def ask():
        async with session(space, TOKEN) as agent:
            return await agent.call_tool("search_text", {"text": "mug", "k": 0})

    answer = asyncio.run(ask())
    assert answer.isError and "k=0" in answer.content[0].text


def test_an_agent_without_the_token_is_refused(space):
    refused = httpx.post(f"{space}gradio_api/mcp/", json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
    assert refused.status_code == 401 and "Authorization: Bearer TOKEN" in refused.json()["error"]
