"""A work loop that outlives its messages and its servers."""

from __future__ import annotations

import threading
from collections.abc import Callable

import dramatiq
import redis
import structlog

from services.runtime.heartbeat import Liveness
from services.runtime.logging import redact

MAX_PAUSE_S = 5.0

log = structlog.get_logger()


class Loop(threading.Thread):
    """Calls `turn` until it is stopped.

    A server that is lost, or refuses all writes, is logged once when it goes and once when it is back; between tries
    it waits 0.1 s, doubling to 5 s. It waits the same between turns that fail for other reasons one after another,
    after the first of them.

    Args:
        turn: serves what has arrived, waiting up to a second for it.
        connect: called before the first turn, and again after a lost connection.
    """

    def __init__(self, name: str, turn: Callable[[], None], connect: Callable[[], None] = lambda: None) -> None:
        super().__init__(name=name, daemon=True)
        self._turn = turn
        self._connect = connect
        self._stopped = threading.Event()
        self.pulse = Liveness()
        self.failures = 0

    def run(self) -> None:
        connected, lost, failed, pause = False, False, False, 0.0
        while not self._stopped.wait(pause):
            try:
                if not connected:
                    self._connect()
                self._turn()
                if lost:
                    log.info("dependency_up", loop=self.name)
                connected, lost, failed, pause = True, False, False, 0.0
            except Exception as error:
                if _of_the_server(error):
                    if not lost:
                        log.warning("dependency_down", loop=self.name, reason=redact(error))
                    connected, lost, pause = False, True, _longer(pause)
                else:
                    # One message must not end the loop that serves all the others, nor hold it up; a turn that fails
                    # every time must not fill a core and the log.
                    self.failures += 1
                    log.exception("turn_failed", loop=self.name, failures=self.failures)
                    failed, pause = True, _longer(pause) if failed else pause
            self.pulse.mark()

    def stop(self) -> None:
        """End after the turn in hand."""
        self._stopped.set()


def _of_the_server(error: Exception) -> bool:
    """Whether any message would have failed: the server is away, full, or cannot write to its disk."""
    if isinstance(error, redis.ResponseError):
        full = isinstance(error, redis.exceptions.OutOfMemoryError | redis.exceptions.ReadOnlyError)
        return full or str(error).startswith("MISCONF")
    return isinstance(error, redis.ConnectionError | redis.TimeoutError | dramatiq.BrokerConnectionError)


def _longer(pause: float) -> float:
    return min(max(0.1, pause * 2), MAX_PAUSE_S)
