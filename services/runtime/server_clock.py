"""The clock of the pipeline's Redis, as a process on another host follows it.

Times that one host writes and another compares (when a request was taken, its deadline, when an event arrived) would be
off by as much as the two hosts' clocks. Redis is the one server that they all talk to, so they go by its clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import structlog

#: A difference that synchronized clocks (NTP) may have is not corrected: what is measured of it is less exact.
TOLERANCE_S: Final = 0.05
#: From here on an operator is told: NTP does not run on one of the hosts.
WARN_FROM_S: Final = 1.0

log = structlog.get_logger()


class ServerClock:
    """The time in seconds since 1970 by Redis's clock: this host's clock, plus their difference where it counts.

    Its heartbeats observe the difference every second; before the first one, this host's clock stands for Redis's.

    Args:
        host: this host's clock, in seconds since 1970.
    """

    def __init__(self, host: Callable[[], float] = time.time) -> None:
        self.host = host
        self._ahead_s = 0.0
        self._warned = False

    def __call__(self) -> float:
        return self.host() - self._ahead_s

    @property
    def ahead_s(self) -> float:
        """By how many seconds this host's clock is ahead of Redis's; 0.0 where they agree."""
        return self._ahead_s

    def observe(self, server: tuple[int, int], asked_at: float, answered_at: float) -> None:
        """Note what Redis answered to TIME.

        Args:
            server: seconds since 1970, and microseconds of the second.
            asked_at, answered_at: by this host's clock, in seconds since 1970. Redis's time is of some moment between,
                so the difference is known to half of that.
        """
        seconds, microseconds = server
        ahead_s = (asked_at + answered_at) / 2 - (seconds + microseconds / 1_000_000)
        known_to_s = abs(answered_at - asked_at) / 2
        if abs(ahead_s - self._ahead_s) <= known_to_s:
            return  # nothing new: as of a process that was frozen while it waited
        self._ahead_s = ahead_s if abs(ahead_s) > TOLERANCE_S + known_to_s else 0.0
        if abs(self._ahead_s) < WARN_FROM_S:
            self._warned = False
        elif not self._warned:
            self._warned = True
            log.warning("clock_differs", ahead_of_redis_s=round(self._ahead_s, 1))
