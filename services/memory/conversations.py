"""Conversations in Redis: a bounded list a user, newest message last, gone after hours of silence."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from redis.asyncio import Redis

from services.contract import REJECTED_CHARS, REJECTED_STREAM, MemoryUpdateMessage, conversation_key
from services.memory.messages import to_wire

REJECTED_ENTRIES = 1_000
_CHUNK = 50


class Conversations:
    """Stores messages, and what could not be one.

    `taken_from` is the list of messages in hand: the message leaves it in the transaction that stores it, so a crash
    at any moment neither loses it nor stores it twice.

    Args:
        max_messages: how many messages a conversation keeps.
        ttl_hours: for how long a silent conversation is kept.
    """

    def __init__(self, client: Redis, *, max_messages: int, ttl_hours: float) -> None:
        self._client = client
        self._max_messages = max_messages
        self._ttl_ms = max(1, round(ttl_hours * 3_600_000))

    async def append(self, message: MemoryUpdateMessage, raw: bytes = b"", taken_from: str | None = None) -> None:
        """Store a message as the newest of its conversation; `raw`, as which it arrived, leaves `taken_from`.

        Raises:
            RedisError: nothing was stored, or (when the connection broke) it is not known.
        """
        key = conversation_key(message.user_id)
        async with self._client.pipeline(transaction=True) as transaction:
            transaction.rpush(key, to_wire(message))
            transaction.ltrim(key, -self._max_messages, -1)
            transaction.pexpire(key, self._ttl_ms)
            if taken_from is not None:
                transaction.lrem(taken_from, -1, raw)  # type: ignore[arg-type]  # bytes are as good as str to redis-py
            await transaction.execute()

    async def session_of(self, user_id: str, message_id: str) -> Any:
        """`meta.session_id` of a message of the user's conversation, or None."""
        key, end = conversation_key(user_id), -1
        # The replied-to message is nearly always among the last few, so the list is read from its end.
        while entries := await self._client.lrange(key, end - _CHUNK + 1, end):
            for entry in reversed(entries):
                with contextlib.suppress(ValueError):  # another program's entry is no reason to lose a reply
                    match json.loads(entry):
                        case {"message_id": found, "meta": dict(meta)} if found == message_id:
                            return meta.get("session_id")
            end -= _CHUNK
        return None

    async def reject(self, at: str, reason: str, raw: bytes, taken_from: str | None = None) -> None:
        """Keep the beginning of a message that could not be taken, with the reason, in a capped stream.

        Args:
            at: the list or channel it arrived on.
        """
        beginning = raw[: REJECTED_CHARS * 4].decode("utf-8", errors="replace")[:REJECTED_CHARS]
        async with self._client.pipeline(transaction=True) as transaction:
            transaction.xadd(
                REJECTED_STREAM,
                {"at": at, "reason": reason, "message": beginning},
                maxlen=REJECTED_ENTRIES,
                approximate=True,
            )
            if taken_from is not None:
                transaction.lrem(taken_from, -1, raw)  # type: ignore[arg-type]  # bytes are as good as str to redis-py
            await transaction.execute()
