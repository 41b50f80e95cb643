"""`python -m services.gateway`: the gateway, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial

import structlog
import uvicorn
from keepsake_client.protocol import COUNTERS
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from services.gateway.api import api
from services.gateway.app import Door, Gateway, create_app
from services.gateway.authentication import Authentication
from services.gateway.client import client_of
from services.gateway.connection import BACKLOG, MAX_CONNECTIONS, Connection, ConnectionLimit, raise_open_files_limit
from services.gateway.exposure import (
    Network,
    check_exposed,
    cors_origins,
    guarded,
    is_loopback,
    listening_socket,
    trusted_proxies,
)
from services.gateway.health import health
from services.gateway.keys import KeyFileInvalid, KeyStore
from services.gateway.mcp_server.http import mcp_door
from services.gateway.mem0_api.door import open_mem0_door
from services.gateway.metrics import ObserveRequests, add_metrics
from services.gateway.proxy.door import add_proxy
from services.gateway.tokens import token_verifier
from services.runtime.counters import PendingCounts
from services.runtime.errors import InvalidSetting
from services.runtime.exposition import exposed
from services.runtime.heartbeat import send_heartbeats
from services.runtime.metrics import Metrics
from services.runtime.process import serve
from services.runtime.process_record import ProcessRecord
from services.runtime.redis import connect_async
from services.runtime.settings import Settings
from services.runtime.tracing import open_spans

NAME = "gateway"
#: Less than the grace period of `ltm up`.
STOP_WITHIN_S = 3
#: Longer than clients and proxies keep an idle connection (httpx 5 s, nginx 60 s), so that none sends on a closed one.
KEEP_ALIVE_S = 75
#: Of a WebSocket's message: what a person types into a page of the console.
MAX_FRAME_BYTES = 1 << 20

log = structlog.get_logger()


async def run(settings: Settings, _: asyncio.Event) -> None:
    """Serve until a signal."""
    url, counts = settings.redis_url.get_secret_value(), PendingCounts(COUNTERS)
    proxies, origins = trusted_proxies(settings), cors_origins(settings)
    authentication = _authentication(settings, proxies, origins, counts)
    raise_open_files_limit()
    listener = listening_socket(settings.ltm_gateway_host, settings.ltm_gateway_port)
    spans = open_spans(settings, NAME)
    async with AsyncExitStack() as opened:
        opened.callback(spans.close)
        metrics = opened.enter_context(exposed(settings, NAME))
        redis = await opened.enter_async_context(connect_async(url))
        ltm = await opened.enter_async_context(client_of(settings))
        await opened.enter_async_context(authentication.watching())
        app = create_app(Gateway(settings, ltm, redis, authentication, counts, spans), _doors(settings))
        doors = guarded(app, proxies, origins, authentication.refused)
        server = _server(doors, counts, metrics)
        port = listener.getsockname()[1]  # chosen by the system where the setting is 0
        listening = settings.model_copy(update={"ltm_gateway_port": port})
        record = ProcessRecord(address=listening.gateway_url, console=listening.console_url)
        metrics.watch([authentication.turning])
        log.info("started", address=record.address)
        alive = [lambda: server.started, authentication.alive, lambda: ltm.subscribed]
        gc.collect()
        gc.freeze()  # of what stays, nothing is looked through again, while requests wait
        async with send_heartbeats(redis, NAME, alive, record=record, on_sent=metrics.beat):
            await server.serve([listener])  # which handles SIGTERM and SIGINT itself
        log.info("stopped")


def _doors(settings: Settings) -> tuple[Door, ...]:
    if not settings.ltm_console:
        return DOORS
    # Here: without the console, the gateway does without NiceGUI, which takes 21 MB and half a second.
    from services.gateway.console.door import add_console  # noqa: PLC0415

    return (*DOORS, add_console)


def _server(app: ASGIApp, counts: PendingCounts, metrics: Metrics) -> uvicorn.Server:
    def on_refusal() -> None:
        counts.count("gateway_busy")

    state = ServerState()
    app = ConnectionLimit(app, MAX_CONNECTIONS, lambda: len(state.connections), on_refusal)
    config = uvicorn.Config(
        ObserveRequests(app, metrics) if metrics.enabled else app,
        http=partial(Connection, on_refusal=on_refusal),  # type: ignore[arg-type]  # it only calls it
        backlog=BACKLOG,
        log_config=None,
        log_level="warning",  # each WebSocket is a line of its URL otherwise
        access_log=False,
        proxy_headers=False,  # uvicorn would believe them of every program of this machine; see `guarded`
        server_header=False,
        ws="websockets-sansio",  # of the console
        ws_max_size=MAX_FRAME_BYTES,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_WITHIN_S,
    )
    server = uvicorn.Server(config)
    server.server_state = state
    return server


def _authentication(
    settings: Settings, proxies: Sequence[Network], origins: Sequence[str], counts: PendingCounts
) -> Authentication:
    """What tells who sends a request, by the settings.

    Raises:
        CannotStart: a setting is wrong, or others would reach the gateway and nothing says who may.
    """
    tokens = token_verifier(settings)
    keys = KeyStore(settings.ltm_gateway_keys, lambda: counts.count("gateway_keys_unusable"))
    try:
        keys.read()
    except (OSError, KeyFileInvalid) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InvalidSetting(
            f"LTM_GATEWAY_KEYS is '{settings.ltm_gateway_keys}', which cannot be used: {reason}"
        ) from None
    if keys.path is not None and not keys.seen and not settings.ltm_gateway_keys_optional:
        raise InvalidSetting(  # a slip of the path must not open the gateway
            f"LTM_GATEWAY_KEYS is '{keys.path}', which is not there: make it with `ltm key create`, or unset it"
        )
    check_exposed(settings, proxies, keys_found=keys.seen, tokens=tokens is not None)
    return Authentication(
        keys,
        tokens,
        settings.ltm_gateway_rate,
        proxied=bool(proxies),
        local=is_loopback(settings.ltm_gateway_host),
        origins=origins,
        counts=counts,
    )


#: In the order in which a path is looked up.
DOORS: tuple[Door, ...] = (health, add_metrics, api, mcp_door, add_proxy, open_mem0_door)

if __name__ == "__main__":
    serve(NAME, run)
