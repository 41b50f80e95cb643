"""Counts that wait in a process: written while it runs, and at its end."""

from __future__ import annotations

import asyncio
from typing import Any

import fakeredis
from keepsake_client.protocol import COUNTERS

from services.runtime.counters import WRITE_INTERVAL_S, PendingCounts
from tests.support import SkippingLoop, eventually


def test_counts_are_written_meanwhile_and_at_the_end() -> None:
    """Given counts in a block that writes them, I expect the first in Redis soon, and the last when it ends."""
    counts = PendingCounts(COUNTERS)
    client: Any = fakeredis.FakeAsyncRedis()

    async def story() -> None:
        async with counts.written(client):
            counts.count("a")
            assert await eventually(lambda: client.hgetall(COUNTERS), description="the first") == {b"a": b"1"}
            counts.count("b", 2)
        assert await client.hgetall(COUNTERS) == {b"a": b"1", b"b": b"2"}

    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        runner.run(story())


def test_what_redis_does_not_take_is_written_later() -> None:
    """Given a Redis that is away for a time, I expect its counts when it is back."""
    server = fakeredis.FakeServer()
    counts = PendingCounts(COUNTERS)
    client: Any = fakeredis.FakeAsyncRedis(server=server)

    async def story() -> None:
        clock = asyncio.get_running_loop().time
        server.connected = False
        async with counts.written(client):
            counts.count("a")
            await eventually(lambda: clock() > 2 * WRITE_INTERVAL_S, description="the time of two tries")
            server.connected = True
            assert await eventually(lambda: client.hgetall(COUNTERS), description="the count") == {b"a": b"1"}

    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        runner.run(story())
