"""Rate limits: a token bucket for each key."""

from __future__ import annotations

import time
from collections.abc import Callable

from cachetools import LRUCache
from keepsake_client.errors import KeepsakeError

from services.gateway.access import Caller

#: A burst is as many requests as the rate permits in this time.
BURST_S = 2.0
#: Of more names than these, the longest unused ones are forgotten: their buckets count as full.
MAX_BUCKETS = 10_000


class RateLimited(KeepsakeError):
    """The key has made more requests a second than its rate permits."""

    code = "rate_limited"

    def __init__(self, rate: float, retry_after_s: float) -> None:
        super().__init__(f"this key may make {rate:g} requests a second: try again in {retry_after_s:.2g} s")
        self.retry_after_s = retry_after_s


class TokenBuckets:
    """Token buckets by name.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: LRUCache[str, tuple[float, float]] = LRUCache(MAX_BUCKETS)

    def take(self, name: str, rate: float) -> float:
        """Take one token of a bucket that fills at `rate` a second.

        Returns:
            0 or, where there was none to take, the seconds until there is one.
        """
        size, now = max(1.0, rate * BURST_S), self._clock()
        left, at = self._buckets.get(name, (size, now))
        left = min(size, left + (now - at) * rate)
        taken = left >= 1
        self._buckets[name] = (left - taken, now)
        return 0.0 if taken else (1 - left) / rate


class RateLimiter:
    """The rate limits of callers, by their names.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._buckets = TokenBuckets(clock)

    def take(self, caller: Caller) -> None:
        """Count one request of a caller.

        Raises:
            RateLimited: it has made too many.
        """
        if caller.rate and (wait_s := self._buckets.take(caller.name, caller.rate)):
            raise RateLimited(caller.rate, wait_s)
