"""Per-user executor: messages of one user in order, a bounded number of users concurrently."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from keepsake_client.cancellation import cancel_all
from keepsake_client.protocol import MemoryUpdateMessage


class PerUserExecutor:
    """Calls `handle` for each message: in order within a user, for at most `width` users at a time.

    Args:
        handle: must not raise.
        per_user: the most waiting messages of one user, so that a flood from one does not delay the others.
        total: the most waiting messages of all users.
    """

    def __init__(
        self,
        handle: Callable[[MemoryUpdateMessage], Awaitable[None]],
        *,
        width: int = 32,
        per_user: int = 100,
        total: int = 2_000,
    ) -> None:
        self._handle = handle
        self._slots = asyncio.Semaphore(width)
        self._per_user = per_user
        self._total = total
        self._waiting: dict[str, deque[MemoryUpdateMessage]] = {}
        self._count = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def offer(self, message: MemoryUpdateMessage) -> bool:
        """Accept the message, or return False: too many are waiting."""
        queue = self._waiting.get(message.user_id)
        if self._count >= self._total or (queue is not None and len(queue) >= self._per_user):
            return False
        self._count += 1
        if queue is not None:
            queue.append(message)
            return True
        self._waiting[message.user_id] = deque([message])
        task = asyncio.create_task(self._run(message.user_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def finish(self, seconds: float) -> int:
        """Wait for the accepted messages for `seconds`, cancel the rest, and return how many were cancelled."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=seconds)
            await cancel_all(late)
        return self._count

    async def _run(self, user_id: str) -> None:
        queue = self._waiting[user_id]
        try:
            while queue:
                async with self._slots:  # acquired for each message: users take turns
                    await self._handle(queue[0])
                queue.popleft()
                self._count -= 1
        finally:
            del self._waiting[user_id]
