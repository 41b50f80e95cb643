"""The adapters' loop, one iteration at a time: its waits are recorded and not waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator

import dramatiq
import pytest
import redis
from structlog.testing import capture_logs

from adapters.loop import Loop
from services.runtime.backoff import wait_s
from services.runtime.logging import redact
from tests.support import wait_until

MAX_WAIT_S = 5.0


class Waits(threading.Event):
    """Takes the place of the loop's event: notes each wait, and stops the loop when the script is over."""

    def __init__(self, iterations: int) -> None:
        super().__init__()
        self._iterations = iterations
        self.noted: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.noted.append(timeout or 0.0)
        return len(self.noted) > self._iterations


class Script:
    """Iterations that end as a list says: with an exception, or well."""

    def __init__(self, outcomes: Iterable[Exception | None]) -> None:
        self._outcomes = list(outcomes)
        self._next: Iterator[Exception | None] = iter(self._outcomes)
        self.events: list[str] = []

    def run_once(self) -> None:
        self.events.append("run_once")
        if outcome := next(self._next):
            raise outcome

    def connect(self) -> None:
        self.events.append("connect")

    def play(self, connect: Callable[[], None] | None = None) -> tuple[Loop, list[float]]:
        """Run the loop for as many iterations as there are outcomes; the loop, and the wait before each of them."""
        loop = Loop("test", self.run_once, connect or self.connect)
        loop._stopped = waits = Waits(len(self._outcomes))
        loop.run()
        return loop, waits.noted[:-1]


DOWN = [redis.ConnectionError("gone"), redis.TimeoutError("slow"), dramatiq.BrokerConnectionError("gone")]
names_of_down = [type(error).__name__ for error in DOWN]


def logged(event: str, outcomes: Iterable[Exception | None]) -> int:
    with capture_logs() as lines:
        Script(outcomes).play()
    return sum(line["event"] == event for line in lines)


def test_it_connects_before_its_first_iteration_alone() -> None:
    """Given iterations that go well, I expect one connect, before them."""
    script = Script([None, None])

    script.play()

    assert script.events == ["connect", "run_once", "run_once"]


def test_it_outlives_an_exception() -> None:
    """Given an iteration that fails, I expect the next one to run."""
    script = Script([ValueError("bug"), None])

    script.play()

    assert script.events.count("run_once") == 2


def test_a_loop_that_is_stuck_does_not_keep_its_process() -> None:
    """Given a loop, I expect a thread that ends with its process."""
    assert Loop("test", lambda: None).daemon


def test_it_counts_failures() -> None:
    """Given two iterations that fail, I expect both counted, and a traceback of each in the log."""
    with capture_logs() as lines:
        loop, _ = Script([ValueError("bug"), None, KeyError("bug")]).play()

    assert loop.failures == 2
    assert [(line["event"], line["failures"], line["loop"]) for line in lines] == [
        ("iteration_failed", 1, "test"),
        ("iteration_failed", 2, "test"),
    ]


def test_one_failure_delays_nothing() -> None:
    """Given single iterations that fail among others, I expect no wait: a bad message must not delay the others."""
    _, waits = Script([None, ValueError("bug"), None, ValueError("bug"), None, None]).play()

    assert waits == [0] * 6


def test_failures_without_end_do_not_spin() -> None:
    """Given iterations that fail every time, as on a key of another type, I expect growing waits between them."""
    _, waits = Script([ValueError("bug")] * 10).play()

    assert waits[:5] == pytest.approx([0, 0, 0.1, 0.2, 0.4])
    assert max(waits) == MAX_WAIT_S


def test_a_connect_that_fails_is_tried_again() -> None:
    """Given a connect that raises at first, I expect it to be called again before an iteration."""
    script = Script([None, None])
    calls: list[str] = []

    def connect() -> None:
        calls.append("connect")
        if len(calls) == 1:
            raise ValueError("bug")

    script.play(connect)

    assert calls == ["connect", "connect"]


@pytest.mark.parametrize("error", DOWN, ids=names_of_down)
def test_it_connects_again_after_an_outage(error: Exception) -> None:
    """Given an iteration that finds the server down after a good one, I expect connect before the next, once."""
    script = Script([None, error, None, None])

    script.play()

    assert script.events == ["connect", "run_once", "run_once", "connect", "run_once", "run_once"]


def test_it_stays_connected_after_another_failure() -> None:
    """Given an iteration that fails on its message, I expect no second connect."""
    script = Script([None, ValueError("bug"), None])

    script.play()

    assert script.events == ["connect", "run_once", "run_once", "run_once"]


@pytest.mark.parametrize("error", DOWN, ids=names_of_down)
def test_an_outage_is_logged_once(error: Exception) -> None:
    """Given a server that is down for many iterations, I expect one line."""
    assert logged("dependency_down", [None, error, error, error, None]) == 1


def test_the_end_of_an_outage_is_logged_once() -> None:
    """Given a server that is up again, I expect one line, and none for the iterations after it."""
    assert logged("dependency_up", [*DOWN, None, None]) == 1


@pytest.mark.parametrize(
    ("error", "dependency"), [(redis.TimeoutError(), "redis"), (dramatiq.BrokerConnectionError("gone"), "broker")]
)
def test_an_outage_names_the_dependency(error: Exception, dependency: str) -> None:
    """Given an error of Redis's client or of Dramatiq's broker, I expect both lines to name it and the loop."""
    with capture_logs() as lines:
        Script([error, None]).play()

    known = {"dependency": dependency, "loop": "test"}
    reason = redact(error)
    assert lines == [
        {"event": "dependency_down", "log_level": "warning", "reason": reason, **known},
        {"event": "dependency_up", "log_level": "info", **known},
    ]


def test_no_outage_ends_that_has_not_begun() -> None:
    """Given failures of another kind, I expect nothing logged about dependencies."""
    assert logged("dependency_up", [ValueError("bug"), ValueError("bug"), None]) == 0


def test_each_outage_is_logged() -> None:
    """Given a server down, up, and down again, I expect a line for each outage."""
    assert logged("dependency_down", [DOWN[0], None, DOWN[0], None]) == 2


def test_the_waits_double_up_to_a_limit() -> None:
    """Given a server that stays down, I expect attempts after 0.1 s, 0.2 s and so on, never more than 5 s apart."""
    _, waits = Script([DOWN[0]] * 10).play()

    assert waits[:4] == pytest.approx([0, 0.1, 0.2, 0.4])
    assert max(waits) == MAX_WAIT_S


def test_the_waits_start_over_after_a_good_iteration() -> None:
    """Given a server that was down and up again, I expect the shortest wait in the next outage."""
    _, waits = Script([*DOWN, None, DOWN[0], None]).play()

    assert waits[-1] == pytest.approx(0.1)


def test_it_is_alive_while_the_server_is_down() -> None:
    """Given an outage, I expect a mark for each attempt: the process works, it is the server that does not."""
    marks: list[None] = []
    script = Script(DOWN)
    loop = Loop("test", script.run_once)
    loop._stopped = Waits(len(DOWN))
    loop.liveness.mark = lambda: marks.append(None)  # type: ignore[method-assign]

    loop.run()

    assert len(marks) == len(DOWN)


def test_it_stops_after_the_current_iteration() -> None:
    """Given a running loop, I expect stop to end its thread."""
    iterated = threading.Event()
    loop = Loop("test", iterated.set)
    loop.start()
    wait_until(iterated.is_set, description="an iteration")

    loop.stop()
    loop.join(timeout=60)

    assert not loop.is_alive()


def test_the_wait_of_a_long_outage_is_the_longest() -> None:
    """Given an outage of two hours, whose number of attempts overflows a power of two, I expect the longest wait."""
    assert [wait_s(failures) for failures in (1, 2, 6, 7, 8, 2_000)] == pytest.approx([0.1, 0.2, 3.2, 5, 5, 5])
