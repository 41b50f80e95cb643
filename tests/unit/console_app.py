"""The console over fakeredis, looked at by NiceGUI's simulated user; the test is the memory behind it, and says who."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import fakeredis
import httpx
from nicegui import ui
from nicegui.functions.download import download
from nicegui.functions.navigate import Navigate
from nicegui.functions.notify import notify
from nicegui.testing.general import nicegui_reset_globals
from nicegui.testing.user import User

from services.gateway.app import Gateway, create_app
from services.gateway.console.door import add_console
from services.runtime.settings import load_settings
from tests.served_gateway import OneCaller
from tests.unit.gateway_app import Memory


@dataclass
class ConsoleApp:
    """The console, and who looks at it.

    Args:
        user: NiceGUI's simulated user: `open`, `should_see`, `find`.
        http: for what is no page.
        memory: answers the requests on the wire, and keeps them.
        redis: fakeredis.
        server: of it, for further connections.
        keys: whose `of` is the caller.
    """

    user: User
    http: httpx.AsyncClient
    memory: Memory
    redis: Any
    server: fakeredis.FakeServer
    keys: OneCaller


@asynccontextmanager
async def _console(**settings: Any) -> AsyncIterator[ConsoleApp]:
    server = fakeredis.FakeServer()
    redis = fakeredis.FakeAsyncRedis(server=server)
    memory, keys = Memory(redis), OneCaller()
    app = create_app(Gateway(load_settings(**settings), memory, redis, keys), (add_console,))
    lifespan = app.router.lifespan_context(app)
    await lifespan.__aenter__()
    try:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            yield ConsoleApp(User(http), http, memory, redis, server, keys)
    finally:
        await lifespan.__aexit__(None, None, None)  # told of an exception, NiceGUI would leave its tasks running
        await redis.aclose()


@contextmanager
def simulated() -> Iterator[None]:
    """NiceGUI's globals as new within the block, and its browser simulated."""
    modules = dict(sys.modules)
    os.environ["NICEGUI_USER_SIMULATION"] = "true"
    # NiceGUI collects garbage before and after, and looks through all objects: what was there before is left out.
    gc.freeze()
    try:
        with nicegui_reset_globals():
            yield
    finally:
        gc.unfreeze()
        os.environ.pop("NICEGUI_USER_SIMULATION", None)
        sys.modules.update(modules)  # NiceGUI has the modules of pages imported anew, and with them their packages
        ui.navigate, ui.notify, ui.download = Navigate(), notify, download


def look(story: Callable[[ConsoleApp], Awaitable[None]], **settings: Any) -> None:
    """Run what a test does with the console."""

    async def run() -> None:
        async with _console(**settings) as app:
            # Not raised in here, where NiceGUI would stay started for the next test.
            (outcome,) = await asyncio.gather(story(app), return_exceptions=True)
        if isinstance(outcome, BaseException):
            raise outcome

    with simulated():
        asyncio.run(run())
