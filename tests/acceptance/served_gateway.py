"""A gateway in a thread of the tests, on a stack that runs, with a caller that the tests set."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import Request
from keepsake_client import AsyncClient

from services.gateway.__main__ import DOORS
from services.gateway.access import OPEN, Caller
from services.gateway.app import Gateway, create_app
from services.runtime.redis import connect_async
from services.runtime.settings import load_settings
from tests.support import free_port, wait_until


class ServedGateway:
    """The gateway; `caller` is who every request is of, `schema` its OpenAPI description."""

    def __init__(self, redis_url: str) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self.caller_set: Caller = OPEN
        self.schema: dict[str, Any] = {}
        self._redis_url = redis_url
        self._server: uvicorn.Server | None = None
        self.thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def caller(self, _: Request) -> Caller:
        return self.caller_set

    @property
    def started(self) -> bool:
        return self._server is not None and self._server.started

    def stop(self) -> None:
        if self._server is not None:
            self._server.should_exit = True
        self.thread.join()

    async def _serve(self) -> None:
        settings = load_settings(redis_url=self._redis_url, broker_url=None)
        async with connect_async(self._redis_url) as redis, AsyncClient(self._redis_url) as ltm:
            app = create_app(Gateway(settings, ltm, redis, self), DOORS)
            self.schema = app.openapi()
            port = int(self.url.rpartition(":")[2])
            self._server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, access_log=False))
            await self._server.serve()


@contextmanager
def served_gateway(redis_url: str) -> Iterator[ServedGateway]:
    """The gateway, once it serves."""
    gateway = ServedGateway(redis_url)
    gateway.thread.start()
    try:
        wait_until(lambda: gateway.started or not gateway.thread.is_alive(), description="the gateway to serve")
        yield gateway
    finally:
        gateway.stop()
