"""TokenBuckets: rate limits by name."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from cachetools import LRUCache

#: A burst is as many tokens as the rate fills in this time.
BURST_S = 2.0
#: Of more names than these, the longest unused ones are forgotten: their buckets count as full.
MAX_BUCKETS = 10_000


class TokenBuckets:
    """Token buckets by name; thread-safe.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: LRUCache[str, tuple[float, float]] = LRUCache(MAX_BUCKETS)

    def take(self, name: str, rate: float) -> float:
        """Take one token of a bucket that fills at `rate` a second.

        Returns:
            0 or, where there was none to take, the seconds until there is one.
        """
        size = max(1.0, rate * BURST_S)
        with self._lock:
            now = self._clock()
            left, at = self._buckets.get(name, (size, now))
            left = min(size, left + (now - at) * rate)
            taken = left >= 1
            self._buckets[name] = (left - taken, now)
        return 0.0 if taken else (1 - left) / rate
