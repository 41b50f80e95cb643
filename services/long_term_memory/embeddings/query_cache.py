"""QueryCache: an LRU cache of query vectors, which also skips an embedding that there is no time for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from services.long_term_memory.deadlines import SAFETY_FACTOR, LatencyEstimate
from services.long_term_memory.digest_cache import digest


class QueryCache:
    """The vectors of the latest queries, by their digests: users repeat themselves, and embedding is most of a search.

    Args:
        embed: the embedding of one query.
        max_size: how many vectors are kept.
    """

    def __init__(self, embed: Callable[[str], list[float]], max_size: int) -> None:
        self._embed = embed
        self._vectors: LRUCache[bytes, NDArray[np.float32]] = LRUCache(max_size)
        self._lock = threading.Lock()
        self.latency = LatencyEstimate()

    def get(self, query: str, seconds_left: float) -> NDArray[np.float32] | None:
        """The query's vector, (d,) float32; None where too little time is left to embed it."""
        key = digest(query)
        with self._lock:
            if (vector := self._vectors.get(key)) is not None:
                return vector
        if seconds_left < SAFETY_FACTOR * self.latency.seconds:
            self.latency.decay()
            return None
        begun = time.perf_counter()
        vector = np.asarray(self._embed(query), np.float32)
        self.latency.record(time.perf_counter() - begun)
        with self._lock:
            self._vectors[key] = vector
        return vector
