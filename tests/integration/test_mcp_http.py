"""MCP over streamable HTTP: the SDK's client, the gateway on a port and a real Valkey; a responder is the memory."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import httpx2
import pytest
import redis
from keepsake_client.protocol import MAX_MESSAGE_BYTES
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult

from services.gateway.access import ALL_RIGHTS, OPEN, Caller
from services.gateway.app import OpenDoor
from tests.integration.responder import responding
from tests.mcp_clients import connected, served_mcp
from tests.served_gateway import Keys
from tests.support import eventually, free_port

MODES = pytest.mark.parametrize("mode", ["auto", "legacy"])
KEYS = Keys(
    {
        "anna-key": Caller("anna", ALL_RIGHTS, user="anna"),
        "berta-key": Caller("berta", ALL_RIGHTS, user="berta"),
        "shop-key": Caller("shop", ALL_RIGHTS, users="shop-"),
    }
)
ACCEPTED = {"Accept": "application/json, text/event-stream"}
HANDSHAKE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
}


@pytest.fixture
def url(valkey_url: str) -> str:
    with redis.Redis.from_url(valkey_url) as client:
        client.flushall()
    return valkey_url


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(story)


async def found(client: Client) -> str:
    """What a search finds; it is repeated while the machine is too slow for it."""

    async def answered() -> CallToolResult | None:
        result = await client.call_tool("search_memories", {"query": "pet?"})
        return None if "timeout: " in str(result.content) else result

    result = await eventually(answered, description="an answer")
    assert result is not None
    assert not result.is_error, result
    return str(result.structured_content["memories"][0]["quote"])


@MODES
def test_callers_at_once_get_their_own_memories(url: str, mode: str) -> None:
    """Given two keys, each with twenty calls at once, I expect every answer to be about the key's own user."""

    async def story() -> None:
        async with (
            served_mcp(url, KEYS) as door,
            connected(door, "anna-key", mode) as anna,
            connected(door, "berta-key", mode) as berta,
        ):
            answers = await asyncio.gather(*(found(client) for _ in range(20) for client in (anna, berta)))
        assert answers == ["anna has a cat", "berta has a cat"] * 20

    with responding(url):
        run(story())


@MODES
def test_the_header_names_the_user_as_far_as_the_key_permits(url: str, mode: str) -> None:
    """Given a key for the users of a prefix, I expect the user of the header; for one of others, and without a header,
    a refusal in words when the client connects."""

    async def story() -> None:
        async with served_mcp(url, KEYS) as door:
            async with connected(door, "shop-key", mode, X_Keepsake_User="shop-7") as client:
                assert await found(client) == "shop-7 has a cat"
            for headers, words in (({"X_Keepsake_User": "anna"}, "not for this user"), ({}, "X-Keepsake-User")):
                with pytest.RaisesGroup(
                    pytest.RaisesExc(MCPError, match=words), flatten_subgroups=True, allow_unwrapped=True
                ):
                    async with connected(door, "shop-key", mode, **headers):
                        pass

    with responding(url):
        run(story())


def test_an_open_gateway_asks_for_the_user(url: str) -> None:
    """Given a gateway without keys, I expect the user of the header."""

    async def story() -> None:
        async with served_mcp(url, OpenDoor()) as door, connected(door, X_Keepsake_User="用户一") as client:
            assert await found(client) == "用户一 has a cat"

    assert OPEN.user is None
    with responding(url):
        run(story())


def test_requests_that_are_no_calls_are_refused(url: str) -> None:
    """Given no key, another method, a body that is too large or none of the protocol, I expect a status for each, and
    the answers of a handshake and of a call as a stream of events and as JSON."""

    async def story() -> None:
        headers = {**ACCEPTED, "Authorization": "Bearer anna-key"}
        async with served_mcp(url, KEYS) as door, httpx2.AsyncClient(headers=headers) as http:
            assert (await http.post(door, json=HANDSHAKE, headers={"Authorization": "Bearer x"})).status_code == 401
            assert (await http.get(door)).status_code == 405
            assert (await http.delete(door)).status_code == 405
            assert (await http.post(door, json={"pad": "x" * MAX_MESSAGE_BYTES})).status_code == 413
            for body in (b"", b"{", b"[]", b"[" * 100_000, b"\xff", b'{"jsonrpc": "2.0", "id": 1}'):
                response = await http.post(door, content=body, headers={"Content-Type": "application/json"})
                assert 400 <= response.status_code < 500, (body[:9], response.text)
            stream = await http.post(door, json=HANDSHAKE)
            assert (stream.status_code, stream.headers["content-type"]) == (200, "text/event-stream")
            assert "mcp-session-id" not in stream.headers

    run(story())


@MODES
def test_a_restart_of_the_gateway_loses_no_client(url: str, mode: str) -> None:
    """Given a client that is connected, I expect its calls to be answered by the gateway after a restart."""

    async def story() -> None:
        port = free_port()
        async with served_mcp(url, KEYS, port) as door:
            client_of_anna = connected(door, "anna-key", mode)
            client = await client_of_anna.__aenter__()
            assert await found(client) == "anna has a cat"
        async with served_mcp(url, KEYS, port):
            assert await found(client) == "anna has a cat"
            await client_of_anna.__aexit__(None, None, None)

    with responding(url):
        run(story())


@MODES
def test_a_call_that_is_cancelled_leaves_the_next_one_alone(url: str, mode: str) -> None:
    """Given a call that is cancelled while the memory does not answer, I expect the next one to get its own answer."""

    async def story() -> None:
        async with served_mcp(url, KEYS) as door, connected(door, "anna-key", mode) as client:
            waiting = asyncio.create_task(client.call_tool("add_memory", {"content": "x"}))
            async with redis.asyncio.Redis.from_url(url) as queue:
                await eventually(lambda: queue.llen("ltm_requests"), description="the request")
            waiting.cancel()
            await asyncio.wait([waiting])
            with responding(url):
                assert await found(client) == "anna has a cat"

    run(story())


@MODES
def test_a_memory_that_is_away_is_an_error_in_words(url: str, mode: str) -> None:
    """Given a Redis that does not answer, I expect the tools to be listed, and a call to say that it goes without."""

    async def story() -> None:
        nowhere = f"redis://127.0.0.1:{free_port()}/0"
        async with served_mcp(nowhere, KEYS) as door, connected(door, "anna-key", mode) as client:
            assert len((await client.list_tools()).tools) == 8
            result = await client.call_tool("search_memories", {"query": "pet?"})
        assert result.is_error
        (block,) = result.content
        assert block.type == "text"
        assert block.text == "unavailable: the memory cannot be reached just now: go on without it"

    run(story())
