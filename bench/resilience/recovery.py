"""Time to recover: how long after each fault nothing succeeded."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise

import psycopg

from bench.harness.responses import Response
from bench.resilience.fault_injection import InjectedFault

#: The effects of a fault are looked for until the next one, and at most so long after its end.
MAX_RECOVERY_S = 30.0
POLL_EVERY_S = 0.2
RECONNECT_AFTER_S = 0.05


class IndexingMonitor(threading.Thread):
    """A thread that records when new memories appear in the database, on the monotonic clock."""

    def __init__(self, database_url: str) -> None:
        super().__init__(name="indexing", daemon=True)
        self._url = database_url
        self._stopped = threading.Event()
        self.indexed_at: list[float] = []

    def run(self) -> None:
        last = 0
        while not self._stopped.is_set():
            try:
                with psycopg.connect(self._url, connect_timeout=1, autocommit=True) as connection:
                    while not self._stopped.wait(POLL_EVERY_S):
                        row = connection.execute("SELECT coalesce(max(number), 0) FROM memories").fetchone()
                        if row and row[0] > last:
                            last = row[0]
                            self.indexed_at.append(time.monotonic())
            except psycopg.Error:
                self._stopped.wait(RECONNECT_AFTER_S)

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self.join()


def longest_gap(moments: Sequence[float], begin: float, end: float) -> float:
    """The longest time from `begin` on without any of the moments.

    A gap that lasts beyond `end` counts in full if it began in the first half; a later one is due to what happened at
    `end`.
    """
    edges = [begin, *sorted(moment for moment in moments if moment > begin)]
    middle = (begin + end) / 2
    gaps = (later - earlier for earlier, later in pairwise(edges) if earlier < middle or later <= end)
    return max(gaps, default=0.0)


def recovery(
    injected: Sequence[InjectedFault], responses: Mapping[str, Sequence[Response]], indexed_at: Sequence[float]
) -> dict[str, dict[str, float]]:
    """By fault: how long it lasted, and the longest time without a success between its end and the next fault, in s.

    Args:
        responses: by request_id, received on the monotonic clock, as is `indexed_at`.
    """
    succeeded = {
        kind: [a.received_at for mark, found in responses.items() if f":{kind}:" in mark for a in found if not a.error]
        for kind in ("search", "add", "update")
    }
    rows = {}
    for number, one in enumerate(injected):
        last = one.ended + MAX_RECOVERY_S
        end = min(injected[number + 1].began, last) if number + 1 < len(injected) else last
        rows[f"{number + 1:2d}. {one.fault}"] = {
            "lasted": one.ended - one.began,
            "searches": longest_gap(succeeded["search"], one.ended, end),
            "writes": longest_gap(succeeded["add"] + succeeded["update"], one.ended, end),
            "indexing": longest_gap(indexed_at, one.ended, end),
        }
    return rows
