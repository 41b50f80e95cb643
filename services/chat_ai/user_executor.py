"""Many users at once, each in order: a lane a user, a bounded number of lanes moving."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from keepsake_client.protocol import MemoryUpdateMessage

from services.runtime.process import cancel_all


class PerUserExecutor:
    """Calls `handle` for each message: in order within a user, for at most `width` users at a time.

    Args:
        handle: keeps its own errors to itself.
        per_user: messages one user may have waiting, so that a flood by one keeps nobody else waiting.
        total: messages waiting altogether.
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
        self._moving = asyncio.Semaphore(width)
        self._per_user = per_user
        self._total = total
        self._waiting: dict[str, deque[MemoryUpdateMessage]] = {}
        self._count = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def offer(self, message: MemoryUpdateMessage) -> bool:
        """Take the message, or return False: too many are waiting."""
        lane = self._waiting.get(message.user_id)
        if self._count >= self._total or (lane is not None and len(lane) >= self._per_user):
            return False
        self._count += 1
        if lane is not None:
            lane.append(message)
            return True
        self._waiting[message.user_id] = deque([message])
        task = asyncio.create_task(self._drive(message.user_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def finish(self, seconds: float) -> int:
        """Let what was taken end within `seconds`, give up the rest, and return how many messages that was."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=seconds)
            await cancel_all(late)
        return self._count

    async def _drive(self, user_id: str) -> None:
        lane = self._waiting[user_id]
        try:
            while lane:
                async with self._moving:  # taken anew for each message: users take turns
                    await self._handle(lane[0])
                lane.popleft()
                self._count -= 1
        finally:
            del self._waiting[user_id]
