"""A gateway with the door of Mem0's clients, on a port of its own, and those clients as their package has them."""

from __future__ import annotations

import asyncio
import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType

import redis.asyncio
import uvicorn
from keepsake_client import AsyncClient
from starlette.requests import Request

from services.gateway.access import ALL_RIGHTS, Caller, Unauthorized
from services.gateway.app import Gateway, create_app
from services.gateway.mem0_api.door import PREFIX, open_mem0_door
from services.runtime.settings import Settings
from tests.support import wait_until

#: What may do everything.
MASTER = Caller("master", ALL_RIGHTS)


@dataclass
class Keys:
    """An authenticator that knows callers by the key that a request brings, in the way of Mem0's clients."""

    callers: dict[str, Caller] = field(default_factory=lambda: {"master": MASTER})

    def caller(self, request: Request) -> Caller:
        """The caller of a request."""
        key = request.headers.get("authorization", "").removeprefix("Token ")
        if key not in self.callers:
            raise Unauthorized("the request has no valid key: `ltm key create` makes one")
        return self.callers[key]


@contextmanager
def mem0_gateway(redis_url: str, keys: Keys) -> Iterator[str]:
    """A running gateway; the `host` for Mem0's clients."""
    servers: list[uvicorn.Server] = []

    async def serve() -> None:
        async with redis.asyncio.Redis.from_url(redis_url) as connection, AsyncClient(redis_url) as ltm:
            gateway = Gateway(Settings(), ltm, connection, keys)
            app = create_app(gateway, [open_mem0_door])
            servers.append(uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, ws="none")))
            await servers[0].serve()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        wait_until(lambda: not thread.is_alive() or (servers and servers[0].started), description="the gateway")
        port = servers[0].servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}{PREFIX}"
    finally:
        servers[0].should_exit = True
        thread.join()


@contextmanager
def mem0_client() -> Iterator[ModuleType]:
    """Mem0's module with its clients, which Keepsake has a placeholder for (services/long_term_memory/__init__.py)."""
    name = "mem0.client.main"
    placeholder = sys.modules.pop(name, None)
    try:
        yield importlib.import_module(name)
    finally:
        if placeholder is not None:
            sys.modules[name] = placeholder
