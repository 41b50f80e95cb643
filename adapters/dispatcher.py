"""Dispatcher: moves events from the stream to the index queue, fair between users, with backpressure by that queue."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

import dramatiq
import structlog
from dramatiq.brokers.redis import RedisBroker
from keepsake_client.errors import InvalidMessage
from keepsake_client.protocol import MemoryUpdateMessage, parse_update
from keepsake_client.tolerance import DEFAULTS, MessageDefaults

from adapters.fair_queue import FairQueue
from adapters.loop import POLL_TIMEOUT_S
from adapters.membership import Membership
from adapters.stream import Entry, UpdateStream
from services.runtime.queues import INDEX_QUEUE, QueueKeys
from services.runtime.rejected import RejectSink
from tasks.queues import index_message

#: Entries read by one command.
READ_BATCH = 200
#: However few entries that is: they may hold a megabyte each.
MAX_PREFETCH_BYTES = 64_000_000
#: The pause after the window was found full.
FULL_PAUSE_S = 0.02

log = structlog.get_logger()


class _Prefetched(NamedTuple):
    id: bytes
    update: MemoryUpdateMessage
    arrived_at: float
    size: int


class Dispatcher:
    """Prefetches entries of the stream and dispatches them: users in turn, while the indexers' queue is short.

    A prefetched entry stays pending in Redis under this consumer's name until it is dispatched. A crash in between
    dispatches some entries twice, which indexes them once, and loses none.

    Args:
        prefetch: how many entries are held at most.
        window: how many messages may wait in the indexers' queue. Only a Redis broker knows; with another one there is
            no backpressure.
        defaults: what events that leave something out are read by.
        max_prefetch_bytes: no further entries are read once those that are held have this many bytes.
        poll_timeout_s: the longest wait for an entry.
    """

    def __init__(
        self,
        stream: UpdateStream,
        membership: Membership,
        broker: dramatiq.Broker,
        rejects: RejectSink,
        max_content_chars: int,
        prefetch: int,
        window: int,
        *,
        defaults: MessageDefaults = DEFAULTS,
        max_prefetch_bytes: int = MAX_PREFETCH_BYTES,
        poll_timeout_s: float = POLL_TIMEOUT_S,
    ) -> None:
        self._stream = stream
        self._membership = membership
        self._broker = broker
        self._rejects = rejects
        self._max_content_chars = max_content_chars
        self._prefetch = prefetch
        self._window = window
        self._defaults = defaults
        self._max_prefetch_bytes = max_prefetch_bytes
        self._poll_timeout_ms = int(poll_timeout_s * 1000)
        self._prefetched: FairQueue[_Prefetched] = FairQueue()
        self._prefetched_bytes = 0
        self._full = False
        self._unacknowledged: list[bytes] = []
        self._reset_requested = threading.Event()

    def connect(self) -> None:
        """Join the group, and read this consumer's pending entries again; also after an outage."""
        self._membership.heartbeat()  # or the others claim what this adapter reads
        self._stream.open()
        self.reset()

    def reset(self) -> None:
        """At the next iteration, drop what was prefetched and read the pending entries again; safe from any thread."""
        self._reset_requested.set()

    def run_once(self) -> None:
        """Read new entries, waiting up to a second where nothing is prefetched; dispatch what fits the window."""
        self._acknowledge()
        if self._reset_requested.is_set():
            self._reset_requested.clear()
            self._prefetched.clear()
            self._prefetched_bytes = 0
            self._stream.rewind()
        if self._may_read():
            count = min(READ_BATCH, self._prefetch - len(self._prefetched))
            for entry in self._stream.read(count, None if self._prefetched else self._poll_timeout_ms):
                self._put(entry)
        if self._prefetched and not self._dispatch():
            time.sleep(FULL_PAUSE_S)

    def _may_read(self) -> bool:
        if len(self._prefetched) >= self._prefetch or self._prefetched_bytes >= self._max_prefetch_bytes:
            self._full = True
        elif self._full and self._prefetch - len(self._prefetched) >= min(READ_BATCH, self._prefetch):
            self._full = False
            # While nothing was read, the stream may have been trimmed. Reading on past the gap would hide it.
            self._stream.count_trimmed()
        return not self._full

    def _put(self, entry: Entry) -> None:
        arrived_at = entry.arrived_at
        try:
            update = parse_update(entry.event, self._max_content_chars, self._defaults, arrived_at=arrived_at)
        except InvalidMessage as error:
            self._rejects.add(entry.event, error)
            self._unacknowledged.append(entry.id)
        else:
            self._prefetched.put(update.user_id, _Prefetched(entry.id, update, arrived_at, len(entry.event)))
            self._prefetched_bytes += len(entry.event)

    def _dispatch(self) -> int:
        """Enqueue what fits the window; return how many messages the window had room for."""
        free = self._free_window()
        try:
            for _ in range(min(free, len(self._prefetched))):
                entry = self._prefetched.peek()
                self._broker.enqueue(index_message(entry.update, entry.arrived_at))
                self._prefetched.pop()
                self._prefetched_bytes -= entry.size
                self._unacknowledged.append(entry.id)
        finally:
            self._acknowledge()
        return free

    def _acknowledge(self) -> None:
        if self._unacknowledged:
            self._stream.ack(self._unacknowledged)
            self._unacknowledged = []

    def _free_window(self) -> int:
        if not isinstance(self._broker, RedisBroker):
            return READ_BATCH
        undone: int = self._broker.client.hlen(QueueKeys(INDEX_QUEUE, self._broker.namespace).messages)
        return max(0, self._window - undone)
