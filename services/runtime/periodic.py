"""PeriodicThread: a thread that makes one pass after another, at an interval, and outlives those that fail."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog
from keepsake_client.errors import Unavailable

log = structlog.get_logger()


class PeriodicThread(threading.Thread):
    """A daemon thread that makes a pass at an interval, until it is stopped.

    Args:
        name: of the thread.
        run_once: makes a pass.
        failure: the log event of a pass that failed, other than by a server that does not answer.
        count_failure: called for such a pass.
        interval_s: before the first pass, and between two.
    """

    def __init__(
        self,
        name: str,
        run_once: Callable[[], object],
        failure: str,
        count_failure: Callable[[], None],
        interval_s: float,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._run_once = run_once
        self._failure = failure
        self._count_failure = count_failure
        self._interval_s = interval_s
        self._stopped = False
        self._woken = threading.Event()

    def run(self) -> None:
        while True:
            self._woken.wait(self._interval_s)
            self._woken.clear()
            if self._stopped:
                return
            try:
                self._run_once()
            except Unavailable:
                continue  # what is down has logged it
            except Exception:
                # The next pass may do better; the rest of the process does not depend on it.
                log.exception(self._failure)
                self._count_failure()

    def wake(self) -> None:
        """Begin the next pass at once."""
        self._woken.set()

    def stop(self) -> None:
        """End it; a pass under way is finished."""
        self._stopped = True
        self._woken.set()
