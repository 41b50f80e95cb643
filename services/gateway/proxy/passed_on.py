"""PassedOn: upstream's response as it comes, whose turns are remembered when it is complete."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import httpx
import structlog
from starlette.responses import StreamingResponse
from starlette.types import Send

from services.gateway.proxy.answers import Answer, StreamedAnswer, WholeAnswer
from services.gateway.proxy.chat_memory import ChatMemory, Turn
from services.gateway.proxy.upstream import response_headers

_EVENTS: Final = "text/event-stream"

log = structlog.get_logger()


class PassedOn(StreamingResponse):
    """A response of upstream, passed back byte for byte.

    Args:
        upstream: its head has arrived, its body is still to come.
        memory: is told the turns.
        turn: what the response answers; None where nothing is to be remembered.
    """

    def __init__(self, upstream: httpx.Response, memory: ChatMemory, turn: Turn | None) -> None:
        self._upstream = upstream
        self._memory = memory
        self._turn = turn
        streams = upstream.headers.get("content-type", "").lower().startswith(_EVENTS)
        self._answer: Answer = StreamedAnswer() if streams else WholeAnswer()
        self._chunks = self._passed()
        super().__init__(self._chunks, upstream.status_code)
        self.raw_headers = response_headers(upstream)

    async def stream_response(self, send: Send) -> None:
        """Send the response. One that breaks off is not completed, so that the client notices."""
        async with aclosing(self._chunks):  # at once when the client hangs up: upstream must not go on
            try:
                await super().stream_response(send)
            except httpx.TransportError as error:
                log.warning("upstream_broke_off", error=type(error).__name__)

    async def _passed(self) -> AsyncGenerator[bytes, None]:
        reason = "client_gone"
        try:
            async for chunk in self._upstream.aiter_raw():
                if self._turn is not None:
                    self._answer.feed(chunk)
                yield chunk
            self._answer.end()
            reason = "unreadable"
        except httpx.TransportError:
            reason = "upstream_broke_off"
            raise
        finally:
            await self._upstream.aclose()
            if self._turn is not None:
                self._tell(self._turn, reason)

    def _tell(self, turn: Turn, reason: str) -> None:
        if (text := self._answer.text) is None:
            self._memory.incomplete(turn, reason)
        else:
            self._memory.remember(turn, text)
