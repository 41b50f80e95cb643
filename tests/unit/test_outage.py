"""An outage is told twice: when it begins and when it is over."""

from __future__ import annotations

from structlog.testing import capture_logs

from services.outage import Outage


def test_each_change_is_one_line() -> None:
    """Given many failures and many successes, I expect a line for the first of each."""
    outage = Outage("broker")

    with capture_logs() as lines:
        for _ in range(3):
            outage.began("refused")
        for _ in range(3):
            outage.over()
        outage.began("again")

    assert [line["event"] for line in lines] == ["server_lost", "server_found", "server_lost"]


def test_the_line_says_who_and_why() -> None:
    """Given a failure, I expect the server's name and the reason."""
    with capture_logs() as lines:
        Outage("broker").began("refused")

    assert lines == [{"event": "server_lost", "server": "broker", "reason": "refused", "log_level": "warning"}]


def test_what_is_there_from_the_start_is_not_told() -> None:
    """Given a server that answers, I expect nothing in the log."""
    with capture_logs() as lines:
        Outage("broker").over()

    assert lines == []


def test_what_was_never_there_is_not_lost() -> None:
    """Given a server that somebody else waits for at the start, I expect no loss before it was found, and one after."""
    outage = Outage("postgres", up=False)

    with capture_logs() as lines:
        outage.began("not yet up")
        outage.over()
        outage.began("gone")

    assert [line.get("reason") for line in lines] == ["gone"]
