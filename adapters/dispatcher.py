"""The log of updates -> memory.index, fair between users and never more than the indexers can take."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

import dramatiq
import structlog
from dramatiq.brokers.redis import RedisBroker
from keepsake_client.errors import InvalidMessage
from keepsake_client.protocol import MemoryUpdateMessage, parse_update

from adapters.fair_queue import FairQueue
from adapters.membership import Membership
from adapters.rejected import Rejected
from adapters.stream import Entry, UpdateStream
from services.runtime.queues import INDEX_QUEUE
from tasks.queues import index_message

WAIT_MS = 1_000
READ_BATCH = 200
#: However few entries that is: they may hold a megabyte each.
MAX_PREFETCH_BYTES = 64_000_000
#: Between looks at a full queue; new messages are read all the same.
FULL_PAUSE_S = 0.02

log = structlog.get_logger()


class _Read(NamedTuple):
    id: bytes
    update: MemoryUpdateMessage
    size: int


class Dispatcher:
    """Reads ahead and hands over: one message a user at a time, and only while the indexers' queue is short.

    What was read stays in Redis under this consumer's name until it is handed over, so a crash in between hands some
    over twice, which indexes them once, and loses none.

    Args:
        prefetch: how many entries are held at most.
        window: how many messages may wait in the indexers' queue. Only a Redis broker tells; others take all.
    """

    def __init__(
        self,
        updates: UpdateStream,
        membership: Membership,
        broker: dramatiq.Broker,
        rejected: Rejected,
        max_content_chars: int,
        prefetch: int,
        window: int,
    ) -> None:
        self._stream = updates
        self._membership = membership
        self._broker = broker
        self._rejected = rejected
        self._max_content_chars = max_content_chars
        self._read_ahead = prefetch
        self._window = window
        self._fair: FairQueue[_Read] = FairQueue()
        self._bytes = 0
        self._full = False
        self._done: list[bytes] = []
        self._again = threading.Event()

    def connect(self) -> None:
        """Join the group, and read again what is noted under our name; again after a lost connection."""
        self._membership.heartbeat()  # or else the others take over what we read
        self._stream.open()
        self.start_over()

    def start_over(self) -> None:
        """At the next turn, forget what was read ahead and read again what is ours; safe from any thread."""
        self._again.set()

    def turn(self) -> None:
        """Read what has come, waiting up to a second where there is nothing else to do; hand over what fits."""
        self._settle()
        if self._again.is_set():
            self._again.clear()
            self._fair.clear()
            self._bytes = 0
            self._stream.start_over()
        if self._may_read():
            count = min(READ_BATCH, self._read_ahead - len(self._fair))
            for entry in self._stream.read(count, None if self._fair else WAIT_MS):
                self._take(entry)
        if self._fair and not self._dispatch():
            time.sleep(FULL_PAUSE_S)

    def _may_read(self) -> bool:
        if len(self._fair) >= self._read_ahead or self._bytes >= MAX_PREFETCH_BYTES:
            self._full = True
        elif self._full and self._read_ahead - len(self._fair) >= min(READ_BATCH, self._read_ahead):
            self._full = False
            # While nothing was read, the log may have been trimmed; past the gap nobody can tell any more.
            self._stream.count_trimmed()
        return not self._full

    def _take(self, entry: Entry) -> None:
        try:
            update = parse_update(entry.event, self._max_content_chars)
        except InvalidMessage as error:
            self._rejected.take(entry.event, error)
            self._done.append(entry.id)
        else:
            self._fair.put(update.user_id, _Read(entry.id, update, len(entry.event)))
            self._bytes += len(entry.event)

    def _dispatch(self) -> int:
        room = self._room()
        try:
            for _ in range(min(room, len(self._fair))):
                read = self._fair.peek()
                self._broker.enqueue(index_message(read.update))
                self._fair.pop()
                self._bytes -= read.size
                self._done.append(read.id)
        finally:
            self._settle()
        return room

    def _settle(self) -> None:
        if self._done:
            self._stream.ack(self._done)
            self._done = []

    def _room(self) -> int:
        if not isinstance(self._broker, RedisBroker):
            return READ_BATCH
        undone: int = self._broker.client.hlen(f"{self._broker.namespace}:{INDEX_QUEUE}.msgs")
        return max(0, self._window - undone)
