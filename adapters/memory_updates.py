"""UpdateAdapter: writes events of the channel `memory_updates` to the stream where their publisher has not."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import redis
import structlog
from keepsake_client.errors import InvalidMessage
from keepsake_client.protocol import COUNTERS, parse_update
from keepsake_client.refusals import refuses_writes
from keepsake_client.subscription import MAX_SILENCE_S, HalfOpen, SubscriptionMonitor
from keepsake_client.tolerance import DEFAULTS, MessageDefaults

from adapters.leader import LEASE_S, Lease
from adapters.loop import POLL_TIMEOUT_S
from adapters.stream import UpdateStream, digest
from services.runtime.availability import Availability
from services.runtime.bounded_queue import MAX_ITEMS, BoundedQueue
from services.runtime.counters import PendingCounts
from services.runtime.logging import redact
from services.runtime.rejected import RejectSink
from services.runtime.subscription import next_message

#: Messages are kept for longer than it takes a new leader to follow one that has failed, or that hears nothing.
KEPT_S = MAX_SILENCE_S + 3 * LEASE_S
#: On a busy host one adapter may receive a message this much later than another has written it.
SLACK_S = 2.0
#: The key of the lease of the adapter that writes what it kept while Redis refused writes.
WRITER_KEY = "ltm:channel-writer"
#: Far longer than the iteration of the loop in which it writes some of it.
WRITER_LEASE_S = 15.0
#: A message counts as arrived when nothing was waiting, at most so long before it was received.
MAX_LAG_S = 10.0
#: Messages written in one iteration: a second's, on a busy host. A longer one would be taken for a loop that is stuck.
WRITTEN_AT_ONCE = 1_000

log = structlog.get_logger()


class _Received(NamedTuple):
    """A message.

    Args:
        at: when it was received, in seconds since 1970.
        since: it was published after this; then everything that had been published was received.
        arrived_at: when the burst began that it is part of: a burst is received more slowly than it is published, and
            by the time of receipt, what was published before a deletion would seem to have been published after it.
    """

    at: float
    since: float
    arrived_at: float
    raw: bytes


class UpdateAdapter:
    """Listens to the channel and writes to the stream what its publisher has not.

    Every adapter receives every message; the leader writes it. The others keep the last few seconds, and a new leader
    writes what its predecessor had not. While Redis refuses writes, or does not answer them, every adapter keeps what
    it hears, up to a bound: the leader writes it once Redis takes it, and later each of the others what the leader had
    not heard, one after the other.

    Args:
        client: connects to the pipeline's Redis.
        channel: the channel's name.
        defaults: what events that leave something out are read by.
        writes: whether Redis takes writes, as far as this process knows; another loop notes when it does again.
        counts: what is lost and replaced.
        poll_timeout_s: the longest wait for a message.
        max_kept: how many messages are kept at most.
        monitor: of the subscription.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        client: redis.Redis,
        channel: str,
        stream: UpdateStream,
        lease: Lease,
        rejects: RejectSink,
        max_content_chars: int,
        *,
        defaults: MessageDefaults = DEFAULTS,
        writes: Availability | None = None,
        counts: PendingCounts | None = None,
        poll_timeout_s: float = POLL_TIMEOUT_S,
        max_kept: int = MAX_ITEMS,
        monitor: SubscriptionMonitor | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._subscription = client.pubsub()  # type: ignore[no-untyped-call]
        self._channel = channel
        self._stream = stream
        self._lease = lease
        self._writer = Lease(client, stream.consumer, key=WRITER_KEY, seconds=WRITER_LEASE_S)
        self._rejects = rejects
        self._max_content_chars = max_content_chars
        self._defaults = defaults
        self._writes = writes or Availability("redis", at="writes")
        self._counts = counts or PendingCounts(COUNTERS)
        self._poll_timeout_s = poll_timeout_s
        self.monitor = monitor or SubscriptionMonitor()
        self._clock = clock
        self._kept: BoundedQueue[_Received] = BoundedQueue(lambda received: len(received.raw), max_kept)
        #: The digests of messages that were kept and are in the stream, each with when it was written, about.
        self._written: deque[tuple[float, str]] = deque(maxlen=MAX_ITEMS)
        self._drained_at = self._empty_at = 0.0
        self._refused_until = 0.0
        self._dropped = 0
        self._leading = False
        self._writing_kept = False

    def connect(self) -> None:
        """Subscribe; again after an outage."""
        self._receive_before_reset()
        self._subscription.reset()
        self._subscription.subscribe(self._channel)
        self.monitor.restart()
        self._drained_at = self._empty_at = self._clock()

    def run_once(self) -> None:
        """Wait up to a second for a message, and write it to the stream if this adapter leads."""
        self._receive(0.0 if self._writing_kept else self._poll_timeout_s)
        if self._writing_kept or (self._lease.held() and not self._leading):
            # What has arrived and was not read yet may have been written too.
            while self._receive(0.0):
                pass
        if not self._writes.assumed_up:
            self._leading, self._writing_kept, self._refused_until = False, False, self._clock()
            return
        try:
            if self._lease.held():
                self._lead()
            else:
                self._leading = False
                self._forget()
        except redis.RedisError as error:
            if isinstance(error, redis.ResponseError) and not refuses_writes(error):
                raise
            # Not raised: the loop would subscribe anew, and miss what is published meanwhile.
            self._writes.down(redact(error))
            self._leading = self._writing_kept = False  # it may have been written all the same

    def stop(self) -> None:
        """Report what was kept while Redis refused writes, and ends with this process."""
        if self._refused_until and self._kept:
            log.error("updates_not_written", at=self._channel, kept=len(self._kept), dropped=self._dropped)

    def _receive(self, timeout_s: float) -> bool:
        """Wait for a message, and keep it if its publisher has not written it; whether anything came."""
        try:
            message = next_message(self._subscription, self.monitor, 0.0)
            if message is None:
                if timeout_s:
                    message = next_message(self._subscription, self.monitor, timeout_s)
                self._empty_at = self._clock()
        except HalfOpen:
            self._counts.count("subscriptions_replaced")
            # Those that are idle are half-open too; each would cost one command its time-out.
            self._client.connection_pool.disconnect(inuse_connections=False)
            raise
        if message is None:
            self._drained_at = self._empty_at
            return False
        self._keep(message)
        return True

    def _receive_before_reset(self) -> None:
        # As a connection breaks, redis-py makes another one and subscribes on it, before it raises.
        connection = self._subscription.connection
        if connection is None or not connection.is_connected:
            return
        with suppress(redis.RedisError):
            while (message := self._subscription.get_message()) is not None:
                self._keep(message)

    def _keep(self, message: dict[str, Any]) -> None:
        if message["type"] == "message" and not says_logged(message["data"]):
            now = self._clock()
            arrived_at = max(self._empty_at, now - MAX_LAG_S)
            dropped = self._kept.append(_Received(now, self._drained_at, arrived_at, message["data"]))
            if self._refused_until or not self._writes.assumed_up:
                self._dropped += dropped

    def _lead(self) -> None:
        if self._leading:
            self._leading = self._write(self._lease)
        elif not self._refused_until:
            self._drop_written()
            self._leading = self._write(self._lease)
        elif self._write_kept():
            self._report_dropped()
            self._leading = True

    def _forget(self) -> None:
        """Forget messages that the leader has written long ago."""
        now = self._clock()
        # The leader may have heard less than this adapter. It has KEPT_S to write what it heard.
        if self._refused_until and now < self._refused_until + KEPT_S:
            self._writing_kept = False
            return
        if self._refused_until and not self._write_kept(self._refused_until):
            return
        self._dropped = 0
        while self._kept and self._kept.peek().at < now - KEPT_S:
            self._note_written(self._kept.peek().raw, self._kept.peek().at + SLACK_S)
            self._kept.popleft()

    def _write_kept(self, until: float = float("inf")) -> bool:
        """Write some of what no adapter has written since Redis refused writes; whether all of it is written.

        Nothing is written while another adapter does that.

        Args:
            until: what was received later is left to the leader.
        """
        lease = self._writer
        if not lease.held():  # or no longer: another one may have written meanwhile
            self._writing_kept = False
        try:
            lease.renew()
            if not lease.held():
                return False
        except redis.exceptions.NoPermissionError:  # access rules of version 0.2: the leader alone writes
            lease = self._lease
            until = until if self._lease.held() else 0.0
        if not self._writing_kept:
            self._drop_written()
            self._writing_kept = True
        if not self._write(lease, until, WRITTEN_AT_ONCE):
            return False
        self._writing_kept, self._refused_until = False, 0.0
        with suppress(redis.RedisError):  # it expires
            self._writer.release()
        return True

    def _write(self, lease: Lease, until: float = float("inf"), at_once: int = MAX_ITEMS) -> bool:
        """Write what was received until then, at most `at_once` and while the lease lasts; whether that was all."""
        written = 0
        while self._kept and self._kept.peek().at <= until:
            if written == at_once or not lease.held():
                return False
            written += 1
            received = self._kept.peek()
            raw = received.raw
            try:
                update = parse_update(raw, self._max_content_chars, self._defaults, arrived_at=received.at)
            except InvalidMessage as error:
                if self._lease.held():  # the others heard it too
                    self._rejects.add(raw, error)
            else:
                self._note_written(raw, self._stream.append(update, raw, received.arrived_at))
            self._kept.popleft()
        return True

    def _drop_written(self) -> None:
        """Forget the kept messages that another adapter has written."""
        if not self._kept:
            return
        start = self._kept.peek().since - SLACK_S
        times: dict[str, list[float]] = {digest(received.raw): [] for received in self._kept}
        for at, key in self._stream.written_since(start):
            if key in times:
                times[key].append(at)
        for found in times.values():
            found.reverse()  # the oldest is popped first
        # Equal messages have equal digests: one that was dealt with before must not stand for one that was not.
        for at, key in self._written:
            if at >= start and times.get(key):
                times[key].pop()

        def missing(received: _Received) -> bool:
            found = times[digest(received.raw)]
            if not found:
                return True
            self._note_written(received.raw, found.pop())
            return False

        self._kept.retain(missing)

    def _note_written(self, raw: bytes, at: float) -> None:
        """Remember a message that is in the stream, while one that is kept may be equal to it."""
        self._written.append((at, digest(raw)))
        while self._written and self._written[0][0] < self._kept.peek().since - SLACK_S:
            self._written.popleft()

    def _report_dropped(self) -> None:
        if self._dropped:
            self._counts.count("updates_lost", self._dropped)
            log.error("updates_lost", at=self._channel, lost=self._dropped)
            self._dropped = 0


def says_logged(raw: bytes) -> bool:
    """Whether the event's publisher has written it to the stream."""
    if b'"logged"' not in raw:
        return False
    try:
        event = json.loads(raw)
    except (ValueError, RecursionError):
        return False  # parsing it says what is wrong
    return isinstance(event, dict) and event.get("logged") is True
