"""`python -m services.gateway`: the gateway, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog
import uvicorn
from keepsake_client import AsyncClient
from keepsake_client.protocol import COUNTERS

from services.gateway.app import Door, Gateway, create_app
from services.gateway.authentication import Authentication
from services.gateway.exposure import (
    Network,
    check_exposed,
    cors_origins,
    guarded,
    is_loopback,
    listening_socket,
    trusted_proxies,
)
from services.gateway.keys import KeyFileInvalid, KeyStore
from services.gateway.tokens import token_verifier
from services.runtime.counters import PendingCounts
from services.runtime.errors import InvalidSetting
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
    proxies, origins = trusted_proxies(settings), cors_origins(settings)
    authentication = _authentication(settings, proxies, origins)
    listener = listening_socket(settings.ltm_gateway_host, settings.ltm_gateway_port)
    async with connect_async(url) as redis, ltm, authentication.watching(redis):
        app = create_app(Gateway(settings, ltm, redis, authentication), DOORS)
        config = uvicorn.Config(
            guarded(app, proxies, origins, authentication.count_refusal),
            log_config=None,
            access_log=False,
            proxy_headers=False,  # uvicorn would believe them of every program of this machine; see `guarded`
            server_header=False,
            ws="none",
            timeout_graceful_shutdown=STOP_WITHIN_S,
        )
        server = uvicorn.Server(config)
        host, port, *_ = listener.getsockname()
        log.info("started", host=host, port=port)
        async with send_heartbeats(redis, NAME, [lambda: server.started, authentication.alive]):
            await server.serve([listener])  # which handles SIGTERM and SIGINT itself
        log.info("stopped")


def _authentication(settings: Settings, proxies: Sequence[Network], origins: Sequence[str]) -> Authentication:
    """What tells who sends a request, by the settings.

    Raises:
        CannotStart: a setting is wrong, or others would reach the gateway and nothing says who may.
    """
    tokens = token_verifier(settings)
    counts = PendingCounts(COUNTERS)
    keys = KeyStore(settings.ltm_gateway_keys, lambda: counts.count("gateway_keys_unusable"))
    try:
        keys.read()
    except (OSError, KeyFileInvalid) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InvalidSetting(
            f"LTM_GATEWAY_KEYS is '{settings.ltm_gateway_keys}', which cannot be used: {reason}"
        ) from None
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
DOORS: tuple[Door, ...] = ()

if __name__ == "__main__":
    serve(NAME, run)
