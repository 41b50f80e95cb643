"""A work loop that outlives its messages and its servers."""

from __future__ import annotations

import threading
from collections.abc import Callable

import dramatiq
import redis
import structlog
from keepsake_client.refusals import refuses_writes

from services.runtime.availability import Availability
from services.runtime.backoff import wait_s
from services.runtime.heartbeat import Liveness
from services.runtime.logging import redact
from services.runtime.metrics import NO_METRICS, Metrics

#: The longest wait of one iteration for a message. Its end shows that a loop is idle and not stuck.
POLL_TIMEOUT_S = 1.0

log = structlog.get_logger()


class Loop(threading.Thread):
    """Calls `run_once` until it is stopped.

    A server that is down is logged once when it goes down and once when it is up again; one that refuses all writes, by
    `writes`, which the loops of a process share. The wait between attempts is 0.1 s, doubling to 5 s. Iterations that
    fail for another reason, one after another, wait the same, but for the first of them: one bad message must not delay
    the others.

    Args:
        run_once: one iteration: serves what has arrived, waiting up to a second for it.
        connect: called before the first iteration, and again after an outage.
        writes: logs that Redis refuses writes; the loop's own where it is None.
        metrics: of this process.
    """

    def __init__(
        self,
        name: str,
        run_once: Callable[[], None],
        connect: Callable[[], None] = lambda: None,
        writes: Availability | None = None,
        metrics: Metrics = NO_METRICS,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._run_once = run_once
        self._connect = connect
        self._metrics = metrics
        self._writes = writes or Availability("redis", at="writes", loop=name)
        self._refused = False
        self._stopped = threading.Event()
        self._connected = False
        self._down: str | None = None
        self._failed_in_a_row = 0
        self.liveness = Liveness()
        self.failures = 0

    def run(self) -> None:
        wait = 0.0
        while not self._stopped.wait(wait):
            wait = self._iterate()
            self.liveness.mark()

    def stop(self) -> None:
        """End after the current iteration."""
        self._stopped.set()

    def _iterate(self) -> float:
        """Connect if need be, and run one iteration; return the wait before the next one, in seconds."""
        try:
            if not self._connected:
                self._connect()
            self._run_once()
        except Exception as error:
            self._failed_in_a_row += 1
            if refuses_writes(error):
                self._writes.down(redact(error))
                self._connected, self._refused = False, True
                return wait_s(self._failed_in_a_row)
            if _is_outage(error):
                return self._report_down(error)
            # Not raised: one message must not end the loop that serves all the others.
            self.failures += 1
            log.exception("iteration_failed", loop=self.name, failures=self.failures)
            return wait_s(self._failed_in_a_row - 1) if self._failed_in_a_row > 1 else 0.0
        if self._down:
            log.info("dependency_up", dependency=self._down, loop=self.name)
        if self._refused:
            self._writes.up()
        self._connected, self._refused, self._down, self._failed_in_a_row = True, False, None, 0
        return 0.0

    def _report_down(self, error: Exception) -> float:
        if not self._down:
            self._down = "broker" if isinstance(error, dramatiq.BrokerConnectionError) else "redis"
            self._metrics.outage(self._down)
            log.warning("dependency_down", dependency=self._down, loop=self.name, reason=redact(error))
        self._connected = False
        return wait_s(self._failed_in_a_row)


def _is_outage(error: Exception) -> bool:
    """Whether any message would have failed: the server is down."""
    return isinstance(error, redis.ConnectionError | redis.TimeoutError | dramatiq.BrokerConnectionError)
