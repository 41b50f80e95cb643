"""Extraction on a stack of a benchmark: the settings for a server that stands in for an LLM, and time that runs faster.

A batch of fewer than 20 messages waits for 600 s of silence, and a provider that fails is left alone for up to ten
minutes. No benchmark can wait for either, so `OutboxClock` moves those times.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

import psycopg

from bench.harness.llm_server import LLMServer
from services.long_term_memory.extraction.operations import Operations
from services.long_term_memory.extraction.report import ExtractionReport, read_report

#: 600 s of silence take 6 s, 1,800 s after the first message take 18 s, and the first pauses after a failure none.
SPEED: Final = 100.0
PASS_EVERY_S: Final = 0.5
RECONNECT_AFTER_S: Final = 0.2
#: A call that hangs is given up after so many seconds: with the default of 60, a run would see few of them.
CALL_S: Final = 5
READ_WITHIN_S: Final = 180.0

# In the order of their numbers, as the stack locks them.
_PASS_TIME: Final = (
    "WITH moved AS (SELECT user_number FROM extraction ORDER BY user_number FOR UPDATE)"
    " UPDATE extraction e SET first_at = first_at - step.by, last_at = last_at - step.by, due_at = due_at - step.by,"
    " not_before = not_before - step.by FROM moved, (SELECT %s * interval '1 s' AS by) AS step"
    " WHERE e.user_number = moved.user_number"
)
_PASS_BACKOFF: Final = "UPDATE extraction_state SET waits_until = waits_until - %s * interval '1 s'"


def llm_settings(server: LLMServer) -> dict[str, str]:
    """Settings, by their environment variables, of a stack whose LLM is this server."""
    return {
        "LTM_LLM_PROVIDER": "openai",
        "LTM_LLM_MODEL": "rules",
        "LTM_LLM_BASE_URL": server.url,
        "LTM_LLM_API_KEY": "none",
        "LTM_LLM_TIMEOUT_S": str(CALL_S),
        # Leases of killed processes hold for a minute, and a pass every 5 s leases no more than there are threads.
        "LTM_EXTRACT_THREADS": "8",
        # What calls that were killed have reserved is never given back.
        "LTM_EXTRACT_TOKENS_PER_DAY": str(10**12),
        "LTM_EXTRACT_TOKENS_PER_USER": str(10**12),
    }


class OutboxClock(threading.Thread):
    """A thread that has time pass `SPEED` times as fast for the outbox, leases apart, and resumes extraction.

    Args:
        well: whether the LLM is well; extraction that was stopped is then resumed.
    """

    def __init__(self, database_url: str, well: Callable[[], bool] = lambda: True) -> None:
        super().__init__(name="outbox-clock", daemon=True)
        self._url = database_url
        self._well = well
        self._stopped = threading.Event()
        self.resumed = 0

    def run(self) -> None:
        last = time.monotonic()
        while not self._stopped.is_set():
            try:
                with psycopg.connect(self._url, connect_timeout=1, autocommit=True) as connection:
                    while not self._stopped.wait(PASS_EVERY_S):
                        now = time.monotonic()
                        connection.execute(_PASS_TIME, ((now - last) * (SPEED - 1),))
                        connection.execute(_PASS_BACKOFF, ((now - last) * (SPEED - 1),))
                        last = now
                        self._resume(connection)
            except psycopg.Error:
                self._stopped.wait(RECONNECT_AFTER_S)

    def _resume(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        if self._well() and read_report(connection).state == "stopped":
            Operations(connection).resume()
            self.resumed += 1

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self.join()


def wait_until_read(database_url: str, within_s: float = READ_WITHIN_S) -> ExtractionReport:
    """The report once nothing waits to be read, or the number of what waits has not fallen for `within_s`; what was set
    aside meanwhile is tried again once, as an operator does."""
    least, fell_at, retried = 1 << 60, time.monotonic(), False
    with psycopg.connect(database_url, autocommit=True) as connection:
        while True:
            report = read_report(connection)
            if report.messages == 0 and report.set_aside and not retried:
                Operations(connection).retry(None)
                retried = True
            elif report.messages == 0 or time.monotonic() - fell_at > within_s:
                return report
            if report.messages < least:
                least, fell_at = report.messages, time.monotonic()
            time.sleep(0.5)
