"""Counts for `ltm:counters` that wait in the process until Redis takes them."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis
import redis.asyncio

from services.runtime.backoff import pause

#: How often `written` writes.
WRITE_INTERVAL_S = 1.0


class PendingCounts:
    """Counts that are kept while Redis is away or refuses writes, and written after; thread-safe.

    Args:
        key: the hash that they are added to.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self._lock = threading.Lock()
        self._pending: Counter[str] = Counter()

    def count(self, name: str, number: int = 1) -> None:
        """Add to the field `name`, at the next flush."""
        with self._lock:
            self._pending[name] += number

    def flush(self, client: redis.Redis) -> None:
        """Write the pending counts; what Redis does not take stays pending."""
        while taken := self._take():
            try:
                client.hincrby(self._key, *taken)
            except (redis.RedisError, OSError):
                self.count(*taken)
                break

    async def flush_async(self, client: redis.asyncio.Redis) -> None:
        """`flush` for asyncio."""
        while taken := self._take():
            try:
                await client.hincrby(self._key, *taken)
            except (redis.RedisError, OSError):
                self.count(*taken)
                break

    @asynccontextmanager
    async def written(self, client: redis.asyncio.Redis) -> AsyncIterator[None]:
        """Write the counts each second within the block, and at its end."""
        ended = asyncio.Event()

        async def write() -> None:
            while not ended.is_set():  # not cancelled: what is being written then would be lost
                await self.flush_async(client)
                await pause(WRITE_INTERVAL_S, ended)

        task = asyncio.create_task(write(), name="counts")
        try:
            yield
        finally:
            ended.set()
            await task
            await self.flush_async(client)

    def _take(self) -> tuple[str, int] | None:
        with self._lock:
            return self._pending.popitem() if self._pending else None
