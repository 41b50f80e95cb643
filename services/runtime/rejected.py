"""Rejects: messages that could not be understood, kept in a capped stream and counted."""

from __future__ import annotations

from typing import Any

import redis
import structlog
from keepsake_client.errors import InvalidMessage, NoText
from keepsake_client.protocol import COUNTERS, REJECTED_CHARS, REJECTED_STREAM
from keepsake_client.requests import peek_id
from pydantic import BaseModel

#: Entries that the stream keeps. Redis trims approximately, so it may hold a few more.
MAX_ENTRIES = 1_000

log = structlog.get_logger()


def add_reject(transaction: Any, at: str, reason: str, raw: bytes) -> None:
    """Queue the commands that keep and count one reject on a transaction of redis-py, synchronous or asyncio.

    Args:
        at: the list, channel or stream that the message arrived on.
        raw: the message; its first 1,000 characters are kept.
    """
    # UTF-8 has at most four bytes a character: a message of megabytes is not decoded whole.
    beginning = raw[: 4 * REJECTED_CHARS].decode("utf-8", "replace")[:REJECTED_CHARS]
    entry: dict[str, str | bytes] = {"at": at, "reason": reason, "message": beginning}
    if len(raw) > len(beginning) and (user_id := peek_id(raw, b"user_id")):
        # It may stand behind what is kept, and a user who is forgotten is forgotten here, too.
        entry["user_id"] = user_id.encode("utf-8", "surrogatepass")
    transaction.xadd(REJECTED_STREAM, entry, maxlen=MAX_ENTRIES, approximate=True)
    transaction.hincrby(COUNTERS, "rejected", 1)


class Reject(BaseModel):
    """One reject.

    Args:
        at: the list, channel or stream that the message arrived on.
        rejected_at: in seconds since 1970.
        message: its first 1,000 characters; they may be contents.
    """

    id: str
    at: str
    reason: str
    message: str
    rejected_at: float


def newest_rejects(client: redis.Redis, limit: int) -> list[Reject]:
    """The last rejects, newest first.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    entries: Any = client.xrevrange(REJECTED_STREAM, count=limit)
    return [_reject(entry_id.decode(), fields) for entry_id, fields in entries]


def _reject(entry_id: str, fields: dict[bytes, bytes]) -> Reject:
    texts = {name: fields.get(name.encode(), b"").decode("utf-8", "replace") for name in ("at", "reason", "message")}
    return Reject(id=entry_id, rejected_at=int(entry_id.partition("-")[0]) / 1000, **texts)


def add_skipped(transaction: Any) -> None:
    """Queue the command that counts a message without text, such as a recording without its transcript."""
    transaction.hincrby(COUNTERS, "skipped_without_text", 1)


class RejectSink:
    """Logs and keeps the rejects of one list, channel or stream; what holds no text is counted alone.

    Args:
        at: the name of that list, channel or stream.
    """

    def __init__(self, client: redis.Redis, at: str) -> None:
        self._client = client
        self._at = at

    def add(self, raw: bytes, error: InvalidMessage) -> None:
        """Reject one message."""
        if isinstance(error, NoText):
            add_skipped(self._client)
            return
        with self._client.pipeline() as transaction:
            add_reject(transaction, self._at, error.wire, raw)
            transaction.execute()
        log.warning("rejected", at=self._at, reason=error.code, bytes=len(raw))
