"""The gateway on a real port, in a thread, with the callers that a test gives."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn
from keepsake_client import AsyncClient
from pydantic import SecretStr
from starlette.requests import Request

from services.gateway.access import OPEN, Caller, Unauthorized
from services.gateway.app import Authenticator, Door, Gateway, OpenDoor, create_app
from services.runtime.redis import connect_async
from services.runtime.settings import Settings
from tests.support import PATIENCE_S, wait_until


class Keys:
    """An authenticator that knows callers by the key that a request brings, under whichever scheme.

    Args:
        callers: by their keys; a test may add its own.
    """

    def __init__(self, callers: Mapping[str, Caller]) -> None:
        self.callers = dict(callers)

    def caller(self, request: Request) -> Caller:
        key = request.headers.get("authorization", "").partition(" ")[2]
        if key not in self.callers:
            raise Unauthorized("the request has no valid key: `ltm key create` makes one")
        return self.callers[key]

    identify = caller


class OneCaller:
    """An authenticator whose caller the test sets."""

    def __init__(self) -> None:
        self.of: Caller = OPEN

    def caller(self, _: Request) -> Caller:
        return self.of

    identify = caller


@contextmanager
def served(
    settings: Settings, doors: Sequence[Door], authenticator: Authenticator | None = None, port: int = 0
) -> Iterator[str]:
    """A gateway with these doors; yields its URL. It is stopped as by SIGTERM.

    Args:
        port: 0 for any that is free.
    """
    servers: list[uvicorn.Server] = []
    thread = threading.Thread(
        target=lambda: asyncio.run(_serve(settings, doors, authenticator or OpenDoor(), port, servers)), daemon=True
    )
    thread.start()
    try:
        wait_until(
            lambda: not thread.is_alive() or (servers and servers[0].started), description="the gateway to listen"
        )
        yield f"http://127.0.0.1:{servers[0].servers[0].sockets[0].getsockname()[1]}"
    finally:
        for server in servers:
            server.should_exit = True
        thread.join(PATIENCE_S)
    assert not thread.is_alive()


async def _serve(
    settings: Settings, doors: Sequence[Door], authenticator: Authenticator, port: int, servers: list[uvicorn.Server]
) -> None:
    url = settings.redis_url.get_secret_value()
    async with connect_async(url) as client, AsyncClient(url) as ltm:
        app = create_app(Gateway(settings, ltm, client, authenticator), doors)
        config = uvicorn.Config(app, port=port, log_config=None, access_log=False, timeout_graceful_shutdown=3)
        servers.append(uvicorn.Server(config))
        await servers[0].serve()


def settings_of(url: str, **values: Any) -> Settings:
    """Settings of a gateway on that Redis, without the developer's own key."""
    return Settings(redis_url=SecretStr(url), **{"openai_api_key": None, "ltm_search_timeout_ms": 20_000, **values})
