"""`python -m services.gateway`: the gateway, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio

import structlog
import uvicorn
from keepsake_client import AsyncClient

from services.gateway.api import api
from services.gateway.app import Door, Gateway, OpenDoor, create_app
from services.gateway.health import health
from services.runtime.heartbeat import send_heartbeats
from services.runtime.process import serve
from services.runtime.redis import connect_async
from services.runtime.settings import Settings

NAME = "gateway"
#: Less than the grace period of `ltm up`.
STOP_WITHIN_S = 3
#: Connections at once; over that, a request is answered 503.
MAX_CONNECTIONS = 1_000
#: Longer than clients and proxies keep an idle connection (httpx 5 s, nginx 60 s), so that none sends on a closed one.
KEEP_ALIVE_S = 75

log = structlog.get_logger()


async def run(settings: Settings, _: asyncio.Event) -> None:
    """Serve until a signal."""
    url = settings.redis_url.get_secret_value()
    ltm = AsyncClient(
        url,
        requests_queue=settings.ltm_requests_queue,
        manage_queue=settings.ltm_manage_queue,
        responses_channel=settings.ltm_responses_channel,
        updates_channel=settings.memory_updates_channel,
        updates_stream=settings.ltm_stream_key,
        stream_max_len=settings.ltm_stream_max_len,
    )
    async with connect_async(url) as redis, ltm:
        app = create_app(Gateway(settings, ltm, redis, OpenDoor()), DOORS)
        config = uvicorn.Config(
            app,
            settings.ltm_gateway_host,
            settings.ltm_gateway_port,
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=STOP_WITHIN_S,
        )
        server = uvicorn.Server(config)
        log.info("started", host=settings.ltm_gateway_host, port=settings.ltm_gateway_port)
        async with send_heartbeats(redis, NAME, [lambda: server.started]):
            await server.serve()  # which handles SIGTERM and SIGINT itself
        log.info("stopped")


#: In the order in which a path is looked up.
DOORS: tuple[Door, ...] = (health, api)

if __name__ == "__main__":
    serve(NAME, run)
