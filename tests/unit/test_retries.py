"""What is retried, for how long, and what becomes of it in the end."""

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
from tasks.middleware.retries import (
    INDEX_RETRY,
    MAX_INTERRUPTIONS,
    NO_RETRY,
    OUTBOX_RETRY,
    WRITE_RETRY,
    Retries,
    RetryPolicy,
    error_text,
    is_transient,
)
from tests.support import wait_until

SECRET = "my cat is called Tofu"
QUICK = RetryPolicy(max_age_s=60, min_backoff_ms=1, max_backoff_ms=2)


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
        self.broker.join("default", timeout=60_000, fail_fast=False)

    @property
    def dead(self) -> int:
        return len(self.broker.dead_letters)


@pytest.fixture
def bench() -> Iterator[Bench]:
    broker = StubBroker(middleware=[TimeLimit(), Retries()])
    worker = dramatiq.Worker(broker, worker_timeout=10, worker_threads=1)
    worker.start()
    yield Bench(broker)
    worker.stop()
    broker.close()


TRANSIENT = [
    Unavailable("down"),
    redis.ConnectionError(),
    redis.TimeoutError(),
    ConnectionClosed("down"),
    TimeoutError(),
]
PERMANENT = [
    ProfileConflict(1, 2),
    MessageTooLarge("big"),
    Expired("late"),
    TypeError(),
    ValueError(),
    ZeroDivisionError(),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=lambda error: type(error).__name__)
def test_a_transient_error_is_retried(bench: Bench, error: Exception) -> None:
    """Given a server that is down for two attempts, I expect the third to succeed, and no dead letter."""
    bench.declare(retry=QUICK)
    bench.failures = [error, error]

    bench.run()

    assert (bench.runs, bench.dead) == (3, 0)


@pytest.mark.parametrize("error", PERMANENT, ids=lambda error: type(error).__name__)
def test_a_permanent_error_is_a_dead_letter_at_once(bench: Bench, error: Exception) -> None:
    """Given an error that no retry changes, I expect one attempt and a dead letter."""
    bench.declare(retry=QUICK)
    bench.failures = [error]

    bench.run()

    assert (bench.runs, bench.dead) == (1, 1)


def test_an_actor_without_a_policy_is_not_retried(bench: Bench) -> None:
    """Given an actor without the option, I expect one attempt."""
    bench.declare()
    bench.failures = [Unavailable("down")]

    bench.run()

    assert (bench.runs, bench.dead) == (1, 1)


def test_a_search_is_not_retried(bench: Bench) -> None:
    """Given the policy of the interactive actors, I expect one attempt: the asker has stopped waiting."""
    bench.declare(retry=NO_RETRY)
    bench.failures = [Unavailable("down")]

    bench.run()

    assert (bench.runs, bench.dead) == (1, 1)


@pytest.mark.parametrize("error", [Unavailable("down"), *PERMANENT], ids=lambda error: type(error).__name__)
def test_what_an_outbox_sends_anew_is_neither_retried_nor_a_dead_letter(bench: Bench, error: Exception) -> None:
    """Given the policy of extraction, I expect one attempt, and nothing kept of it but its line."""
    bench.declare(retry=OUTBOX_RETRY)
    bench.failures = [error]

    with capture_logs() as lines:
        bench.run()

    assert (bench.runs, bench.dead) == (1, 0)
    assert [line["event"] for line in lines] == ["actor_failed"]


def test_retries_end_at_the_policys_age(bench: Bench) -> None:
    """Given work that has been failing for longer than its policy allows, I expect no further attempt."""
    bench.declare(retry=WRITE_RETRY)
    bench.failures = [Unavailable("down")]

    bench.run(failing_since=current_millis() - 60_000, retries=7)

    assert (bench.runs, bench.dead) == (1, 1)


@pytest.mark.parametrize(("failing_for_ms", "dead"), [(990, 0), (991, 1)])
def test_no_retry_comes_later_than_the_policys_age(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, failing_for_ms: int, dead: int
) -> None:
    """Given a policy of a second and the next attempt in 10 ms, I expect it at the end of the second and not after."""
    now = current_millis()
    monkeypatch.setattr("tasks.middleware.retries.current_millis", lambda: now)
    monkeypatch.setattr("tasks.middleware.retries.compute_backoff", lambda tries, **_: (tries, 10))
    bench.declare(retry=RetryPolicy(max_age_s=1, min_backoff_ms=10, max_backoff_ms=10))
    bench.failures = [Unavailable("down")]

    bench.run(failing_since=now - failing_for_ms)

    assert bench.dead == dead


def test_retries_go_on_until_then(bench: Bench) -> None:
    """Given work that has been failing for 50 s of the 60 that its policy allows, I expect a further attempt."""
    bench.declare(retry=QUICK)
    bench.failures = [Unavailable("down")]

    bench.run(failing_since=current_millis() - 50_000, retries=7)

    assert (bench.runs, bench.dead) == (2, 0)


@pytest.mark.parametrize(("policy", "seconds"), [(INDEX_RETRY, 24 * 3_600), (WRITE_RETRY, 40)])
def test_an_outage_is_outlived(policy: RetryPolicy, seconds: int) -> None:
    """Given a server that is down so long, I expect the policy to allow an attempt after that, with any jitter."""
    assert policy.max_age_s - policy.max_backoff_ms / 1000 > seconds


def test_an_asker_waits_for_an_error_for_a_minute_at_most() -> None:
    """Given the policy of the writes, I expect its last attempt early enough for an answer within a minute."""
    assert WRITE_RETRY.max_age_s < 60


def test_the_delay_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the hundredth attempt of an index message, I expect the next within half a minute."""
    bench.declare(retry=INDEX_RETRY)
    bench.failures = [Unavailable("down")]
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


def test_work_that_takes_too_long_fails(bench: Bench) -> None:
    """Given work that is interrupted each time for taking too long, I expect three attempts: the host may be busy."""
    bench.declare(retry=QUICK)
    bench.failures = [TimeLimitExceeded() for _ in range(10)]

    bench.run()

    assert (bench.runs, bench.dead) == (MAX_INTERRUPTIONS, 1)


def test_any_interruption_is_transient() -> None:
    """Given the base class of Dramatiq's interruptions, I expect it to count as one."""
    assert is_transient(Interrupt(), tries=1)


@pytest.mark.parametrize("error", [redis.ConnectionError("down"), ConnectionClosed("down"), redis.ResponseError("OOM")])
def test_a_retry_that_cannot_be_enqueued_is_not_lost(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Given a broker that is down when the retry is to be enqueued, I expect it enqueued when the broker is up.

    Dramatiq's own Retries would log the error, and the message would be acknowledged. The waits are those after one
    failure, then after two.
    """
    waited: list[int] = []

    def wait_s(failures: int) -> float:
        waited.append(failures)
        return 0.0

    monkeypatch.setattr("tasks.middleware.retries.wait_s", wait_s)
    bench.declare(retry=QUICK)
    bench.failures = [Unavailable("down")]
    down = [error] * 2
    enqueue = bench.broker.enqueue

    def stumbling(message: Any, *, delay: int | None = None) -> Any:
        if delay is not None and down:
            raise down.pop()
        return enqueue(message, delay=delay)

    monkeypatch.setattr(bench.broker, "enqueue", stumbling)
    bench.run()
    wait_until(lambda: bench.runs == 2, description="the second attempt")

    assert (bench.dead, down, waited) == (0, [], [1, 2])


def lines_of(bench: Bench, failures: list[BaseException]) -> list[dict[str, Any]]:
    bench.declare(retry=QUICK)
    bench.failures = failures
    with capture_logs() as lines:
        bench.run()
    return [dict(line) for line in lines]


def test_a_retry_is_one_line_without_a_traceback(bench: Bench) -> None:
    """Given an attempt that failed and is retried, I expect one line that says why, and when the next comes."""
    (line,) = lines_of(bench, [Unavailable("PostgreSQL does not answer")])

    assert len(line.pop("message_id")) == 36
    assert line.pop("in_ms") in (1, 2)
    assert line == {
        "event": "retry_scheduled",
        "log_level": "info",
        "actor": "work",
        "tries": 1,
        "reason": "unavailable: PostgreSQL does not answer",
    }


def test_an_error_that_quotes_content_is_logged_by_its_type(bench: Bench) -> None:
    """Given an error whose message holds content, I expect its type in the log and not the content."""
    (line,) = lines_of(bench, [ValueError(SECRET)])

    assert len(line.pop("message_id")) == 36
    assert line == {
        "event": "actor_failed",
        "log_level": "error",
        "actor": "work",
        "tries": 1,
        "reason": "internal: ValueError",
    }


def test_an_interruption_has_a_text_of_its_own() -> None:
    """Given work that took too long, I expect a text that says so, and not the name of a class."""
    assert error_text(TimeLimitExceeded()) == "unavailable: it took too long"
