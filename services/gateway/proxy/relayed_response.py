"""RelayedResponse: upstream's response, relayed as it comes; its turns are remembered when it is complete."""

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


class RelayedResponse(StreamingResponse):
    """A response of upstream, relayed byte for byte.

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
        self._chunks = self._relayed()
        super().__init__(self._chunks, upstream.status_code)
        self.raw_headers = response_headers(upstream)

    async def stream_response(self, send: Send) -> None:
        """Send the response. One that breaks off is not completed, so that the client notices."""
        reason = "client_gone"
        try:
            async with aclosing(self._chunks):
                await super().stream_response(send)
            reason = "unreadable"
        except httpx.TransportError as error:
            reason = "upstream_broke_off"
            log.warning("upstream_broke_off", error=type(error).__name__)
        finally:  # not in the generator, which never begins where the client is gone before the first byte
            if self._turn is not None:
                self._remember(self._turn, reason)
            await self._upstream.aclose()  # at once when the client hangs up: upstream must not go on

    async def _relayed(self) -> AsyncGenerator[bytes, None]:
        async for chunk in self._upstream.aiter_raw():
            if self._turn is not None:
                self._answer.feed(chunk)
            yield chunk
        self._answer.end()

    def _remember(self, turn: Turn, reason: str) -> None:
        if (text := self._answer.text) is None:
            self._memory.incomplete(turn, reason)
        else:
            self._memory.remember(turn, text)
