"""The memory service's two loops: the list of user messages and the channel of AI replies."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import count
from typing import NamedTuple
from uuid import uuid4

import structlog
from keepsake_client.errors import InvalidMessage, NoText
from keepsake_client.protocol import COUNTERS, MemoryUpdateMessage
from keepsake_client.refusals import refuses_writes
from keepsake_client.subscription import SubscriptionMonitor
from keepsake_client.tolerance import DEFAULTS, MessageDefaults
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from services.memory.conversations import Conversations
from services.memory.messages import Answered, ai_message, parse_ai_response, parse_user_input, traced
from services.runtime.availability import Availability
from services.runtime.backoff import pause, wait_s
from services.runtime.bounded_queue import MAX_ITEMS, BoundedQueue
from services.runtime.counters import PendingCounts
from services.runtime.logging import redact
from services.runtime.process import POLL_TIMEOUT_S, LoopConnection, listen
from services.runtime.tracing import NO_SPANS, Spans, within

log = structlog.get_logger()


class _Heard(NamedTuple):
    """A reply of the AI.

    Args:
        at: when it was heard, in seconds since 1970.
    """

    at: float
    raw: bytes


CONNECTION_ERRORS = (RedisConnectionError, RedisTimeoutError, OSError)


class MemoryService:
    """Stores and publishes each message that arrives.

    User messages are processed at least once: BLMOVE moves a message to `<queue>:processing`, and the transaction that
    stores and publishes it removes it from there, so each is stored once. Those that a crash left there are processed
    first at the next start. Run one memory service per queue: a second one would take the message that the first is
    processing for such a leftover, and store it twice.

    Args:
        max_content_chars: longer contents are rejected.
        defaults: what messages that leave something out are read by.
        max_waiting: replies of the AI that are kept at most while Redis takes none.
        monitor: of the subscription to those replies.
        spans: of this process; by default none are made.
    """

    def __init__(
        self,
        client: Redis,
        conversations: Conversations,
        *,
        input_queue: str,
        ai_channel: str,
        max_content_chars: int,
        defaults: MessageDefaults = DEFAULTS,
        max_waiting: int = MAX_ITEMS,
        monitor: SubscriptionMonitor | None = None,
        spans: Spans = NO_SPANS,
    ) -> None:
        self._client = client
        self._conversations = conversations
        self._input_queue = input_queue
        self._processing = f"{input_queue}:processing"
        self._ai_channel = ai_channel
        self._max_content_chars = max_content_chars
        self._defaults = defaults
        self._monitor = monitor
        self._spans = spans
        # Both loops write: what Redis refuses is logged once.
        self._writes = Availability("redis", at="writes")
        self._waiting: BoundedQueue[_Heard] = BoundedQueue(lambda heard: len(heard.raw), max_waiting)
        self._unconfirmed: tuple[bytes, MemoryUpdateMessage] | None = None
        self._arrived = asyncio.Event()
        self._pending_counts = PendingCounts(COUNTERS)
        #: Messages by outcome: stored, published, publish_failed, skipped, rejected, failed, dropped.
        self.counts: Counter[str] = Counter()

    async def serve_user_inputs(self, connection: LoopConnection, stop: asyncio.Event) -> None:
        """Process `user_input_queue` in order until `stop`; the current message is finished."""
        while not stop.is_set():
            try:
                await self._process_leftovers(connection, stop)
                while not stop.is_set():
                    refused = not self._writes.assumed_up
                    raw = await self._client.blmove(
                        self._input_queue, self._processing, POLL_TIMEOUT_S, src="RIGHT", dest="LEFT"
                    )
                    connection.up()
                    if refused:  # a wait that began before shows nothing
                        self._writes.up()
                    if isinstance(raw, bytes):
                        await self.process_user_input(raw)
            except (RedisError, OSError) as error:
                await connection.down(error, self._writes if refuses_writes(error) else None)

    async def serve_ai_responses(self, connection: LoopConnection, stop: asyncio.Event) -> None:
        """Process `ai_responses` until `stop`, and then what has arrived.

        The channel is read all the time: while Redis is away or refuses writes, what arrives waits here.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._store_ai_responses(stop), name="ai-responses")
            await listen(
                self._client,
                self._ai_channel,
                self._put,
                connection,
                stop,
                monitor=self._monitor,
                counts=self._pending_counts,
            )
            self._arrived.set()
        await self._pending_counts.flush_async(self._client)

    async def _put(self, raw: bytes) -> None:
        if dropped := self._waiting.append(_Heard(time.time(), raw)):
            self.counts["dropped"] += dropped
            self._pending_counts.count("ai_responses_lost", dropped)
            if self.counts["dropped"] % 1_000 == 1:  # one line for each thousand
                log.error("ai_response_dropped", at=self._ai_channel, kept=len(self._waiting))
        self._arrived.set()

    async def _store_ai_responses(self, stop: asyncio.Event) -> None:
        while self._waiting or not stop.is_set():
            if not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            await self._store_ai_response(self._waiting.popleft(), stop)

    async def _store_ai_response(self, heard: _Heard, stop: asyncio.Event) -> None:
        """Process a reply; again while Redis is away or refuses writes, until `stop`."""
        message_id = uuid4().hex
        for failures in count():
            try:
                await self.process_ai_response(heard.raw, message_id, heard_at=heard.at, retry=failures > 0)
            except (RedisError, OSError) as error:
                refused = refuses_writes(error)
                if stop.is_set() or not (isinstance(error, CONNECTION_ERRORS) or refused):
                    self.counts["failed"] += 1
                    self._pending_counts.count("ai_responses_lost")
                    log.exception("ai_response_lost", at=self._ai_channel)
                    return
                if refused:
                    self._writes.down(redact(error))
                await pause(wait_s(failures + 1), stop)
            else:
                self._writes.up()
                return

    async def process_user_input(self, raw: bytes) -> None:
        """Store and publish one message of `<queue>:processing`, or reject it.

        Raises:
            RedisError: the message is still in the list.
        """

        async def store() -> bool:
            message = self._parsed(raw)
            with within(self._spans, "input", message.traceparent) as span:
                span.facts.update(message_id=message.message_id, task_id=message.task_id)
                message = traced(message, span.traceparent)
                published = await self._conversations.append(message, raw, taken_from=self._processing)
            self._unconfirmed = None
            return published

        await self._process(store, self._input_queue, raw, taken_from=self._processing)

    def _parsed(self, raw: bytes) -> MemoryUpdateMessage:
        """The message of `raw`, the same one after an attempt whose outcome is not known.

        What a broken connection still held may reach Redis minutes later, after the next attempt. Both have one
        message_id, and become one memory.
        """
        if self._unconfirmed is None or self._unconfirmed[0] != raw:
            self._unconfirmed = raw, parse_user_input(raw, self._max_content_chars, self._defaults)
        return self._unconfirmed[1]

    async def process_ai_response(
        self, raw: bytes, message_id: str, *, heard_at: float | None = None, retry: bool = False
    ) -> None:
        """Store and publish one reply of the AI, or reject it.

        Args:
            message_id: that of the reply, the same in every attempt; it makes the retry idempotent.
            heard_at: when it was heard, in seconds since 1970.
            retry: an earlier attempt was interrupted, and may have stored the reply.

        Raises:
            RedisError: the reply was neither stored nor rejected; or the connection broke, and that is unknown.
        """

        async def store() -> bool:
            response = parse_ai_response(raw, self._max_content_chars, self._defaults)
            replied_to = response.original_message_id
            answered = await self._conversations.answered(response.user_id, replied_to) if replied_to else Answered()
            message = ai_message(response, message_id, answered)
            if retry and await self._conversations.contains(message):
                return True
            return await self._conversations.append(message, heard_at=heard_at)

        await self._process(store, self._ai_channel, raw)

    async def _process(
        self, store: Callable[[], Awaitable[bool]], at: str, raw: bytes, taken_from: str | None = None
    ) -> None:
        try:
            published = await store()
        except CONNECTION_ERRORS:
            raise
        except NoText:
            await self._conversations.skip(raw, taken_from)
            self.counts["skipped"] += 1
        except InvalidMessage as error:
            await self._conversations.reject(at, error.wire, raw, taken_from)
            self.counts["rejected"] += 1
            log.warning("rejected", at=at, reason=error.code, bytes=len(raw))
        except Exception as error:
            # Where Redis refuses all writes, it refuses this one too: the message stays, and the loop backs off.
            await self._conversations.reject(at, f"internal: {type(error).__name__}", raw, taken_from)
            self.counts["failed"] += 1
            log.exception("message_failed", at=at, bytes=len(raw))
        else:
            self.counts["stored"] += 1
            if self._conversations.publishes:
                self.counts["published" if published else "publish_failed"] += 1

    async def _process_leftovers(self, connection: LoopConnection, stop: asyncio.Event) -> None:
        while not stop.is_set() and isinstance(raw := await self._client.lindex(self._processing, -1), bytes):
            connection.up()
            await self.process_user_input(raw)
        self._unconfirmed = None  # an equal message is another one from here on
