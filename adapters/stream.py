"""The stream of updates: a Redis stream that keeps what was published until it is dispatched.

A consumer group reads it, one consumer an adapter. An entry that a consumer has read and not acknowledged stays pending
under the consumer's name, so a crash does not lose it: at-least-once delivery.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Container, Iterable, Iterator
from functools import partial
from hashlib import sha256
from typing import Any, NamedTuple

import redis
import structlog
from keepsake_client.protocol import (
    COUNTERS,
    STREAM_ARRIVED_FIELD,
    STREAM_EVENT_FIELD,
    STREAM_GROUP,
    MemoryUpdateMessage,
)
from keepsake_client.refusals import refuses_writes

from services.runtime.arrival import arrival

#: Entries claimed from a failed consumer by one command.
CLAIM_BATCH = 1_000
#: A consumer that reads nothing and has nothing pending for this long does not come back.
CONSUMER_GONE_MS = 3_600_000
#: Field beside the event, of an entry that an adapter wrote: the digest of the message as the channel carried it.
DIGEST_FIELD = "heard"
#: Entries read at once by a command that looks through a part of the stream.
READ_BATCH = 1_000

log = structlog.get_logger()


class Entry(NamedTuple):
    """An entry of the stream as it was read.

    Args:
        arrived: in seconds since 1970, as an entry has it that was written later; empty for the others.
    """

    id: bytes
    event: bytes
    arrived: bytes = b""

    @property
    def arrived_at(self) -> float:
        """When its event arrived, in seconds since 1970: by its id or, where its publisher has made that up, now."""
        return arrival(self.id, self.arrived, time.time())


class UpdateStream:
    """The stream, as one consumer of its group.

    Args:
        client: connects to the pipeline's Redis.
        key: the stream's key.
        consumer: the name of this adapter.
        max_len: how many entries the stream keeps, approximately.
    """

    def __init__(self, client: redis.Redis, key: str, consumer: str, max_len: int) -> None:
        self._client: Any = client  # redis-py's types of stream replies are those of every protocol at once
        self.key = key
        self.consumer = consumer
        self._max_len = max_len
        self._cursor: bytes | str = "0-0"

    def open(self) -> None:
        """Create the group, and the stream, where they are missing, and count the entries trimmed before it."""
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
        self.count_trimmed(reconnected=True)

    def rewind(self) -> None:
        """Read the pending entries of this consumer once more, then new ones."""
        self._cursor = "0-0"

    def read(self, count: int, wait_ms: int | None) -> list[Entry]:
        """At most `count` entries that were not read since `rewind`.

        Args:
            wait_ms: how long to wait for a new entry; None does not wait. Redis ignores it for pending entries.
        """
        try:
            reply = self._client.xreadgroup(
                STREAM_GROUP, self.consumer, {self.key: self._cursor}, count=count, block=wait_ms
            )
        except redis.ResponseError as error:
            # Redis 7.0 answers UNBLOCKED to a consumer that waits while the stream is deleted.
            # A server that becomes a replica unblocks all, with other words.
            if refuses_writes(error) or not str(error).startswith(("NOGROUP", "UNBLOCKED")):
                raise
            # Redis lost its data, or the stream was deleted: what is written from now on is read.
            log.warning("stream_recreated", at=self.key)
            self.open()
            return []
        found: list[tuple[bytes, dict[bytes, bytes]]] = reply[0][1] if reply else []
        if self._cursor != ">":
            self._cursor = found[-1][0] if found else ">"
        trimmed = [entry_id for entry_id, fields in found if not fields]
        if trimmed:
            self.ack(trimmed)
            self._count_lost(len(trimmed))
        names = (STREAM_EVENT_FIELD.encode(), STREAM_ARRIVED_FIELD.encode())
        return [Entry(entry_id, *(fields.get(name, b"") for name in names)) for entry_id, fields in found if fields]

    def ack(self, ids: Iterable[bytes]) -> None:
        """Acknowledge entries, which were dispatched or rejected."""
        self._client.xack(self.key, STREAM_GROUP, *ids)

    def append(self, update: MemoryUpdateMessage, raw: bytes, arrived_at: float) -> float:
        """Write an event that the channel carried as `raw`.

        Args:
            arrived_at: in seconds since 1970; it may have waited for Redis.

        Returns:
            When it was written, by the clock of Redis, in seconds since 1970.
        """
        identified = update if update.message_id else update.model_copy(update={"message_id": _derived_id(update)})
        # ASCII-only JSON carries every id there is, lone surrogates included.
        event = json.dumps(identified.model_dump())
        fields = {STREAM_EVENT_FIELD: event, DIGEST_FIELD: digest(raw), STREAM_ARRIVED_FIELD: f"{arrived_at:.6f}"}
        return entry_time(self._client.xadd(self.key, fields, maxlen=self._max_len, approximate=True))

    def written_since(self, seconds: float) -> Iterator[tuple[float, str]]:
        """The messages that adapters wrote since a time, oldest first: when, in seconds since 1970, and the digest.

        Args:
            seconds: since 1970.
        """
        start: bytes | int = math.ceil(seconds * 1000)
        field = DIGEST_FIELD.encode()
        while entries := self._client.xrange(self.key, min=start, count=READ_BATCH):
            for entry_id, fields in entries:
                if field in fields:
                    yield entry_time(entry_id), fields[field].decode()
            start = b"(" + entries[-1][0]

    def claim_from_failed(self, live: Container[str]) -> int:
        """Claim the pending entries of every consumer that is not `live`; how many."""
        claimed = 0
        for consumer in self._client.xinfo_consumers(self.key, STREAM_GROUP):
            name = consumer["name"].decode()
            if name == self.consumer or name in live:
                continue
            if not consumer["pending"] and consumer["idle"] > CONSUMER_GONE_MS:
                self._client.xgroup_delconsumer(self.key, STREAM_GROUP, name)
            for ids in self._pending(name):
                moved = self._client.xclaim(self.key, STREAM_GROUP, self.consumer, 0, ids, justid=True)
                claimed += len(moved)
                self._count_lost(len(ids) - len(moved))
        if claimed:
            log.warning("entries_claimed", at=self.key, entries=claimed)
        return claimed

    def backlog(self) -> int:
        """How many entries are not dispatched yet; on Redis 6.2, how many are read and not dispatched."""
        [group] = self._groups(self._client)
        return int(group["pending"]) + int(group.get("lag") or 0)

    def trim(self, hours: float) -> None:
        """Remove entries older than that, approximately."""
        seconds, _ = self._client.time()
        self._client.xtrim(self.key, minid=int((seconds - hours * 3_600) * 1000), approximate=True)

    def count_trimmed(self, *, reconnected: bool = False) -> None:
        """Count entries that were trimmed before the group had read them; each once, by however many adapters.

        Args:
            reconnected: perhaps to a replica that became the master, or to a server that was restarted.
        """
        note = partial(self._note_trimmed, reconnected=reconnected)
        lost = self._client.transaction(note, COUNTERS, value_from_callable=True)
        if lost:
            _report_lost(self.key, lost)

    def _note_trimmed(self, transaction: Any, *, reconnected: bool) -> int:
        stream = transaction.xinfo_stream(self.key)
        [group] = self._groups(transaction)
        transaction.multi()
        read, last = group.get("entries-read"), group["last-delivered-id"]
        if read is None and last == b"0-0":
            read = 0
        if read is None or "entries-added" not in stream:
            return 0  # Redis 6.2 does not know
        added = stream["entries-added"]
        if last == stream["last-generated-id"] and (reconnected or stream["first-entry"]):
            # Nothing is unread. Redis neither replicates how many entries a group has read nor appends it to its file:
            # after a failover or a restart it takes them for unread.
            if read != added:
                transaction.xgroup_setid(self.key, STREAM_GROUP, last, entries_read=added)
            return 0
        if _tells_nothing(stream, last):
            return 0
        trimmed: int = added - stream["length"]
        if trimmed <= read:
            return 0
        transaction.hincrby(COUNTERS, "log_trimmed_unread", trimmed - read)
        transaction.xgroup_setid(self.key, STREAM_GROUP, last, entries_read=trimmed)
        return int(trimmed - read)

    def _groups(self, client: Any) -> list[dict[str, Any]]:
        return [group for group in client.xinfo_groups(self.key) if group["name"] == STREAM_GROUP.encode()]

    def _pending(self, consumer: str) -> Iterator[list[bytes]]:
        while found := self._client.xpending_range(
            self.key, STREAM_GROUP, min="-", max="+", count=CLAIM_BATCH, consumername=consumer
        ):
            yield [pending["message_id"] for pending in found]

    def _count_lost(self, lost: int) -> None:
        if lost:
            self._client.hincrby(COUNTERS, "log_trimmed_unread", lost)
            _report_lost(self.key, lost)


def entry_time(entry_id: bytes) -> float:
    """When an entry was written, by the clock of Redis, in seconds since 1970."""
    return int(entry_id.partition(b"-")[0]) / 1000


def digest(raw: bytes) -> str:
    """A digest of a message as the channel carried it; equal messages have equal digests."""
    return sha256(raw).hexdigest()[:32]


def _tells_nothing(stream: dict[str, Any], last_read: bytes) -> bool:
    """Whether the number of missing entries says nothing about trimmed ones: those of forgotten users were deleted.

    Nothing unread was trimmed while an entry that was read is still there. Where none is, and unread ones were deleted,
    nothing is counted until these are behind; Redis itself does not know then what the group has read.
    """
    first = stream["first-entry"]
    if first and order(first[0]) <= order(last_read):
        return True
    return order(stream.get("max-deleted-entry-id", b"0-0")) > order(last_read)


def order(entry_id: bytes) -> tuple[int, int]:
    """An entry's id in the order of the stream."""
    milliseconds, _, sequence = entry_id.partition(b"-")
    return int(milliseconds), int(sequence or 0)


def _report_lost(key: str, lost: int) -> None:
    log.error("stream_trimmed_unread", at=key, lost=lost, mend="raise LTM_STREAM_MAX_LEN; run ltm backfill")


def _derived_id(update: MemoryUpdateMessage) -> str:
    # From all that identifies the event, so that one that is published twice is deduplicated.
    identity: list[object] = [update.user_id, update.source, update.content, update.timestamp]
    if update.agent_id is not None or update.speaker is not None:
        identity += [update.agent_id, update.speaker and update.speaker.key]
    return sha256(json.dumps(identity).encode()).hexdigest()[:32]
