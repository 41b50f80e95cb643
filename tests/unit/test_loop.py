"""The adapters' loop, turn by turn: its pauses are recorded and not waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator

import dramatiq
import pytest
import redis
from structlog.testing import capture_logs

from adapters.loop import MAX_PAUSE_S, Loop
from tests.support import wait_until


class Pauses(threading.Event):
    """Takes the place of the loop's event: notes each pause, and stops the loop when the script is over."""

    def __init__(self, turns: int) -> None:
        super().__init__()
        self._turns = turns
        self.taken: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.taken.append(timeout or 0.0)
        return len(self.taken) > self._turns


class Script:
    """Turns that end as a list says: with an exception, or well."""

    def __init__(self, outcomes: Iterable[Exception | None]) -> None:
        self._outcomes = list(outcomes)
        self._next: Iterator[Exception | None] = iter(self._outcomes)
        self.events: list[str] = []

    def turn(self) -> None:
        self.events.append("turn")
        if outcome := next(self._next):
            raise outcome

    def connect(self) -> None:
        self.events.append("connect")

    def play(self, connect: Callable[[], None] | None = None) -> tuple[Loop, list[float]]:
        """Run the loop for as many turns as there are outcomes; the loop and the pauses before each turn."""
        loop = Loop("test", self.turn, connect or self.connect)
        loop._stopped = pauses = Pauses(len(self._outcomes))
        loop.run()
        return loop, pauses.taken[:-1]


LOST = [redis.ConnectionError("gone"), redis.TimeoutError("slow"), dramatiq.BrokerConnectionError("gone")]
names_of_lost = [type(error).__name__ for error in LOST]


def logged(event: str, outcomes: Iterable[Exception | None]) -> int:
    with capture_logs() as lines:
        Script(outcomes).play()
    return sum(line["event"] == event for line in lines)


def test_it_connects_before_its_first_turn_alone() -> None:
    """Given turns that go well, I expect one connect, before them."""
    script = Script([None, None])

    script.play()

    assert script.events == ["connect", "turn", "turn"]


def test_it_outlives_an_exception() -> None:
    """Given a turn that fails, I expect the next one to run."""
    script = Script([ValueError("bug"), None])

    script.play()

    assert script.events.count("turn") == 2


def test_it_counts_failures() -> None:
    """Given two turns that fail, I expect both counted."""
    loop, _ = Script([ValueError("bug"), None, KeyError("bug")]).play()

    assert loop.failures == 2


def test_one_failure_holds_nothing_up() -> None:
    """Given one turn that fails among others, I expect no pause: its message must not delay everyone's."""
    _, pauses = Script([None, ValueError("bug"), None, None]).play()

    assert pauses == [0, 0, 0, 0]


def test_failures_without_end_do_not_spin() -> None:
    """Given turns that fail every time, as on a key of another type, I expect growing pauses between them."""
    _, pauses = Script([ValueError("bug")] * 10).play()

    assert pauses[:5] == pytest.approx([0, 0, 0.1, 0.2, 0.4])
    assert max(pauses) == MAX_PAUSE_S


def test_a_connect_that_fails_is_tried_again() -> None:
    """Given a connect that raises at first, I expect it to be called again before a turn."""
    script = Script([None, None])
    calls: list[str] = []

    def connect() -> None:
        calls.append("connect")
        if len(calls) == 1:
            raise ValueError("bug")

    script.play(connect)

    assert calls == ["connect", "connect"]


@pytest.mark.parametrize("error", LOST, ids=names_of_lost)
def test_a_lost_connection_is_made_again(error: Exception) -> None:
    """Given a turn that loses its connection, I expect connect before the next."""
    script = Script([error, None])

    script.play()

    assert script.events == ["connect", "turn", "connect", "turn"]


@pytest.mark.parametrize("error", LOST, ids=names_of_lost)
def test_a_lost_connection_is_logged_once(error: Exception) -> None:
    """Given a connection that stays lost for many turns, I expect one line."""
    assert logged("dependency_down", [None, error, error, error, None]) == 1


def test_the_return_of_a_connection_is_logged_once() -> None:
    """Given a connection that comes back, I expect one line, and none for the turns after it."""
    assert logged("dependency_up", [*LOST, None, None]) == 1


def test_a_connection_that_was_never_lost_is_not_back() -> None:
    """Given failures of another kind, I expect nothing said about connections."""
    assert logged("dependency_up", [ValueError("bug"), ValueError("bug"), None]) == 0


def test_each_loss_is_logged() -> None:
    """Given a connection lost, back, and lost again, I expect a line for each loss."""
    assert logged("dependency_down", [LOST[0], None, LOST[0], None]) == 2


def test_the_pauses_double_up_to_a_limit() -> None:
    """Given a server that stays away, I expect tries at 0.1 s, 0.2 s and so on, and never more than 5 s apart."""
    _, pauses = Script([LOST[0]] * 10).play()

    assert pauses[:4] == pytest.approx([0, 0.1, 0.2, 0.4])
    assert max(pauses) == MAX_PAUSE_S


def test_the_pauses_start_over_after_a_good_turn() -> None:
    """Given a server that was away and came back, I expect the next loss to be tried again at once."""
    _, pauses = Script([*LOST, None, LOST[0], None]).play()

    assert pauses[-1] == pytest.approx(0.1)


def test_its_pulse_beats_while_the_server_is_away() -> None:
    """Given a lost connection, I expect a mark for each try: the process works, it is the server that does not."""
    marks: list[None] = []
    script = Script(LOST)
    loop = Loop("test", script.turn)
    loop._stopped = Pauses(len(LOST))
    loop.pulse.mark = lambda: marks.append(None)  # type: ignore[method-assign]

    loop.run()

    assert len(marks) == len(LOST)


def test_it_stops_after_the_turn_in_hand() -> None:
    """Given a running loop, I expect stop to end its thread."""
    turned = threading.Event()
    loop = Loop("test", turned.set)
    loop.start()
    wait_until(turned.is_set, description="a turn")

    loop.stop()
    loop.join(timeout=10)

    assert not loop.is_alive()
