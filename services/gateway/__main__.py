"""`python -m services.gateway`: the gateway, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio

import structlog
import uvicorn

from services.gateway.app import Door, Gateway, OpenDoor, create_app
from services.gateway.mcp_server.http import mcp_door
from services.gateway.wire import client_of
from services.runtime.heartbeat import send_heartbeats
from services.runtime.process import serve
from services.runtime.redis import connect_async
from services.runtime.settings import Settings

NAME = "gateway"
#: Less than the grace period of `ltm up`.
STOP_WITHIN_S = 3

log = structlog.get_logger()


async def run(settings: Settings, _: asyncio.Event) -> None:
    """Serve until a signal."""
    url = settings.redis_url.get_secret_value()
    async with connect_async(url) as redis, client_of(settings) as ltm:
        app = create_app(Gateway(settings, ltm, redis, OpenDoor()), DOORS)
        config = uvicorn.Config(
            app,
            settings.ltm_gateway_host,
            settings.ltm_gateway_port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=STOP_WITHIN_S,
        )
        server = uvicorn.Server(config)
        log.info("started", host=settings.ltm_gateway_host, port=settings.ltm_gateway_port)
        async with send_heartbeats(redis, NAME, [lambda: server.started]):
            await server.serve()  # which handles SIGTERM and SIGINT itself
        log.info("stopped")


#: In the order in which a path is looked up.
DOORS: tuple[Door, ...] = (mcp_door,)

if __name__ == "__main__":
    serve(NAME, run)
