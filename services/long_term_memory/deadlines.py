"""What a search can still afford: query vectors kept, and how long the parts of a search have taken lately."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

#: How much longer than usual something is granted before a search with a deadline does without: two searches at once
#: take twice as long, and under a burst an embedding of 29 ms at the median took 63 at p99.
SAFETY_FACTOR = 2.5
#: The weight of the latest measurement, and what is left of an estimate each time it made a search do without: what
#: is never tried again would stay slow for ever.
LATEST = 0.2
FORGOTTEN = 0.8


class LatencyEstimate:
    """A moving average of the seconds that one part of a search takes."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def took(self, seconds: float) -> None:
        """It was done just now, in so many seconds."""
        self.seconds += LATEST * (seconds - self.seconds)

    def skipped(self) -> None:
        """It was left out for want of time."""
        self.seconds *= FORGOTTEN


class QueryVectors:
    """The vectors of the queries asked last; users repeat themselves, and the embedding is nine tenths of a search.

    Args:
        embed: gives the vector of one query.
        kept: how many; 1.5 kB each of multilingual-e5-small's.
    """

    def __init__(self, embed: Callable[[str], list[float]], kept: int) -> None:
        self._embed = embed
        self._kept = kept
        self._vectors: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()
        self._pace = LatencyEstimate()

    def get(self, query: str, seconds_left: float) -> NDArray[np.float32] | None:
        """The query's vector, or None where there is no time left to embed it."""
        with self._lock:
            if query in self._vectors:
                self._vectors.move_to_end(query)
                return self._vectors[query]
        if seconds_left < SAFETY_FACTOR * self._pace.seconds:
            self._pace.skipped()
            return None
        begun = time.perf_counter()
        vector = np.asarray(self._embed(query), np.float32)
        self._pace.took(time.perf_counter() - begun)
        with self._lock:
            self._vectors[query] = vector
            if len(self._vectors) > self._kept:
                self._vectors.popitem(last=False)
        return vector
