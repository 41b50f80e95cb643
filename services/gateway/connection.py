"""Connection: one HTTP connection to the gateway, which is closed where no request comes on it in time."""

from __future__ import annotations

import asyncio
from typing import Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

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

    def connection_lost(self, exc: Exception | None) -> None:
        self._await_no_more()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._awaited = self.loop.call_later(self.head_within_s, self.transport.close)

    def _await_no_more(self) -> None:
        if self._awaited is not None:
            self._awaited.cancel()
            self._awaited = None
