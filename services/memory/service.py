"""The memory service's two loops: the list of user messages and the channel of AI replies."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import structlog
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from services.contract import MemoryUpdateMessage
from services.errors import InvalidMessage
from services.logs import told
from services.memory.conversations import Conversations
from services.memory.messages import ai_message, parse_ai_response, parse_user_input, to_wire
from services.running import TURN_SECONDS, Link, listen

log = structlog.get_logger()

LOST = (RedisConnectionError, RedisTimeoutError, OSError)


class MemoryService:
    """Takes messages in, stores each, then publishes it.

    User messages are taken at least once: BLMOVE puts a message into `<queue>:processing`, and the transaction that
    stores it takes it out again. What a crash left there is served first at the next start. Run one memory service a
    queue: a second one would take the other's message in hand for such a remainder and store it twice.

    Args:
        updates_channel: where stored messages are published; None publishes nothing (ENABLE_LTM_PUBLISH=false).
        max_content_chars: longer contents are rejected.
    """

    def __init__(
        self,
        client: Redis,
        conversations: Conversations,
        *,
        input_queue: str,
        ai_channel: str,
        updates_channel: str | None,
        max_content_chars: int,
    ) -> None:
        self._client = client
        self._conversations = conversations
        self._input_queue = input_queue
        self._processing = f"{input_queue}:processing"
        self._ai_channel = ai_channel
        self._updates_channel = updates_channel
        self._max_content_chars = max_content_chars
        #: What happened how often: stored, published, publish_failed, rejected, failed.
        self.counts: Counter[str] = Counter()

    async def take_inputs(self, link: Link, stop: asyncio.Event) -> None:
        """Serve `user_input_queue`, first come first served, until `stop`; what is in hand is finished."""
        while not stop.is_set():
            try:
                await self._serve_remainder(link, stop)
                while not stop.is_set():
                    raw = await self._client.blmove(
                        self._input_queue, self._processing, TURN_SECONDS, src="RIGHT", dest="LEFT"
                    )
                    link.up()
                    if isinstance(raw, bytes):
                        await self.take_input(raw)
            except (RedisError, OSError) as error:
                await link.down(error)

    async def take_ai_responses(self, link: Link, stop: asyncio.Event) -> None:
        """Serve `ai_responses` until `stop`; a reply in hand waits for a lost Redis to come back."""

        async def take(raw: bytes) -> None:
            try:
                while True:
                    try:
                        return await self.take_ai_response(raw)
                    except LOST as error:
                        if stop.is_set():
                            raise
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

        async def store() -> MemoryUpdateMessage:
            message = parse_user_input(raw, self._max_content_chars)
            await self._conversations.append(message, raw, taken_from=self._processing)
            return message

        await self._take(store, self._input_queue, raw, taken_from=self._processing)

    async def take_ai_response(self, raw: bytes) -> None:
        """Store and publish one reply of the AI, or reject it.

        Raises:
            RedisError: the reply could be neither stored nor rejected.
        """

        async def store() -> MemoryUpdateMessage:
            response = parse_ai_response(raw, self._max_content_chars)
            replied_to = response.original_message_id
            session = await self._conversations.session_of(response.user_id, replied_to) if replied_to else None
            message = ai_message(response, session)
            await self._conversations.append(message)
            return message

        await self._take(store, self._ai_channel, raw)

    async def _take(
        self, store: Callable[[], Awaitable[MemoryUpdateMessage]], at: str, raw: bytes, taken_from: str | None = None
    ) -> None:
        try:
            message = await store()
        except LOST:
            raise
        except InvalidMessage as error:
            await self._conversations.reject(at, error.wire, raw, taken_from)
            self.counts["rejected"] += 1
            log.warning("message_rejected", at=at, reason=error.code, bytes=len(raw))
        except Exception as error:
            # Where Redis itself refuses writes, this refuses too: the message stays, and the loop waits and retries.
            await self._conversations.reject(at, f"internal: {type(error).__name__}", raw, taken_from)
            self.counts["failed"] += 1
            log.exception("message_failed", at=at, bytes=len(raw))
        else:
            self.counts["stored"] += 1
            await self._publish(message)

    async def _publish(self, message: MemoryUpdateMessage) -> None:
        if self._updates_channel is None:
            return
        try:
            await self._client.publish(self._updates_channel, to_wire(message))
        except (RedisError, OSError) as error:
            self.counts["publish_failed"] += 1
            log.warning("publish_failed", user_id=message.user_id, message_id=message.message_id, error=told(error))
        else:
            self.counts["published"] += 1

    async def _serve_remainder(self, link: Link, stop: asyncio.Event) -> None:
        while not stop.is_set() and isinstance(raw := await self._client.lindex(self._processing, -1), bytes):
            link.up()
            await self.take_input(raw)
