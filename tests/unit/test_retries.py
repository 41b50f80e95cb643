"""What is tried again, for how long, and what becomes of it in the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.brokers.stub import StubBroker
from dramatiq.common import current_millis
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import TimeLimit
from dramatiq.middleware.threading import Interrupt
from dramatiq.middleware.time_limit import TimeLimitExceeded
from keepsake_client.errors import MessageTooLarge, Unavailable
from structlog.testing import capture_logs

from services.runtime.errors import Expired, ProfileConflict
from tasks.middleware import retries
from tasks.middleware.retries import (
    INDEX_RETRY,
    MAX_INTERRUPTIONS,
    NO_RETRY,
    WRITE_RETRY,
    Retries,
    RetryPolicy,
    is_transient,
)
from tests.support import wait_until

SECRET = "my cat is called Tofu"
QUICK = RetryPolicy(for_s=60, first_ms=1, longest_ms=2)


class Bench:
    """A worker whose actor fails in the ways a test lists, and then succeeds."""

    def __init__(self, broker: StubBroker) -> None:
        self.broker = broker
        self.failures: list[BaseException] = []
        self.runs = 0

    def declare(self, **options: Any) -> None:
        """Declare the actor with these options."""

        @dramatiq.actor(broker=self.broker, actor_name="work", **options)
        def work() -> None:
            self.runs += 1
            if self.failures:
                raise self.failures.pop(0)

    def run(self, **options: Any) -> None:
        """Send a message with these options, and wait until nothing is left to do."""
        message: dramatiq.Message[Any] = dramatiq.Message("default", "work", (), {}, options)
        self.broker.enqueue(message)
        self.broker.join("default", timeout=10_000, fail_fast=False)

    @property
    def dead(self) -> int:
        return len(self.broker.dead_letters)


@pytest.fixture
def bench() -> Iterator[Bench]:
    broker = StubBroker(middleware=[TimeLimit(), Retries()])
    worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=1)
    worker.start()
    yield Bench(broker)
    worker.stop()
    broker.close()


HEAL = [Unavailable("away"), redis.ConnectionError(), redis.TimeoutError(), ConnectionClosed("away"), TimeoutError()]
NEVER = [ProfileConflict(1, 2), MessageTooLarge("big"), Expired("late"), TypeError(), ValueError(), ZeroDivisionError()]


@pytest.mark.parametrize("error", HEAL, ids=lambda error: type(error).__name__)
def test_what_can_heal_is_tried_again(bench: Bench, error: Exception) -> None:
    """Given a server that is away for two tries, I expect the work done at the third, and no dead letter."""
    bench.declare(retry=QUICK)
    bench.failures = [error, error]

    bench.run()

    assert (bench.runs, bench.dead) == (3, 0)


@pytest.mark.parametrize("error", NEVER, ids=lambda error: type(error).__name__)
def test_what_cannot_heal_is_a_dead_letter_at_once(bench: Bench, error: Exception) -> None:
    """Given an error that will be there tomorrow too, I expect one try and a dead letter."""
    bench.declare(retry=QUICK)
    bench.failures = [error]

    bench.run()

    assert (bench.runs, bench.dead) == (1, 1)


def test_an_actor_without_a_policy_is_not_retried(bench: Bench) -> None:
    """Given an actor that says nothing about retries, I expect one try."""
    bench.declare()
    bench.failures = [Unavailable("away")]

    bench.run()

    assert (bench.runs, bench.dead) == (1, 1)


def test_a_search_is_not_retried(bench: Bench) -> None:
    """Given the policy of the interactive actors, I expect one try: whoever asked has gone on."""
    bench.declare(retry=NO_RETRY)
    bench.failures = [Unavailable("away")]

    bench.run()

    assert (bench.runs, bench.dead) == (1, 1)


def test_retries_end_when_their_time_is_over(bench: Bench) -> None:
    """Given work that has been failing for longer than its policy grants, I expect no further try."""
    bench.declare(retry=WRITE_RETRY)
    bench.failures = [Unavailable("away")]

    bench.run(failing_since=current_millis() - 60_000, retries=7)

    assert (bench.runs, bench.dead) == (1, 1)


@pytest.mark.parametrize(("policy", "seconds"), [(INDEX_RETRY, 24 * 3_600), (WRITE_RETRY, 40)])
def test_an_outage_is_outlived(policy: RetryPolicy, seconds: int) -> None:
    """Given a server that is away so long, I expect the policy to have a try after that, whatever the jitter."""
    assert policy.for_s - policy.longest_ms / 1000 > seconds


def test_nobody_waits_for_an_error_for_more_than_a_minute() -> None:
    """Given the policy of the writes, I expect its last try early enough that its answer comes within a minute."""
    assert WRITE_RETRY.for_s < 60


def test_pauses_stay_below_the_longest(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the hundredth try of an index message, I expect the next within half a minute."""
    bench.declare(retry=INDEX_RETRY)
    bench.failures = [Unavailable("away")]
    delays: list[int | None] = []
    enqueue = bench.broker.enqueue

    def noting(message: Any, *, delay: int | None = None) -> Any:
        delays.append(delay)
        return enqueue(message, delay=delay and 1)

    monkeypatch.setattr(bench.broker, "enqueue", noting)
    bench.run(retries=99, failing_since=current_millis())

    assert delays[0] is None
    assert delays[1] is not None
    assert 15_000 <= delays[1] <= 30_000


def test_work_that_takes_too_long_is_given_up_on(bench: Bench) -> None:
    """Given work that is interrupted each time for taking too long, I expect three tries, for it may be the host."""
    bench.declare(retry=QUICK)
    bench.failures = [TimeLimitExceeded() for _ in range(10)]

    bench.run()

    assert (bench.runs, bench.dead) == (MAX_INTERRUPTIONS, 1)


def test_a_thread_that_is_told_to_stop_counts_as_interrupted() -> None:
    """Given any of Dramatiq's interruptions, I expect it to be taken for one."""
    assert is_transient(Interrupt(), tries=1)


@pytest.mark.parametrize("error", [redis.ConnectionError("away"), ConnectionClosed("away"), redis.ResponseError("OOM")])
def test_a_retry_that_cannot_be_sent_is_not_lost(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Given a broker that is away when the retry is to be sent, I expect it sent when the broker is back.

    Dramatiq's own Retries would log the error, and the message would be acknowledged.
    """
    monkeypatch.setattr(retries, "ENQUEUE_AGAIN_S", 0.01)
    bench.declare(retry=QUICK)
    bench.failures = [Unavailable("away")]
    away = [error] * 3
    enqueue = bench.broker.enqueue

    def stumbling(message: Any, *, delay: int | None = None) -> Any:
        if delay is not None and away:
            raise away.pop()
        return enqueue(message, delay=delay)

    monkeypatch.setattr(bench.broker, "enqueue", stumbling)
    bench.run()
    wait_until(lambda: bench.runs == 2, description="the second try")

    assert bench.dead == 0


def lines_of(bench: Bench, failures: list[BaseException]) -> list[dict[str, Any]]:
    bench.declare(retry=QUICK)
    bench.failures = failures
    with capture_logs() as lines:
        bench.run()
    return [dict(line) for line in lines]


def test_a_retry_is_one_line_without_a_traceback(bench: Bench) -> None:
    """Given a try that failed and will be repeated, I expect one line that says why, and when the next comes."""
    (line,) = lines_of(bench, [Unavailable("PostgreSQL does not answer")])

    assert (line["event"], line["log_level"], line["reason"]) == (
        "will_be_retried",
        "info",
        "unavailable: PostgreSQL does not answer",
    )
    assert "exc_info" not in line


def test_an_error_that_quotes_somebody_is_told_by_its_kind(bench: Bench) -> None:
    """Given an error whose message holds content, I expect its type in the log and not the content."""
    (line,) = lines_of(bench, [ValueError(SECRET)])

    assert (line["event"], line["reason"]) == ("failed_for_good", "internal: ValueError")


def test_an_interruption_is_told_in_words() -> None:
    """Given work that took too long, I expect words that an asker can do something with."""
    assert retries.in_words(TimeLimitExceeded()) == "unavailable: it took too long"
