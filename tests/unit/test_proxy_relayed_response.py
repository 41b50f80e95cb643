"""The response that the proxy relays, to clients that hang up at moments which no test on real ports can choose."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fakeredis import FakeAsyncRedis
from keepsake_client import AsyncClient
from keepsake_client.protocol import COUNTERS
from starlette.types import Message

from services.gateway.proxy.chat_memory import ChatMemory, Turn
from services.gateway.proxy.chat_request import ChatMessage
from services.gateway.proxy.relayed_response import RelayedResponse
from services.runtime.counters import PendingCounts


class Body(httpx.AsyncByteStream):
    """A body of two chunks, which says whether it was closed."""

    closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"data: {}"
        yield b"\n\n"

    async def aclose(self) -> None:
        self.closed = True


@pytest.mark.parametrize("sent", [0, 1, 2])
def test_upstream_is_closed_where_the_client_is_gone(sent: int) -> None:
    """Given a client that is gone before the head, the first chunk or the second, I expect upstream's response closed
    and both turns counted."""
    body, counts = Body(), PendingCounts(COUNTERS)
    messages: list[Message] = []

    async def send(message: Message) -> None:
        if len(messages) == sent:
            raise OSError("the client is gone")
        messages.append(message)

    async def story() -> None:
        async with FakeAsyncRedis() as redis:
            memory = ChatMemory(AsyncClient(redis), counts, 600, 5, 1_000, redis)
            turn = Turn("u", (ChatMessage("user", "Hi"),), None, None, 0)
            response = RelayedResponse(httpx.Response(200, stream=body), memory, turn)
            with pytest.raises(OSError, match="gone"):
                await response.stream_response(send)
            assert body.closed
            await counts.flush_async(redis)
            assert await redis.hgetall(COUNTERS) == {b"proxy_not_remembered": b"2"}

    asyncio.run(story())
