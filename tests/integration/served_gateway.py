"""The gateway on a real port, in a thread, and a stand-in for the long-term memory behind it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
import uvicorn
from keepsake_client import AsyncClient
from keepsake_client.protocol import parse_request
from pydantic import SecretStr

from services.gateway.app import Authenticator, Door, Gateway, OpenDoor, create_app
from services.runtime.redis import connect_async
from services.runtime.settings import Settings
from tests.support import PATIENCE_S, wait_until


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
        wait_until(lambda: servers and servers[0].started, description="the gateway to listen")
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


class StandInMemory(threading.Thread):
    """Answers each `context` with what it knows of the user, and not at all where that is None."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._ended = threading.Event()
        #: Parts of a context, by user.
        self.knows: dict[str, dict[str, Any] | None] = {}
        self.requests: list[dict[str, Any]] = []

    def run(self) -> None:
        with redis.Redis.from_url(self._url) as client:
            while not self._ended.is_set():
                popped: Any = client.brpop(["ltm_requests"], timeout=0.1)
                if popped is None:
                    continue
                parse_request(popped[1], 100_000)
                request = json.loads(popped[1])
                self.requests.append(request)
                parts = self.knows.get(request["user_id"], {})
                if parts is not None:
                    response = {"request_id": request["request_id"], "user_id": request["user_id"], "success": True}
                    client.publish("ltm_responses", json.dumps({**response, "context_parts": parts}))

    def end(self) -> None:
        self._ended.set()
        self.join()
