"""What keeps the adapters in order: signs of life, the lease, the dead's belongings, the log's bounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import redis
import structlog

from adapters.hand_over import HandOver
from adapters.log import UpdateLog
from adapters.roll import Lease, Roll
from services.contract import COUNTERS

EVERY_SECONDS = 1.0
MEASURE_SECONDS = 5.0
TRIM_SECONDS = 60.0

log = structlog.get_logger()


class Keeper:
    """Signs the roll for as long as every other loop turns, and keeps house while it holds the lease.

    Args:
        checks: whether each of the other loops turns.
        log_hours: for how long the log keeps an entry.
        max_backlog: more entries than that waiting are told of.
    """

    def __init__(
        self,
        client: redis.Redis,
        roll: Roll,
        lease: Lease,
        updates: UpdateLog,
        hand_over: HandOver,
        checks: Iterable[Callable[[], bool]],
        log_hours: float,
        max_backlog: int,
    ) -> None:
        self._client = client
        self._roll = roll
        self._lease = lease
        self._log = updates
        self._hand_over = hand_over
        self._checks = list(checks)
        self._log_hours = log_hours
        self._max_backlog = max_backlog
        self._over = False
        self._measure_at = self._trim_at = 0.0

    def turn(self) -> None:
        """Sign, renew, keep house; then rest for a second."""
        if all(check() for check in self._checks):
            if self._roll.sign():
                self._hand_over.start_over()  # another may have taken over what we read ahead
            self._lease.renew()
        if self._lease.held():
            try:
                self._keep_house()
            except redis.ResponseError as error:
                if "NOGROUP" not in str(error) and "no such key" not in str(error):
                    raise
                self._log.open()  # somebody deleted it
        time.sleep(EVERY_SECONDS)

    def stop(self) -> None:
        """Leave the lease, and what is noted in the log under our name, to the others at once."""
        self._lease.release()
        self._roll.leave()

    def _keep_house(self) -> None:
        now = time.monotonic()
        if self._log.take_over(self._roll.living()):
            self._hand_over.start_over()
        if now >= self._measure_at:
            self._measure_at = now + MEASURE_SECONDS
            self._log.count_trimmed()
            self._measure_backlog()
        if now >= self._trim_at:
            self._trim_at = now + TRIM_SECONDS
            self._log.trim(self._log_hours)

    def _measure_backlog(self) -> None:
        backlog = self._log.backlog()
        if not self._over and backlog > self._max_backlog:
            self._over = True
            self._client.hincrby(COUNTERS, "backlog_over", 1)
            log.error("backlog_over", waiting=backlog, allowed=self._max_backlog)
        elif self._over and backlog <= self._max_backlog:
            self._over = False
            log.info("backlog_back", waiting=backlog)
