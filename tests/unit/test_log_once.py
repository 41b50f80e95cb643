"""What the log leaves out because another line says it: each rule on Dramatiq's own wording, from a real worker."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from typing import Any

import dramatiq
import dramatiq.worker
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import ConnectionClosed
from keepsake_client.errors import Unavailable

from tasks.log_filter import DramatiqLogFilter
from tasks.middleware.retries import Retries, RetryPolicy
from tests.support import wait_until


class Lines(logging.Handler):
    """Keeps the records that pass its filters."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def about(self, words: str) -> list[logging.LogRecord]:
        return [record for record in self.records if words in record.getMessage()]


@pytest.fixture
def logged() -> Iterator[tuple[Lines, Lines]]:
    """All that is logged, and what the filter leaves of it."""
    everything, filtered = Lines(), Lines()
    filtered.addFilter(DramatiqLogFilter())
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    for handler in (everything, filtered):
        root.addHandler(handler)
    yield everything, filtered
    for handler in (everything, filtered):
        root.removeHandler(handler)
    root.setLevel(level)


def run(*failures: BaseException) -> None:
    """Run one message whose first attempts fail in these ways."""
    broker, left = StubBroker(middleware=[Retries()]), list(failures)

    @dramatiq.actor(
        broker=broker, actor_name="work", retry=RetryPolicy(max_age_s=60, min_backoff_ms=1, max_backoff_ms=2)
    )
    def work() -> None:
        if left:
            raise left.pop(0)

    worker = dramatiq.Worker(broker, worker_timeout=10, worker_threads=1)
    worker.start()
    work.send()
    broker.join("default", timeout=60_000, fail_fast=False)
    worker.stop()
    broker.close()


def test_an_outage_logs_no_traceback(logged: tuple[Lines, Lines]) -> None:
    """Given an attempt that is retried, I expect Dramatiq's traceback left out: `Retries` has a line for it."""
    everything, filtered = logged

    run(Unavailable("down"))

    assert everything.about("unhandled exception")
    assert not filtered.about("unhandled exception")


def test_a_crash_keeps_its_traceback(logged: tuple[Lines, Lines]) -> None:
    """Given an unexpected error, I expect its traceback."""
    _, filtered = logged

    run(ZeroDivisionError())

    assert [record.exc_info for record in filtered.about("unhandled exception") if record.exc_info]


def test_an_outage_of_the_broker_is_not_logged_at_every_attempt(
    logged: tuple[Lines, Lines], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a broker that is down for some attempts, I expect none of Dramatiq's lines about each of them."""
    monkeypatch.setattr(dramatiq.worker, "CONSUMER_RESTART_DELAY_SECS", 0.01)
    everything, filtered = logged
    broker = StubBroker(middleware=[])
    broker.declare_queue("default")
    attempts: list[None] = []

    def consume(*_: Any, **__: Any) -> Any:
        attempts.append(None)
        raise ConnectionClosed(ConnectionError("down"))

    monkeypatch.setattr(broker, "consume", consume)
    worker = dramatiq.Worker(broker, worker_timeout=10, worker_threads=1)
    worker.start()
    wait_until(lambda: len(attempts) > 4, description="several attempts")
    worker.stop()

    assert everything.about("connection error")
    assert everything.about("Restarting consumer")
    assert not filtered.about("connection error")
    assert not filtered.about("Restarting consumer")


def test_an_acknowledgement_that_is_tried_again_is_logged_in_the_known_wording() -> None:
    """Given Dramatiq's source, I expect the wording by which its line about each such attempt is left out."""
    source = inspect.getsource(dramatiq.worker.ConsumerThread.post_process_message)

    assert '"Failed to post_process_message(%s) due to a connection error' in source


@pytest.mark.parametrize("name", ["CONSUMER_RESTART_DELAY_SECS", "POST_PROCESS_MESSAGE_RETRY_DELAY_SECS"])
def test_the_pauses_are_looked_up_at_each_use(name: str) -> None:
    """Given Dramatiq's source, I expect the pauses that the worker sets to be looked up at each use."""
    assert f"time.sleep({name})" in inspect.getsource(dramatiq.worker.ConsumerThread)
