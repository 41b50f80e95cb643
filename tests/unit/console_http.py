"""The console as a browser's plain requests reach it, with callers by their keys."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import ip_network
from typing import Any

import fakeredis
import httpx
from starlette.requests import Request

from services.gateway.access import ALL_RIGHTS, Caller
from services.gateway.app import Authenticator, Gateway, create_app
from services.gateway.console.door import add_console
from services.gateway.exposure import guarded
from services.runtime.settings import load_settings
from tests.served_gateway import Keys
from tests.unit.console_app import simulated
from tests.unit.gateway_app import Memory

ORIGIN = "http://keepsake.example"
ANNA = Caller("anna", ALL_RIGHTS)
Story = Callable[[httpx.AsyncClient], Awaitable[None]]


class Browsers:
    """Browsers, each with a console that they share, and with an address of its own. `authenticator` knows callers."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self.authenticator: Authenticator = Keys({})
        self._runner = runner
        self._hosts = (f"10.0.0.{number}" for number in itertools.count(1))
        redis = fakeredis.FakeAsyncRedis()
        self.app = create_app(Gateway(load_settings(), Memory(redis), redis, self), (add_console,))

    def caller(self, request: Request) -> Caller:
        return self.authenticator.caller(request)

    def identify(self, request: Request) -> Caller:
        return self.authenticator.identify(request)

    def browse(self, story: Story, authenticator: Authenticator | None = None, proxies: Sequence[str] = ()) -> None:
        """Run what a test does with a browser that has not signed in; the key `anna` is valid by default."""
        self.authenticator = authenticator or Keys({"anna": ANNA})
        app = guarded(self.app, [ip_network(proxy) for proxy in proxies], (), lambda *_: None)

        async def run() -> None:
            transport: Any = httpx.ASGITransport(app, client=(next(self._hosts), 1))
            async with httpx.AsyncClient(transport=transport, base_url=ORIGIN) as http:
                await story(http)

        self._runner.run(run())


@contextmanager
def browsers() -> Iterator[Browsers]:
    """Browsers within the block."""
    with simulated(), asyncio.Runner() as runner:
        found = Browsers(runner)
        lifespan = found.app.router.lifespan_context(found.app)
        runner.run(lifespan.__aenter__())
        try:
            yield found
        finally:
            runner.run(lifespan.__aexit__(None, None, None))


async def sign_in(http: httpx.AsyncClient, key: str = "anna", **headers: str) -> httpx.Response:
    """Sign in as a browser does."""
    sent: Mapping[str, str] = {"origin": ORIGIN, **headers}
    return await http.post("/console/sign-in", data={"key": key}, headers=sent)
