"""FailedMessages: dead letters and rejects of a stack for asyncio, each call in a thread."""

from __future__ import annotations

import asyncio

from services.runtime.dead_letters import DeadLetter
from services.runtime.open_dead_letters import open_dead_letters
from services.runtime.redis import connect
from services.runtime.rejected import Reject, newest_rejects
from services.runtime.settings import Settings

#: Of each command; what asks is a page that a person waits for.
TIMEOUT_S = 3.0


class FailedMessages:
    """Lists dead letters and rejects, newest first; replays and drops one dead letter.

    Every method raises `redis.RedisError` where Redis does not answer, and those of dead letters `StackError` where
    RabbitMQ does not, or the workers' queues are elsewhere; its text says what to do. Payloads, tracebacks and
    rejected messages may hold contents.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """The last messages that died, newest first."""
        return await asyncio.to_thread(lambda: open_dead_letters(self._settings, TIMEOUT_S).newest(limit))

    async def replay(self, letter_id: str) -> bool:
        """Send a dead letter to its queue again; False if it is gone by now, or no message that a worker can run."""
        return await asyncio.to_thread(self._replay, letter_id)

    async def replay_all(self, queue: str) -> int:
        """Send every dead letter of a queue to it again; how many were sent."""
        return await asyncio.to_thread(self._replay_all, queue)

    async def drop(self, letter_id: str) -> bool:
        """Delete a dead letter; False if it is gone by now."""
        return await asyncio.to_thread(self._drop, letter_id)

    async def rejects(self, limit: int = 100) -> list[Reject]:
        """The last messages that were not understood, newest first."""
        url = self._settings.redis_url.get_secret_value()
        return await asyncio.to_thread(lambda: newest_rejects(connect(url, TIMEOUT_S), limit))

    def _replay(self, letter_id: str) -> bool:
        letters = open_dead_letters(self._settings, TIMEOUT_S)
        letter = letters.get(letter_id)
        return letter is not None and letters.replay(letter)

    def _replay_all(self, queue: str) -> int:
        letters = open_dead_letters(self._settings, TIMEOUT_S)
        return letters.replay_all(list(letters.all(queue)))

    def _drop(self, letter_id: str) -> bool:
        letters = open_dead_letters(self._settings, TIMEOUT_S)
        letter = letters.get(letter_id)
        return letter is not None and letters.drop(letter)
