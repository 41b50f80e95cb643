"""An availability is told twice: when it begins and when it is over."""

from __future__ import annotations

from structlog.testing import capture_logs

from services.runtime.availability import Availability


def test_each_change_is_one_line() -> None:
    """Given many failures and many successes, I expect a line for the first of each."""
    availability = Availability("broker")

    with capture_logs() as lines:
        for _ in range(3):
            availability.down("refused")
        for _ in range(3):
            availability.up()
        availability.down("again")

    assert [line["event"] for line in lines] == ["dependency_down", "dependency_up", "dependency_down"]


def test_the_line_says_who_and_why() -> None:
    """Given a failure, I expect the server's name and the reason."""
    with capture_logs() as lines:
        Availability("broker").down("refused")

    assert lines == [{"event": "dependency_down", "server": "broker", "reason": "refused", "log_level": "warning"}]


def test_what_is_there_from_the_start_is_not_told() -> None:
    """Given a server that answers, I expect nothing in the log."""
    with capture_logs() as lines:
        Availability("broker").up()

    assert lines == []


def test_what_was_never_there_is_not_lost() -> None:
    """Given a server that somebody else waits for at the start, I expect no loss before it was found, and one after."""
    availability = Availability("postgres", up=False)

    with capture_logs() as lines:
        availability.down("not yet up")
        availability.up()
        availability.down("gone")

    assert [line.get("reason") for line in lines] == ["gone"]
