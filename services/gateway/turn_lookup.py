"""TurnLookup: follows ids for an asyncio program, one at a time: a lookup reads whole streams."""

from __future__ import annotations

import asyncio

from starlette.concurrency import run_in_threadpool

from services.runtime.settings import Settings
from services.runtime.turn import Turn
from services.runtime.turn_reader import turn_reader


class TurnLookup:
    """Follows ids in a thread.

    Args:
        settings: of the pipeline.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._one_at_a_time = asyncio.Semaphore(1)

    async def follow(self, identifier: str) -> Turn:
        """The turn that an id belongs to.

        Args:
            identifier: a message_id, request_id or task_id.

        Raises:
            RedisError, OSError: Redis does not answer.
        """
        async with self._one_at_a_time:
            return await run_in_threadpool(self._follow, identifier)

    def _follow(self, identifier: str) -> Turn:
        with turn_reader(self._settings) as reader:
            return reader.follow(identifier)
