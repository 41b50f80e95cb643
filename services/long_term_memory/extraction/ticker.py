"""The ticker of extraction: a thread that leases the owners who are due, and has a task sent for each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import structlog
from keepsake_client.errors import Unavailable

from services.long_term_memory.extraction.outbox import Lease

#: Between two passes: one look at an index where no owner is due.
INTERVAL_S = 5.0

log = structlog.get_logger()


class ExtractionTicker(threading.Thread):
    """Leases what is due and sends it, until it is stopped.

    A lease whose task was not sent, or was lost, runs out, and its owner is due again.

    Args:
        lease_due: takes leases for owners who are due, no more than can be worked on at once.
        send: sends the task of one lease.
        count_failure: called where a pass failed, other than by a server that does not answer.
        interval_s: between two passes.
    """

    def __init__(
        self,
        lease_due: Callable[[], Iterable[Lease]],
        send: Callable[[Lease], None],
        count_failure: Callable[[], None],
        interval_s: float = INTERVAL_S,
    ) -> None:
        super().__init__(name="extraction-ticker", daemon=True)
        self._lease_due = lease_due
        self._send = send
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
                for lease in self._lease_due():
                    self._send(lease)
            except Unavailable:
                continue  # the pool or the broker has logged it
            except Exception:
                # The next pass may do better; what is leased already does not depend on it.
                log.exception("extraction_tick_failed")
                self._count_failure()

    def wake(self) -> None:
        """Begin the next pass at once: there is room for one more lease."""
        self._woken.set()

    def stop(self) -> None:
        """End it; a pass under way is finished."""
        self._stopped = True
        self._woken.set()
