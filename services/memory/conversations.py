"""Conversations in Redis: a bounded list a user, newest message last, gone after hours of silence."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import Any

import structlog
from keepsake_client.protocol import (
    STREAM_EVENT_FIELD,
    MemoryUpdateMessage,
    conversation_key,
)
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError, ResponseError

from services.memory.messages import to_wire
from services.runtime.logging import redact
from services.runtime.rejected import add_reject

_CHUNK = 50

log = structlog.get_logger()


@dataclass(frozen=True)
class Updates:
    """Where stored messages are published.

    Args:
        channel: heard by whoever listens just then.
        log: the stream that keeps them for the adapters.
        log_max_len: how many it keeps, about.
    """

    channel: str
    log: str
    log_max_len: int


class Conversations:
    """Stores and publishes messages, and keeps what could not be one.

    A message is stored, written to the log and published in one transaction, so nobody ever hears of one that is not
    stored, and none that is stored goes unheard. `taken_from` is the list of messages in hand: the message leaves it
    in the same transaction, so a crash at any moment neither loses it nor stores it twice. Where another program keeps
    something else under a conversation's key, Redis runs the rest of the transaction all the same: such a message is
    published, and rejected instead of stored.

    Args:
        max_messages: how many messages a conversation keeps.
        ttl_hours: for how long a silent conversation is kept.
        updates: None publishes nothing (ENABLE_LTM_PUBLISH=false).
    """

    def __init__(self, client: Redis, *, max_messages: int, ttl_hours: float, updates: Updates | None) -> None:
        self._client = client
        self._max_messages = max_messages
        self._ttl_ms = max(1, round(ttl_hours * 3_600_000))
        self._updates = updates
        self._refused = False

    @property
    def publishes(self) -> bool:
        """Whether messages are to be published."""
        return self._updates is not None

    async def append(self, message: MemoryUpdateMessage, raw: bytes = b"", taken_from: str | None = None) -> bool:
        """Store a message as the newest of its conversation; `raw`, as which it arrived, leaves `taken_from`.

        Returns:
            Whether it was published too. Where Redis refuses to keep it in the log, as with an ACL that lacks XADD, it
            is stored and published all the same, and the adapters take it from the channel if they hear it.

        Raises:
            RedisError: nothing was stored, or (when the connection broke) it is not known.
        """
        if self._updates is None:
            await self._store(message, raw, taken_from, None)
            return False
        try:
            refused = await self._store(message, raw, taken_from, self._updates)
        except ResponseError as error:
            if refuses_all(error):
                raise
            await self._store(message, raw, taken_from, None)
            self._tell(error)
            return await self._publish_alone(message, self._updates)
        self._tell(refused)
        return refused is None

    async def _store(
        self, message: MemoryUpdateMessage, raw: bytes, taken_from: str | None, updates: Updates | None
    ) -> Exception | None:
        """One transaction; why the log or the channel refused the message, if one did."""
        key, text = conversation_key(message.user_id), to_wire(message, logged=updates is not None)
        async with self._client.pipeline(transaction=True) as transaction:
            transaction.rpush(key, text)
            transaction.ltrim(key, -self._max_messages, -1)
            transaction.pexpire(key, self._ttl_ms)
            if taken_from is not None:
                transaction.lrem(taken_from, -1, raw)  # type: ignore[arg-type]  # bytes are as good as str to redis-py
            stored = len(transaction)
            if updates is not None:
                transaction.xadd(updates.log, {STREAM_EVENT_FIELD: text}, maxlen=updates.log_max_len, approximate=True)
                transaction.publish(updates.channel, text)
            # A command that fails as it runs, as on a key of another type, does not keep the others from running.
            results = await transaction.execute(raise_on_error=False)
        errors = [(number, result) for number, result in enumerate(results) if isinstance(result, Exception)]
        if errors and errors[0][0] < stored:
            raise errors[0][1]
        return errors[0][1] if errors else None

    async def _publish_alone(self, message: MemoryUpdateMessage, updates: Updates) -> bool:
        try:
            await self._client.publish(updates.channel, to_wire(message))
        except (RedisError, OSError) as error:
            log.warning("publish_failed", message_id=message.message_id, error=type(error).__name__)
            return False
        return True

    def _tell(self, refused: Exception | None) -> None:
        if (refused is not None) is self._refused:
            return
        self._refused = refused is not None
        if refused is not None and self._updates is not None:
            log.error("log_refused", at=self._updates.log, error=redact(refused), mend="then run ltm backfill")
        else:
            log.info("log_accepted")

    async def has(self, message: MemoryUpdateMessage) -> bool:
        """Whether the message is in its conversation."""
        return await self._find(message.user_id, str(message.message_id)) is not None

    async def session_of(self, user_id: str, message_id: str) -> Any:
        """`meta.session_id` of a message of the user's conversation, or None."""
        match await self._find(user_id, message_id):
            case {"meta": dict(meta)}:
                return meta.get("session_id")
        return None

    async def _find(self, user_id: str, message_id: str) -> dict[str, Any] | None:
        key, end = conversation_key(user_id), -1
        # What is looked for is nearly always among the last few, so the list is read from its end.
        while entries := await self._client.lrange(key, end - _CHUNK + 1, end):
            for entry in reversed(entries):
                with contextlib.suppress(ValueError):  # another program's entry is no reason to lose a reply
                    match json.loads(entry):
                        case {"message_id": found, **fields} if found == message_id:
                            return dict[Any, Any](fields)
            end -= _CHUNK
        return None

    async def reject(self, at: str, reason: str, raw: bytes, taken_from: str | None = None) -> None:
        """Keep the beginning of a message that could not be taken, with the reason, in a capped stream.

        Args:
            at: the list or channel it arrived on.
        """
        async with self._client.pipeline(transaction=True) as transaction:
            add_reject(transaction, at, reason, raw)
            if taken_from is not None:
                transaction.lrem(taken_from, -1, raw)  # type: ignore[arg-type]  # bytes are as good as str to redis-py
            await transaction.execute()


def refuses_all(error: Exception) -> bool:
    """Whether Redis would refuse any write: it is full, or cannot write to its disk."""
    return isinstance(error, OutOfMemoryError | ReadOnlyError) or str(error).startswith("MISCONF")
