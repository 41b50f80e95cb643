"""Rate limits: a token bucket for each key."""

from __future__ import annotations

import time
from collections.abc import Callable

from keepsake_client.errors import KeepsakeError

from services.gateway.access import Caller
from services.runtime.token_buckets import TokenBuckets


class RateLimited(KeepsakeError):
    """The key has made more requests a second than its rate permits."""

    code = "rate_limited"

    def __init__(self, rate: float, retry_after_s: float) -> None:
        super().__init__(f"this key may make {rate:g} requests a second: try again in {retry_after_s:.2g} s")
        self.retry_after_s = retry_after_s


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
