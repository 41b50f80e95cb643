"""The ticker of extraction: a thread that leases the owners who are due, and has a task sent for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from services.long_term_memory.extraction.outbox import Lease
from services.runtime.periodic import PeriodicThread

#: Between two passes: one look at an index where no owner is due.
INTERVAL_S = 5.0


class ExtractionTicker(PeriodicThread):
    """Leases what is due and sends it, until it is stopped; woken where there is room for one more lease.

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
        super().__init__("extraction-ticker", self._send_due, "extraction_tick_failed", count_failure, interval_s)
        self._lease_due = lease_due
        self._send = send

    def _send_due(self) -> None:
        for lease in self._lease_due():
            self._send(lease)
