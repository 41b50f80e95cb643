"""The MCP server over HTTP as a program reaches it: the gateway's application on a port, and the SDK's client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx2
import uvicorn
from fastapi import FastAPI, Request
from keepsake_client import AsyncClient
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from redis.asyncio import Redis

from services.gateway.access import Caller, Unauthorized
from services.gateway.app import Authenticator, Gateway, create_app
from services.gateway.mcp_server.http import mcp_door
from services.runtime.settings import Settings
from tests.support import eventually, free_port


class Keys:
    """An authenticator with given keys.

    Args:
        callers: by their keys.
    """

    def __init__(self, callers: Mapping[str, Caller]) -> None:
        self._callers = callers

    def caller(self, request: Request) -> Caller:
        key = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if key not in self._callers:
            raise Unauthorized("no such key")
        return self._callers[key]


@asynccontextmanager
async def served(redis_url: str, authenticator: Authenticator, port: int = 0) -> AsyncIterator[str]:
    """The URL of a running `/mcp`."""
    port = port or free_port()
    async with AsyncClient(redis_url) as ltm, Redis.from_url(redis_url) as redis:
        app = create_app(Gateway(Settings(), ltm, redis, authenticator), [mcp_door])
        async with listening(app, port):
            yield f"http://127.0.0.1:{port}/mcp"


@asynccontextmanager
async def listening(app: FastAPI, port: int) -> AsyncIterator[None]:
    """The application on a port; what is still being answered at the end has a second."""
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, timeout_graceful_shutdown=1))
    serving = asyncio.create_task(server.serve())
    try:
        await eventually(lambda: server.started or serving.done(), description="the server to listen")
        yield
    finally:
        server.should_exit = True
        await serving


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
