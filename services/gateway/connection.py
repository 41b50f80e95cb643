"""The gateway's HTTP connections: closed where no request comes in time, and refused where there are too many."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from typing import Any, Final

import h11
from keepsake_client.errors import Unavailable
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from services.gateway.exposure import HEALTH_PATHS
from services.gateway.problems import problem_of, problem_response, refuse

#: Connections at once; over that, a request is answered 503. Of those beyond, so many are kept until they send one.
MAX_CONNECTIONS: Final = 1_000
MAX_REFUSED: Final = 64
#: Enough for all of them, for what one pass of accepting adds (see `BACKLOG`), and for connections of its own. Linux
#: gives 1,024 to a process that does not ask for more.
OPEN_FILES: Final = 4_096
#: Connections that the kernel holds for us; asyncio takes as many at a time.
BACKLOG: Final = 1_024
#: How long the head of a request may take, the first one counted from the connection on.
HEAD_WITHIN_S: Final = 20.0


class Connection(H11Protocol):
    """An HTTP connection that is closed where the head of a request does not come in time.

    uvicorn's own waits for ever for a first request and for the rest of a head: a thousand such would keep others out.

    Args:
        on_refusal: called for each that is closed because there are too many.
        options: of uvicorn's own.
    """

    head_within_s = HEAD_WITHIN_S
    max_connections = MAX_CONNECTIONS + MAX_REFUSED

    def __init__(self, *, on_refusal: Callable[[], None], **options: Any) -> None:
        super().__init__(**options)
        self._on_refusal = on_refusal
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self._on_refusal()
            transport.abort()
        else:
            self._start_head_timer()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_head_timer()
        elif self._head_timer is None:  # a further request has begun
            self._start_head_timer()

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.head_within_s, self.transport.close)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def raise_open_files_limit(wanted: int = OPEN_FILES) -> None:
    """Raise the limit of open files of this process to so many, or to as many as it may have.

    Without one for a further connection, asyncio tries again and again to take it, and logs a traceback for each try.
    """
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    if allowed != resource.RLIM_INFINITY and allowed < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


class ConnectionLimit:
    """ASGI middleware that answers 503, and has the connection closed, where there are more than so many.

    uvicorn's own limit leaves no count, and logs each request.

    Args:
        limit: how many there may be.
        connections: how many there are.
        on_refusal: called for each request that is refused.
    """

    def __init__(
        self, app: ASGIApp, limit: int, connections: Callable[[], int], on_refusal: Callable[[], None]
    ) -> None:
        self._app = app
        self._limit = limit
        self._connections = connections
        self._on_refusal = on_refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A refused probe would have a busy gateway restarted.
        served = scope["type"] == "lifespan" or scope["path"] in HEALTH_PATHS
        if served or self._connections() <= self._limit:
            await self._app(scope, receive, send)
            return
        self._on_refusal()
        problem = problem_of(Unavailable(f"there are more than {self._limit} connections: ask again later"))
        await refuse(problem_response(problem, {"Connection": "close"}), scope, receive, send)
