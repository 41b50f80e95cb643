"""The ticker of extraction sends a task for each lease, and outlives what fails."""

from __future__ import annotations

from keepsake_client.errors import Unavailable
from structlog.testing import capture_logs

from services.long_term_memory.extraction.outbox import Lease
from services.long_term_memory.extraction.ticker import ExtractionTicker
from tests.support import wait_until

LEASES = [Lease(1, "a"), Lease(2, "b")]


class Ticking:
    """A ticker, with what it sent and how many passes failed.

    Args:
        passes: what each pass finds due, or fails with; nothing after them.
        refuses: what sending the first task fails with.
    """

    def __init__(
        self, passes: list[list[Lease] | Exception], refuses: Exception | None = None, interval_s: float = 0.01
    ) -> None:
        self._passes = passes
        self._refuses = refuses
        self.sent: list[Lease] = []
        self.failed = 0
        self.ticker = ExtractionTicker(self._due, self._send, self._count, interval_s)

    def _due(self) -> list[Lease]:
        found = self._passes.pop(0) if self._passes else []
        if isinstance(found, Exception):
            raise found
        return found

    def _send(self, lease: Lease) -> None:
        refused, self._refuses = self._refuses, None
        if refused:
            raise refused
        self.sent.append(lease)

    def _count(self) -> None:
        self.failed += 1

    def run(self) -> None:
        """Run until all passes are done, and stop."""
        self.ticker.start()
        try:
            wait_until(lambda: not self._passes, description="the passes")
        finally:
            self.ticker.stop()
            self.ticker.join(60)
        assert not self.ticker.is_alive()


def test_each_lease_is_sent_once() -> None:
    """Given two owners who are due, then none, then one, I expect a task for each, in order."""
    ticker = Ticking([LEASES, [], [Lease(3, "c")]])

    ticker.run()

    assert (ticker.sent, ticker.failed) == ([*LEASES, Lease(3, "c")], 0)


def test_a_batch_that_is_done_makes_room_for_the_next() -> None:
    """Given a ticker that is woken long before its interval is over, I expect a pass at once."""
    ticker = Ticking([LEASES], interval_s=3_600)
    ticker.ticker.wake()

    ticker.run()

    assert ticker.sent == LEASES


def test_it_is_woken_for_one_pass() -> None:
    """Given a ticker that is woken once and then again, I expect two passes, and none in between."""
    passes: list[int] = []

    def due() -> list[Lease]:
        passes.append(1)
        return []

    ticker = ExtractionTicker(due, lambda _: None, lambda: None, interval_s=3_600)
    ticker.start()
    try:
        for count in (1, 2):
            ticker.wake()
            wait_until(lambda: len(passes) >= count, description="a pass")  # noqa: B023 - called at once
    finally:
        ticker.stop()
        ticker.join(60)

    assert len(passes) == 2


def test_a_database_that_is_down_is_asked_again() -> None:
    """Given a database that does not answer, I expect the next pass, and neither a line nor a count."""
    ticker = Ticking([Unavailable("PostgreSQL does not answer"), LEASES])

    with capture_logs() as lines:
        ticker.run()

    assert (ticker.sent, ticker.failed, lines) == (LEASES, 0, [])


def test_a_fault_is_logged_and_counted() -> None:
    """Given a pass that fails otherwise, I expect its traceback, a count, and the next pass."""
    ticker = Ticking([ValueError("no"), LEASES])

    with capture_logs() as lines:
        ticker.run()

    assert (ticker.sent, ticker.failed) == (LEASES, 1)
    assert lines == [{"event": "extraction_tick_failed", "log_level": "error", "exc_info": True}]


def test_what_a_broker_does_not_take_ends_the_pass() -> None:
    """Given a broker that is down, I expect the rest of the pass left to its leases' end, and the next pass sent."""
    ticker = Ticking([LEASES, [Lease(3, "c")]], refuses=Unavailable("the broker does not answer"))

    ticker.run()

    assert (ticker.sent, ticker.failed) == ([Lease(3, "c")], 0)
