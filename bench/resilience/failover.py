"""Time without Redis when its master fails: `python -m bench.resilience.failover [--rounds N] [--json PATH]`.

Starts a master, two replicas and three sentinels of deploy/'s configuration, and a stack on them with searches and
messages. In turn the master is killed, frozen (and resumed when another one has been elected), and cut off from the
other servers, but not from its clients. Prints, for each, how long the sentinels took to name another one, and how long
no search was answered and no message was indexed.
"""

from __future__ import annotations

import argparse
import itertools
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from keepsake_client import Client
from keepsake_client.errors import KeepsakeError

from bench.harness.sentinel_servers import SentinelServers, Server, sentinel_servers
from bench.harness.stack import running_stack
from bench.harness.tables import show, write_json
from bench.resilience.recovery import IndexingMonitor, longest_gap

SEARCH_EVERY_S, MESSAGE_EVERY_S = 0.1, 0.2
SEARCH_TIMEOUT_MS = 600
#: Before each fault, and after each recovery.
QUIET_S = 5.0


class Load(threading.Thread):
    """Something that is asked of a client again and again, and the moments when it was done."""

    def __init__(self, ask: Callable[[int], object], interval_s: float) -> None:
        super().__init__(daemon=True)
        self._ask = ask
        self._interval_s = interval_s
        self._stopped = threading.Event()
        self.done_at: list[float] = []

    def run(self) -> None:
        for number in itertools.count():
            if self._stopped.wait(self._interval_s):
                return
            with suppress(KeepsakeError):
                self._ask(number)
                self.done_at.append(time.monotonic())

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self.join()


def fail(redises: SentinelServers, fault: str, searches: Load, indexing: IndexingMonitor) -> dict[str, float]:
    """One fault of the master: the times without it, in seconds."""
    time.sleep(QUIET_S)
    old = redises.master()
    begun = time.monotonic()
    {"killed": Server.kill, "frozen": Server.freeze, "cut off": Server.cut_off}[fault](old)
    redises.failed_over(old)
    elected = time.monotonic()
    while not (searches.done_at[-1] > elected and indexing.indexed_at[-1] > elected):
        time.sleep(0.05)
    {"killed": Server.restart, "frozen": Server.resume, "cut off": Server.rejoin}[fault](old)
    while redises.replicas_of(redises.master()) < len(redises.servers) - 1:
        time.sleep(0.1)
    time.sleep(QUIET_S)
    end = time.monotonic()
    return {
        "another master after": elected - begun,
        "no search for": longest_gap(searches.done_at, begun, end),
        "nothing indexed for": longest_gap(indexing.indexed_at, begun, end),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--down-after-ms", type=int, default=5_000, help="down-after-milliseconds of the sentinels")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    figures = {}
    with (
        sentinel_servers(given.down_after_ms) as redises,
        running_stack(durable=True, REDIS_URL=redises.url) as stack,
        Client(redises.url) as client,
    ):
        searches = Load(
            lambda n: client.request("search", "u1", {"query": f"tea {n}"}, deadline_ms=SEARCH_TIMEOUT_MS),
            SEARCH_EVERY_S,
        )
        messages = Load(lambda n: client.remember("u1", f"I like tea number {n}"), MESSAGE_EVERY_S)
        indexing = IndexingMonitor(stack.database_url)
        running: list[Load | IndexingMonitor] = [searches, messages, indexing]
        for thread in running:
            thread.start()
        for number in range(1, given.rounds + 1):
            for fault in ("killed", "frozen", "cut off"):
                figures[f"{fault}, {number}"] = fail(redises, fault, searches, indexing)
        for thread in running:
            thread.stop()
    show(f"Seconds, with down-after-milliseconds {given.down_after_ms}", figures, 1)
    write_json(given.json, figures)


if __name__ == "__main__":
    main()
