"""Rejects: messages that could not be understood, kept in a capped stream and counted."""

from __future__ import annotations

from typing import Any

import redis
import structlog
from keepsake_client.errors import InvalidMessage, NoText
from keepsake_client.protocol import COUNTERS, REJECTED_CHARS, REJECTED_STREAM
from keepsake_client.requests import peek_id

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
