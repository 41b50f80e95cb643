"""Repeats of responses, for askers that subscribe to the channel after they have pushed their request."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Sequence
from itertools import count

import redis
import structlog
from keepsake_client.protocol import COUNTERS

from services.runtime.counters import PendingCounts
from services.runtime.logging import redact
from services.runtime.metrics import NO_METRICS, Metrics

#: What waits to be published again; more is not repeated.
MAX_WAITING = 10_000
MAX_WAITING_BYTES = 16_000_000
CLOSE_TIMEOUT_S = 5.0

log = structlog.get_logger()


class ResponseRepeats:
    """Publishes each response again after some delays, in a thread that starts with the first of them.

    Args:
        client: connects to the pipeline's Redis.
        channel: where askers listen.
        delays_s: after the response was published first; without any, nothing is repeated.
        max_waiting: how many repeats wait at most.
        metrics: of this process.
    """

    def __init__(
        self,
        client: redis.Redis,
        channel: str,
        delays_s: Sequence[float] = (),
        max_waiting: int = MAX_WAITING,
        metrics: Metrics = NO_METRICS,
    ) -> None:
        self._client = client
        self._channel = channel
        self._delays_s = delays_s
        self._max_waiting = max_waiting
        self._metrics = metrics
        self._changed = threading.Condition()
        self._waiting: list[tuple[float, int, str]] = []
        self._waiting_bytes = 0
        self._numbers = count()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._counts = PendingCounts(COUNTERS)

    def add(self, wire: str) -> None:
        """Repeat a response that has just been published."""
        if not self._delays_s:
            return
        with self._changed:
            if self._closed or len(self._waiting) >= self._max_waiting or self._waiting_bytes >= MAX_WAITING_BYTES:
                self._counts.count("responses_not_repeated")
                return
            now = time.monotonic()
            for delay_s in self._delays_s:
                heapq.heappush(self._waiting, (now + delay_s, next(self._numbers), wire))
                self._waiting_bytes += len(wire)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="response-repeats", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """Publish what still waits, each when it is due, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(max(self._delays_s) + CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        while (wire := self._next()) is not None:
            try:
                self._client.publish(self._channel, wire)
            except redis.RedisError as error:
                log.debug("response_not_repeated", reason=redact(error))
                self._counts.count("responses_not_repeated")
            else:
                self._metrics.repeated()
                self._counts.flush(self._client)

    def _next(self) -> str | None:
        """Wait for the next repeat that is due; None once it is closed and nothing waits."""
        with self._changed:
            while True:
                wait_s = self._waiting[0][0] - time.monotonic() if self._waiting else None
                if wait_s is not None and wait_s <= 0:
                    _, _, wire = heapq.heappop(self._waiting)
                    self._waiting_bytes -= len(wire)
                    return wire
                if wait_s is None and self._closed:
                    return None
                self._changed.wait(wait_s)
