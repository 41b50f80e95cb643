"""What keeps the adapters in order: signs of life, the lease, the dead's belongings, the log's bounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import redis
import structlog
from keepsake_client.protocol import COUNTERS

from adapters.dispatcher import Dispatcher
from adapters.membership import Lease, Membership
from adapters.stream import UpdateStream

INTERVAL_S = 1.0
MEASURE_INTERVAL_S = 5.0
TRIM_INTERVAL_S = 60.0

log = structlog.get_logger()


class Maintenance:
    """Signs the membership for as long as every other loop turns, and keeps house while it holds the lease.

    Args:
        checks: whether each of the other loops turns.
        log_hours: for how long the log keeps an entry.
        max_backlog: more entries than that waiting are told of.
    """

    def __init__(
        self,
        client: redis.Redis,
        membership: Membership,
        lease: Lease,
        updates: UpdateStream,
        dispatcher: Dispatcher,
        checks: Iterable[Callable[[], bool]],
        log_hours: float,
        max_backlog: int,
    ) -> None:
        self._client = client
        self._membership = membership
        self._lease = lease
        self._stream = updates
        self._dispatch = dispatcher
        self._checks = list(checks)
        self._log_hours = log_hours
        self._max_backlog = max_backlog
        self._over = False
        self._measure_at = self._trim_at = 0.0

    def turn(self) -> None:
        """Sign, renew, keep house; then rest for a second."""
        if all(check() for check in self._checks):
            if self._membership.heartbeat():
                self._dispatch.start_over()  # another may have taken over what we read ahead
            self._lease.renew()
        if self._lease.held():
            try:
                self._maintain()
            except redis.ResponseError as error:
                if "NOGROUP" not in str(error) and "no such key" not in str(error):
                    raise
                self._stream.open()  # somebody deleted it
        time.sleep(INTERVAL_S)

    def stop(self) -> None:
        """Leave the lease, and what is noted in the log under our name, to the others at once."""
        self._lease.release()
        self._membership.leave()

    def _maintain(self) -> None:
        now = time.monotonic()
        if self._stream.claim_from_failed(self._membership.live()):
            self._dispatch.start_over()
        if now >= self._measure_at:
            self._measure_at = now + MEASURE_INTERVAL_S
            self._stream.count_trimmed()
            self._measure_backlog()
        if now >= self._trim_at:
            self._trim_at = now + TRIM_INTERVAL_S
            self._stream.trim(self._log_hours)

    def _measure_backlog(self) -> None:
        backlog = self._stream.backlog()
        if not self._over and backlog > self._max_backlog:
            self._over = True
            self._client.hincrby(COUNTERS, "backlog_over", 1)
            log.error("backlog_over", waiting=backlog, allowed=self._max_backlog)
        elif self._over and backlog <= self._max_backlog:
            self._over = False
            log.info("backlog_back", waiting=backlog)
