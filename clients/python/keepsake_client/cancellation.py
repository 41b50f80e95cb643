"""Cancellation of tasks that use redis-py."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

#: Between attempts; the next one does what the one that was swallowed should have done.
_AGAIN_AFTER_S = 0.01


async def cancel_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks until they have ended.

    Once is not enough: redis-py uses `asyncio.wait_for`, which before Python 3.12 swallows a cancellation that arrives
    in the moment its own wait is over.
    """
    pending = {task for task in tasks if not task.done()}  # one that is done may belong to an earlier event loop
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_AGAIN_AFTER_S)
