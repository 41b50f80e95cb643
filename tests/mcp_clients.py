"""The MCP server over HTTP as a program reaches it: the gateway's application on a port, and the SDK's client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from services.gateway.app import Authenticator
from services.gateway.mcp_server.http import mcp_door
from tests.served_gateway import served, settings_of


@asynccontextmanager
async def served_mcp(redis_url: str, authenticator: Authenticator, port: int = 0) -> AsyncIterator[str]:
    """The URL of a running `/mcp`."""
    with served(settings_of(redis_url), [mcp_door], authenticator, port) as url:
        yield f"{url}/mcp"


@asynccontextmanager
async def connected(url: str, key: str = "", mode: str = "auto", **headers: str) -> AsyncIterator[Client]:
    """A client of the SDK.

    Args:
        mode: of the protocol: `legacy` begins with a handshake, and is answered in streams of events.
        headers: by their names, with `_` for `-`.
    """
    named = {name.replace("_", "-"): value.encode() for name, value in headers.items()}
    if key:
        named["Authorization"] = f"Bearer {key}".encode()
    async with (
        httpx2.AsyncClient(headers=[(name.encode(), value) for name, value in named.items()]) as http,
        Client(streamable_http_client(url, http_client=http), mode=mode) as client,
    ):
        yield client
