"""The log of updates: a Redis stream that keeps what was published until it is handed over.

A group of consumers reads it, one consumer an adapter. What a consumer has read and not acknowledged stays noted under
its name, so that no crash loses it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from hashlib import sha256
from typing import Any, NamedTuple

import redis
import structlog
from keepsake_client.protocol import COUNTERS, STREAM_EVENT_FIELD, STREAM_GROUP, MemoryUpdateMessage

#: Ids moved from a dead consumer at once.
CHUNK = 1_000
#: A consumer that reads nothing and holds nothing for this long is gone for good.
CONSUMER_GONE_MS = 3_600_000
#: Beside the event, of one that an adapter wrote: the digest of what it had heard.
HEARD = "heard"

log = structlog.get_logger()


class Entry(NamedTuple):
    """An entry of the log as it was read."""

    id: bytes
    event: bytes


class UpdateStream:
    """The log, as one consumer of its group.

    Args:
        key: the stream's name.
        consumer: a name of its own.
        max_len: how many entries the stream keeps, about.
    """

    def __init__(self, client: redis.Redis, key: str, consumer: str, max_len: int) -> None:
        self._client: Any = client  # redis-py's types of stream replies are those of every protocol at once
        self.key = key
        self.consumer = consumer
        self._max_len = max_len
        self._cursor: bytes | str = "0-0"

    def open(self) -> None:
        """Make the group, and the stream, where they are missing, and count what was lost before it could be read."""
        for options in ({"entries_read": 0}, {}):  # Redis 6.2 does not count what a group has read
            try:
                self._client.xgroup_create(self.key, STREAM_GROUP, id="0", mkstream=True, **options)
            except redis.ResponseError as error:
                if str(error).startswith("BUSYGROUP"):
                    break
                if not options:
                    raise
            else:
                break
        self.count_trimmed()

    def start_over(self) -> None:
        """Read from now on what is noted under our name, then what is new."""
        self._cursor = "0-0"

    def read(self, count: int, wait_ms: int | None) -> list[Entry]:
        """At most `count` entries that were not read since `start_over`; waits for new ones where `wait_ms` says so."""
        new = self._cursor == ">"
        try:
            reply = self._client.xreadgroup(
                STREAM_GROUP, self.consumer, {self.key: self._cursor}, count=count, block=wait_ms if new else None
            )
        except redis.ResponseError as error:
            if not str(error).startswith(("NOGROUP", "UNBLOCKED")):  # Redis 7.0 says the latter to whoever is waiting
                raise
            # Redis lost its data, or somebody deleted the stream: what is written from now on is read.
            log.warning("log_created_again", at=self.key)
            self.open()
            return []
        found: list[tuple[bytes, dict[bytes, bytes]]] = reply[0][1] if reply else []
        if not new:
            self._cursor = found[-1][0] if found else ">"
        gone = [entry_id for entry_id, fields in found if not fields]
        if gone:
            self.ack(gone)
            self._count_lost(len(gone))
        return [Entry(entry_id, fields.get(STREAM_EVENT_FIELD.encode(), b"")) for entry_id, fields in found if fields]

    def ack(self, ids: Iterable[bytes]) -> None:
        """These entries are somebody else's now."""
        self._client.xack(self.key, STREAM_GROUP, *ids)

    def append(self, update: MemoryUpdateMessage, heard: bytes) -> None:
        """Write an event that was heard on the channel."""
        known = update if update.message_id else update.model_copy(update={"message_id": _derived_id(update)})
        # ASCII-only JSON carries every id there is, lone surrogates included.
        event = json.dumps(known.model_dump())
        self._client.xadd(
            self.key, {STREAM_EVENT_FIELD: event, HEARD: digest(heard)}, maxlen=self._max_len, approximate=True
        )

    def heard_since(self, seconds: float) -> Counter[str]:
        """The digests of what adapters heard and wrote since then, each with how often."""
        return Counter(
            fields[HEARD.encode()].decode()
            for _, fields in self._client.xrange(self.key, min=int(seconds * 1000))
            if HEARD.encode() in fields
        )

    def claim_from_failed(self, living: Container[str]) -> int:
        """Note under our name what dead consumers had read; how many entries."""
        taken = 0
        for consumer in self._client.xinfo_consumers(self.key, STREAM_GROUP):
            name = consumer["name"].decode()
            if name == self.consumer or name in living:
                continue
            if not consumer["pending"] and consumer["idle"] > CONSUMER_GONE_MS:
                self._client.xgroup_delconsumer(self.key, STREAM_GROUP, name)
            for ids in self._pending(name):
                claimed = self._client.xclaim(self.key, STREAM_GROUP, self.consumer, 0, ids, justid=True)
                taken += len(claimed)
                self._count_lost(len(ids) - len(claimed))
        if taken:
            log.warning("taken_over", at=self.key, entries=taken)
        return taken

    def backlog(self) -> int:
        """How many entries are not handed over yet; on Redis 6.2, how many are read and not handed over."""
        [group] = self._groups(self._client)
        return int(group["pending"]) + int(group.get("lag") or 0)

    def trim(self, hours: float) -> None:
        """Remove entries older than that, about."""
        seconds, _ = self._client.time()
        self._client.xtrim(self.key, minid=int((seconds - hours * 3_600) * 1000), approximate=True)

    def count_trimmed(self) -> None:
        """Count entries that were trimmed before the group had read them, once, also where several adapters look."""
        lost = self._client.transaction(self._note_trimmed, COUNTERS, value_from_callable=True)
        if lost:
            _report_lost(self.key, lost)

    def _note_trimmed(self, transaction: Any) -> int:
        stream = transaction.xinfo_stream(self.key)
        [group] = self._groups(transaction)
        transaction.multi()
        read, last = group.get("entries-read"), group["last-delivered-id"]
        if read is None and last == b"0-0":
            read = 0
        if read is None or "entries-added" not in stream:
            return 0  # Redis 6.2 does not tell
        trimmed: int = stream["entries-added"] - stream["length"]
        if trimmed <= read:
            return 0
        transaction.hincrby(COUNTERS, "log_trimmed_unread", trimmed - read)
        transaction.xgroup_setid(self.key, STREAM_GROUP, last, entries_read=trimmed)
        return int(trimmed - read)

    def _groups(self, client: Any) -> list[dict[str, Any]]:
        return [group for group in client.xinfo_groups(self.key) if group["name"] == STREAM_GROUP.encode()]

    def _pending(self, consumer: str) -> Iterator[list[bytes]]:
        while found := self._client.xpending_range(
            self.key, STREAM_GROUP, min="-", max="+", count=CHUNK, consumername=consumer
        ):
            yield [pending["message_id"] for pending in found]

    def _count_lost(self, lost: int) -> None:
        if lost:
            self._client.hincrby(COUNTERS, "log_trimmed_unread", lost)
            _report_lost(self.key, lost)


def digest(heard: bytes) -> str:
    """Tells one thing heard from another."""
    return sha256(heard).hexdigest()[:32]


def _report_lost(key: str, lost: int) -> None:
    log.error("log_trimmed_unread", at=key, lost=lost, mend="raise LTM_STREAM_MAX_LEN; run ltm backfill")


def _derived_id(update: MemoryUpdateMessage) -> str:
    # All that it says, so that the same event published twice stays one.
    said = [update.user_id, update.source, update.content, update.timestamp]
    return sha256(json.dumps(said).encode()).hexdigest()[:32]
