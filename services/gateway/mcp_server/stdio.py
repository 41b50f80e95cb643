"""MCP over stdin and stdout, for a program that starts the server itself: `ltm mcp`."""

from __future__ import annotations

from mcp.server.stdio import stdio_server

from services.gateway.app import Gateway, OpenDoor
from services.gateway.client import client_of
from services.gateway.mcp_server.asker import Asker
from services.gateway.mcp_server.server import build_server
from services.runtime.redis import connect_async
from services.runtime.settings import Settings


async def serve_stdio(settings: Settings, asker: Asker) -> None:
    """Serve until the end of stdin."""
    async with connect_async(settings.redis_url.get_secret_value()) as redis, client_of(settings) as ltm:
        gateway = Gateway(settings, ltm, redis, OpenDoor())
        server = build_server(gateway, lambda _: asker)
        async with gateway.counts.written(redis), stdio_server() as (read, write):
            await server.run(read, write, server.create_initialization_options())
