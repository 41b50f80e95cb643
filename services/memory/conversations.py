"""Conversations in Redis: one bounded list per user, newest message last, which expires after hours without one."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass
from typing import Any

import structlog
from keepsake_client.protocol import (
    STREAM_ARRIVED_FIELD,
    STREAM_EVENT_FIELD,
    MemoryUpdateMessage,
    conversation_key,
    read_traceparent,
)
from keepsake_client.refusals import refuses_writes
from keepsake_client.tolerance import DEFAULTS, read_common
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from services.memory.messages import Answered
from services.runtime.logging import redact
from services.runtime.rejected import add_reject, add_skipped

_CHUNK = 50

log = structlog.get_logger()


@dataclass(frozen=True)
class Destination:
    """Destination of stored messages: the stream and the channel that publish them.

    Args:
        channel: for its present subscribers.
        stream: keeps them for the adapters.
        stream_max_len: its approximate maximum length.
    """

    channel: str
    stream: str
    stream_max_len: int


class Conversations:
    """Stores and publishes messages, and records rejected ones.

    A message is stored, appended to the stream and published in one transaction, so exactly the stored messages are
    published. `taken_from` is the processing list: the message is removed from it in the same transaction, so a crash
    at any moment neither loses it nor stores it twice. Where another program keeps a value of another type under a
    conversation's key, Redis runs the rest of the transaction nevertheless: such a message is published, and rejected
    instead of stored.

    Args:
        max_messages: the length of a conversation's list.
        ttl_hours: a conversation expires this long after its last message.
        destination: None publishes nothing (ENABLE_LTM_PUBLISH=false).
    """

    def __init__(self, client: Redis, *, max_messages: int, ttl_hours: float, destination: Destination | None) -> None:
        self._client = client
        self._max_messages = max_messages
        self._ttl_ms = max(1, round(ttl_hours * 3_600_000))
        self._destination = destination
        self._stream_refused = False

    @property
    def publishes(self) -> bool:
        """Whether messages are published."""
        return self._destination is not None

    async def append(
        self,
        message: MemoryUpdateMessage,
        raw: bytes = b"",
        taken_from: str | None = None,
        *,
        heard_at: float | None = None,
    ) -> bool:
        """Store and publish a message as the newest of its conversation.

        Args:
            raw: the message as it arrived, to be removed from the list `taken_from`.
            heard_at: when it was heard on a channel, in seconds since 1970; it may have waited for Redis.

        Returns:
            Whether it was published. Where Redis refuses to append it to the stream, for example by an ACL without
            XADD, it is stored and published nevertheless; the adapters then take it from the channel, if they receive
            it.

        Raises:
            RedisError: nothing was stored; or the connection broke, and it is unknown whether it was.
        """
        if self._destination is None:
            await self._store(message, raw, taken_from, None, heard_at)
            return False
        try:
            refused = await self._store(message, raw, taken_from, self._destination, heard_at)
        except ResponseError as error:
            if refuses_writes(error):
                raise
            await self._store(message, raw, taken_from, None, heard_at)
            self._log_refusal(error)
            return await self._publish_alone(message, self._destination)
        self._log_refusal(refused)
        return refused is None

    async def _store(
        self,
        message: MemoryUpdateMessage,
        raw: bytes,
        taken_from: str | None,
        destination: Destination | None,
        heard_at: float | None,
    ) -> Exception | None:
        """Run the transaction; return why the stream or the channel refused the message, if one did."""
        key, text = conversation_key(message.user_id), message.to_wire(logged=destination is not None)
        entry: dict[Any, Any] = {STREAM_EVENT_FIELD: text}  # redis-py's own type is of every value at once
        if heard_at is not None:
            entry[STREAM_ARRIVED_FIELD] = f"{heard_at:.6f}"
        async with self._client.pipeline(transaction=True) as transaction:
            transaction.rpush(key, text)
            transaction.ltrim(key, -self._max_messages, -1)
            transaction.pexpire(key, self._ttl_ms)
            if taken_from is not None:
                transaction.lrem(taken_from, -1, raw)  # type: ignore[arg-type]  # bytes are as good as str to redis-py
            stored = len(transaction)
            if destination is not None:
                transaction.xadd(
                    destination.stream,
                    entry,
                    maxlen=destination.stream_max_len,
                    approximate=True,
                )
                transaction.publish(destination.channel, text)
            # A command that fails, for example on a key of another type, does not stop the others of the transaction.
            results = await transaction.execute(raise_on_error=False)
        errors = [(number, result) for number, result in enumerate(results) if isinstance(result, Exception)]
        if errors and errors[0][0] < stored:
            raise errors[0][1]
        return errors[0][1] if errors else None

    async def _publish_alone(self, message: MemoryUpdateMessage, destination: Destination) -> bool:
        try:
            await self._client.publish(destination.channel, message.to_wire())
        except (RedisError, OSError) as error:
            log.warning("publish_failed", message_id=message.message_id, error=type(error).__name__)
            return False
        return True

    def _log_refusal(self, refusal: Exception | None) -> None:
        """Log the first refusal by the stream, and the first success after it."""
        if (refusal is not None) is self._stream_refused:
            return
        self._stream_refused = refusal is not None
        if refusal is not None and self._destination is not None:
            log.error(
                "stream_refused", at=self._destination.stream, reason=redact(refusal), remedy="then run ltm backfill"
            )
        else:
            log.info("stream_accepted")

    async def contains(self, message: MemoryUpdateMessage) -> bool:
        """Whether the message is in its conversation, by its id."""
        return await self._find(message.user_id, str(message.message_id)) is not None

    async def answered(self, user_id: str, message_id: str) -> Answered:
        """What a reply takes from a message of the user's conversation; nothing where that is not there."""
        fields = await self._find(user_id, message_id)
        if fields is None:
            return Answered()
        read_common(fields, time.time(), DEFAULTS)  # another program may have written it
        return Answered(
            (fields.get("meta") or {}).get("session_id"),
            fields.get("agent_id"),
            fields.get("ttl_days"),
            read_traceparent(fields.get("traceparent")),
        )

    async def _find(self, user_id: str, message_id: str) -> dict[str, Any] | None:
        key, end = conversation_key(user_id), -1
        # The message is nearly always among the last few, so the list is read from its end.
        while entries := await self._client.lrange(key, end - _CHUNK + 1, end):
            for entry in reversed(entries):
                with contextlib.suppress(ValueError):  # an entry of another program must not make the reply fail
                    match json.loads(entry):
                        case {"message_id": found, **fields} if found == message_id:
                            return dict[Any, Any](fields)
            end -= _CHUNK
        return None

    async def skip(self, raw: bytes, taken_from: str | None = None) -> None:
        """Count a message without text.

        Args:
            taken_from: the list that it is removed from, in the same transaction.
        """
        async with self._client.pipeline(transaction=True) as transaction:
            add_skipped(transaction)
            if taken_from is not None:
                transaction.lrem(taken_from, -1, raw)  # type: ignore[arg-type]  # bytes are as good as str to redis-py
            await transaction.execute()

    async def reject(self, at: str, reason: str, raw: bytes, taken_from: str | None = None) -> None:
        """Record the beginning of a rejected message, with the reason, in a capped stream.

        Args:
            at: the list or channel that it arrived on.
            taken_from: the list that it is removed from, in the same transaction.
        """
        async with self._client.pipeline(transaction=True) as transaction:
            add_reject(transaction, at, reason, raw)
            if taken_from is not None:
                transaction.lrem(taken_from, -1, raw)  # type: ignore[arg-type]  # bytes are as good as str to redis-py
            await transaction.execute()
