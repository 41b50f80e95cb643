"""Counts that wait in a process: written while it runs, and at its end."""

from __future__ import annotations

import asyncio

import fakeredis
from keepsake_client.protocol import COUNTERS

from services.runtime.counters import PendingCounts
from tests.support import SkippingLoop


def test_counts_are_written_meanwhile_and_at_the_end() -> None:
    """Given counts in a block that writes them, I expect the first in Redis soon, and the last when it ends."""
    counts, client = PendingCounts(COUNTERS), fakeredis.FakeAsyncRedis()

    async def story() -> None:
        async with counts.written(client):
            counts.count("a")
            await asyncio.sleep(5)
            assert await client.hgetall(COUNTERS) == {b"a": b"1"}
            counts.count("b", 2)
        assert await client.hgetall(COUNTERS) == {b"a": b"1", b"b": b"2"}

    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        runner.run(story())


def test_what_redis_does_not_take_is_written_later() -> None:
    """Given a Redis that is away for a time, I expect its counts when it is back."""
    server = fakeredis.FakeServer()
    counts, client = PendingCounts(COUNTERS), fakeredis.FakeAsyncRedis(server=server)

    async def story() -> None:
        server.connected = False
        async with counts.written(client):
            counts.count("a")
            await asyncio.sleep(5)
            server.connected = True
            await asyncio.sleep(5)
            assert await client.hgetall(COUNTERS) == {b"a": b"1"}

    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        runner.run(story())
