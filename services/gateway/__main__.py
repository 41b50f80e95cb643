"""`python -m services.gateway`: the gateway, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import structlog
import uvicorn
from keepsake_client import AsyncClient

from services.gateway.app import Door, Gateway, OpenDoor, create_app
from services.gateway.metrics import ObserveRequests, add_metrics
from services.runtime.exposition import exposed
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
    ltm = AsyncClient(
        url,
        requests_queue=settings.ltm_requests_queue,
        manage_queue=settings.ltm_manage_queue,
        responses_channel=settings.ltm_responses_channel,
        updates_channel=settings.memory_updates_channel,
        updates_stream=settings.ltm_stream_key,
        stream_max_len=settings.ltm_stream_max_len,
    )
    async with AsyncExitStack() as opened:
        metrics = opened.enter_context(exposed(settings, NAME))
        redis = await opened.enter_async_context(connect_async(url))
        await opened.enter_async_context(ltm)
        app = create_app(Gateway(settings, ltm, redis, OpenDoor()), DOORS)
        if metrics.enabled:
            app.add_middleware(ObserveRequests, metrics=metrics)
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
DOORS: tuple[Door, ...] = (add_metrics,)

if __name__ == "__main__":
    serve(NAME, run)
