"""Maintenance of the adapters: heartbeat and lease; on the leader, the stream's claims, bounds and figures."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

import redis
import structlog
from keepsake_client.protocol import COUNTERS
from keepsake_client.turns import TURNS_STREAM
from redis.exceptions import NoPermissionError

from adapters.dispatcher import Dispatcher
from adapters.leader import LEASE_S, Lease
from adapters.membership import Membership
from adapters.stream import UpdateStream
from services.runtime.availability import Availability
from services.runtime.counters import PendingCounts

INTERVAL_S = 1.0
MEASURE_INTERVAL_S = 5.0
TRIM_INTERVAL_S = 60.0

log = structlog.get_logger()


#: An adapter that has only just subscribed leaves the lease to the others for this long: it has not heard what was
#: published before, and another one has, which gets the lease within `LEASE_S` and one interval.
NEWCOMER_WAIT_S = LEASE_S + 2 * INTERVAL_S


class Maintenance:
    """Sends the heartbeat while every other loop works, and maintains the stream while this adapter leads.

    Args:
        checks: whether each of the other loops works.
        stream_hours: for how long the stream keeps an entry.
        turns_hours: for how long the stream of turn records keeps one.
        max_backlog: more undispatched entries than that are reported.
        interval_s: the pause between two iterations.
        measure_interval_s: how often the leader measures the backlog and counts trimmed entries.
        newcomer_wait_s: how long an adapter that has just subscribed does not bid for the lease while others are live.
        subscribed_s: for how long this adapter has been subscribed to the channel.
        writes: whether Redis takes writes; each heartbeat shows it.
        counts: written while Redis takes writes.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        client: redis.Redis,
        membership: Membership,
        lease: Lease,
        stream: UpdateStream,
        dispatcher: Dispatcher,
        checks: Iterable[Callable[[], bool]],
        stream_hours: float,
        turns_hours: float,
        max_backlog: int,
        *,
        interval_s: float = INTERVAL_S,
        measure_interval_s: float = MEASURE_INTERVAL_S,
        newcomer_wait_s: float = NEWCOMER_WAIT_S,
        subscribed_s: Callable[[], float] = lambda: math.inf,
        writes: Availability | None = None,
        counts: PendingCounts | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._membership = membership
        self._lease = lease
        self._stream = stream
        self._dispatcher = dispatcher
        self._checks = list(checks)
        self._stream_hours = stream_hours
        self._turns_hours = turns_hours
        self._may_trim_turns = True
        self._max_backlog = max_backlog
        self._interval_s = interval_s
        self._measure_interval_s = measure_interval_s
        self._newcomer_wait_s = newcomer_wait_s
        self._subscribed_s = subscribed_s
        self._writes = writes or Availability("redis", at="writes")
        self._counts = counts or PendingCounts(COUNTERS)
        self._clock = clock
        self._over = False
        self._measure_at = self._trim_at = 0.0
        self._taken_at = clock()

    def run_once(self) -> None:
        """Send the heartbeat, renew the lease, maintain the stream; then pause for a second."""
        working = all(check() for check in self._checks)
        if working:
            if self._membership.heartbeat():
                self._dispatcher.reset()  # another adapter may have claimed what was prefetched
            if self._may_lead():
                self._lease.renew()
            self._writes.up()
            self._counts.flush(self._client)
        if self._lease.held():
            try:
                self._maintain()
            except redis.ResponseError as error:
                if "NOGROUP" not in str(error) and "no such key" not in str(error):
                    raise
                self._stream.open()  # it was deleted
        # A process that is starting is checked more often.
        time.sleep(self._interval_s if working else self._interval_s / 20)

    def release(self) -> None:
        """Leave the lease, and this adapter's pending entries of the stream, to the others at once."""
        self._lease.release()
        self._membership.leave()

    def _may_lead(self) -> bool:
        """Whether to bid for the lease: an adapter that has only just subscribed leaves it to those that heard more.

        Where none of them takes it, all have just subscribed, as behind a proxy that closes connections all the time.
        """
        now = self._clock()
        settled = self._subscribed_s() >= self._newcomer_wait_s or self._membership.live() <= {self._membership.name}
        if settled or self._lease.taken():
            self._taken_at = now
        return settled or now - self._taken_at >= self._newcomer_wait_s

    def _maintain(self) -> None:
        now = self._clock()
        if self._stream.claim_from_failed(self._membership.live()):
            self._dispatcher.reset()
        if now >= self._measure_at:
            self._measure_at = now + self._measure_interval_s
            self._stream.count_trimmed()
            self._measure_backlog()
        if now >= self._trim_at:
            self._trim_at = now + TRIM_INTERVAL_S
            self._stream.trim(self._stream_hours)
            self._trim_turns()

    def _trim_turns(self) -> None:
        """Remove turn records that are older than they are to be kept, approximately."""
        if not self._may_trim_turns:
            return
        seconds, _ = self._client.time()
        try:
            self._client.xtrim(TURNS_STREAM, minid=int((seconds - self._turns_hours * 3_600) * 1000), approximate=True)
        except NoPermissionError:  # the access rules of an earlier version
            self._may_trim_turns = False
            log.warning("turns_not_trimmed", at=TURNS_STREAM, remedy="load the rules of docs/security.md")

    def _measure_backlog(self) -> None:
        backlog = self._stream.backlog()
        if not self._over and backlog > self._max_backlog:
            self._over = True
            self._client.hincrby(COUNTERS, "backlog_over", 1)
            log.error("backlog_over", waiting=backlog, allowed=self._max_backlog)
        elif self._over and backlog <= self._max_backlog:
            self._over = False
            log.info("backlog_recovered", waiting=backlog)
