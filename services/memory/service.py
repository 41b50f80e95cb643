"""The memory service's two loops: the list of user messages and the channel of AI replies."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from uuid import uuid4

import structlog
from keepsake_client.errors import InvalidMessage
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from services.memory.conversations import Conversations, refuses_all
from services.memory.messages import ai_message, parse_ai_response, parse_user_input
from services.runtime.process import POLL_TIMEOUT_S, LoopConnection, listen

log = structlog.get_logger()

LOST = (RedisConnectionError, RedisTimeoutError, OSError)


class MemoryService:
    """Takes messages in; stores and publishes each.

    User messages are taken at least once: BLMOVE puts a message into `<queue>:processing`, and the transaction that
    stores and publishes it takes it out again, so each is stored once. What a crash left there is served first at
    the next start. Run one memory service a queue: a second one would take the other's message in hand for such a
    remainder and store it twice.

    Args:
        max_content_chars: longer contents are rejected.
    """

    def __init__(
        self,
        client: Redis,
        conversations: Conversations,
        *,
        input_queue: str,
        ai_channel: str,
        max_content_chars: int,
    ) -> None:
        self._client = client
        self._conversations = conversations
        self._input_queue = input_queue
        self._processing = f"{input_queue}:processing"
        self._ai_channel = ai_channel
        self._max_content_chars = max_content_chars
        #: What happened how often: stored, published, publish_failed, rejected, failed.
        self.counts: Counter[str] = Counter()

    async def take_inputs(self, link: LoopConnection, stop: asyncio.Event) -> None:
        """Serve `user_input_queue`, first come first served, until `stop`; what is in hand is finished."""
        while not stop.is_set():
            try:
                await self._serve_remainder(link, stop)
                while not stop.is_set():
                    raw = await self._client.blmove(
                        self._input_queue, self._processing, POLL_TIMEOUT_S, src="RIGHT", dest="LEFT"
                    )
                    link.up()
                    if isinstance(raw, bytes):
                        await self.take_input(raw)
            except (RedisError, OSError) as error:
                await link.down(error)

    async def take_ai_responses(self, link: LoopConnection, stop: asyncio.Event) -> None:
        """Serve `ai_responses` until `stop`; a reply in hand waits for a lost or full Redis to take it."""

        async def take(raw: bytes) -> None:
            message_id, again = uuid4().hex, False
            try:
                while True:
                    try:
                        return await self.take_ai_response(raw, message_id, again=again)
                    except (RedisError, OSError) as error:
                        if stop.is_set() or not (isinstance(error, LOST) or refuses_all(error)):
                            raise
                        again = True
                        await link.down(error)
            except (RedisError, OSError):
                self.counts["failed"] += 1
                log.exception("ai_response_lost", at=self._ai_channel)

        await listen(self._client, self._ai_channel, take, link, stop)

    async def take_input(self, raw: bytes) -> None:
        """Store and publish one message of `<queue>:processing`, or reject it.

        Raises:
            RedisError: the message is still there.
        """

        async def store() -> bool:
            message = parse_user_input(raw, self._max_content_chars)
            return await self._conversations.append(message, raw, taken_from=self._processing)

        await self._take(store, self._input_queue, raw, taken_from=self._processing)

    async def take_ai_response(self, raw: bytes, message_id: str, *, again: bool = False) -> None:
        """Store and publish one reply of the AI, or reject it.

        Args:
            message_id: the reply's, the same in every try.
            again: an earlier try broke off, and may have stored it.

        Raises:
            RedisError: the reply could be neither stored nor rejected, or (when the connection broke) it is not known.
        """

        async def store() -> bool:
            response = parse_ai_response(raw, self._max_content_chars)
            replied_to = response.original_message_id
            session = await self._conversations.session_of(response.user_id, replied_to) if replied_to else None
            message = ai_message(response, message_id, session)
            if again and await self._conversations.has(message):
                return True
            return await self._conversations.append(message)

        await self._take(store, self._ai_channel, raw)

    async def _take(
        self, store: Callable[[], Awaitable[bool]], at: str, raw: bytes, taken_from: str | None = None
    ) -> None:
        try:
            published = await store()
        except LOST:
            raise
        except InvalidMessage as error:
            await self._conversations.reject(at, error.wire, raw, taken_from)
            self.counts["rejected"] += 1
            log.warning("rejected", at=at, reason=error.code, bytes=len(raw))
        except Exception as error:
            # Where Redis itself refuses writes, this refuses too: the message stays, and the loop waits and retries.
            await self._conversations.reject(at, f"internal: {type(error).__name__}", raw, taken_from)
            self.counts["failed"] += 1
            log.exception("message_failed", at=at, bytes=len(raw))
        else:
            self.counts["stored"] += 1
            if self._conversations.publishes:
                self.counts["published" if published else "publish_failed"] += 1

    async def _serve_remainder(self, link: LoopConnection, stop: asyncio.Event) -> None:
        while not stop.is_set() and isinstance(raw := await self._client.lindex(self._processing, -1), bytes):
            link.up()
            await self.take_input(raw)
