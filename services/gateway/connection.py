"""The gateway's HTTP connections: closed where no request comes in time, and refused where there are too many."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import h11
from keepsake_client.errors import Unavailable
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from services.gateway.problems import problem_of, problem_response

#: How long the head of a request may take, the first one counted from the connection on.
HEAD_WITHIN_S: Final = 20.0


class Connection(H11Protocol):
    """uvicorn's waits for ever for a first request and the rest of a head: a thousand such would keep others out."""

    head_within_s = HEAD_WITHIN_S
    _awaited: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._await_no_more()
        elif self._awaited is None:  # a further request has begun
            self._await_head()

    def _await_head(self) -> None:
        self._awaited = self.loop.call_later(self.head_within_s, self.transport.close)

    def _await_no_more(self) -> None:
        if self._awaited is not None:
            self._awaited.cancel()
            self._awaited = None


class AtMost:
    """ASGI middleware that answers 503, and has the connection closed, where there are more than so many.

    uvicorn's own limit leaves no count, and logs each request.

    Args:
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
        if scope["type"] == "lifespan" or self._connections() <= self._limit:
            await self._app(scope, receive, send)
            return
        self._on_refusal()
        problem = problem_of(Unavailable(f"there are more than {self._limit} connections: ask again later"))
        await problem_response(problem, {"Connection": "close"})(scope, receive, send)
