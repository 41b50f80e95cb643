"""An outage of a dependency is two log lines: one when it begins and one when it is over."""

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


def test_the_lines_name_the_dependency() -> None:
    """Given an outage, I expect the dependency and the context in both lines, and the reason in the first."""
    availability = Availability("redis", at="ltm_requests")

    with capture_logs() as lines:
        availability.down(OSError("refused"))
        availability.up()

    context = {"dependency": "redis", "at": "ltm_requests"}
    assert lines == [
        {"event": "dependency_down", **context, "reason": "refused", "log_level": "warning"},
        {"event": "dependency_up", **context, "log_level": "info"},
    ]


def test_a_dependency_that_is_up_from_the_start_is_not_logged() -> None:
    """Given a dependency that answers, I expect nothing in the log."""
    with capture_logs() as lines:
        Availability("broker").up()

    assert lines == []


def test_a_dependency_that_was_never_up_is_not_down() -> None:
    """Given a dependency that is waited for elsewhere, I expect no outage before it was up, and one after."""
    availability = Availability("postgres", up=False)

    with capture_logs() as lines:
        availability.down("not yet up")
        availability.up()
        availability.down("gone")

    assert [line.get("reason") for line in lines] == ["gone"]
