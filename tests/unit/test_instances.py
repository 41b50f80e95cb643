"""Instances: several processes of one name, by host, as the sorted set beside their heartbeats tells."""

from __future__ import annotations

import pytest

from services.runtime.instances import KEPT_FOR_S, LIVE_FOR_S, Instances, instances_of

NOW = (1_000_000, 500_000)
AT = 1_000_000.5


def test_one_process_is_not_told_of() -> None:
    """Given one process that works, I expect its host, and no word of it."""
    found = instances_of([(b"a:7", AT - 1)], NOW)

    assert found == Instances(live={"a": 1})
    assert str(found) == ""


def test_processes_are_counted_by_host() -> None:
    """Given two processes on one host and one on another, I expect the count of each, and of all."""
    found = instances_of([(b"b:9", AT), (b"a:7", AT - LIVE_FOR_S), (b"a:8", AT - 1)], NOW)

    assert found == Instances(live={"a": 2, "b": 1})
    assert str(found) == "2 on a, 1 on b"


def test_a_host_without_a_process_that_works_is_silent() -> None:
    """Given two processes that ended on one host, and one that was started anew on another, I expect the first silent
    since the later of the two, and the other not."""
    found = instances_of([(b"a:7", AT - 300), (b"a:8", AT - 240), (b"b:1", AT - 100), (b"b:2", AT)], NOW)

    assert found == Instances(live={"b": 1}, silent={"a": 240.0})
    assert str(found) == "1 on b, none on a for 240 s"


def test_a_heartbeat_of_the_future_is_none() -> None:
    """Given a clock of Redis that was set back by an hour, I expect a process that ended before that silent, and one
    whose clock is a little ahead live."""
    found = instances_of([(b"a:7", AT + KEPT_FOR_S), (b"b:8", AT + 0.05)], NOW)

    assert found == Instances(live={"b": 1}, silent={"a": 0.0})


@pytest.mark.parametrize("refused", [(ValueError(), NOW), ([(b"a:7", AT)], ValueError())])
def test_what_may_not_be_seen_is_nothing(refused: tuple[object, object]) -> None:
    """Given access rules that permit no look at the set or no TIME, I expect nothing told."""
    assert instances_of(*refused) == Instances()


def test_any_host_name_is_read() -> None:
    """Given names of hosts with colons, spaces and bytes that are no text, I expect them as they are."""
    found = instances_of([(b"fe80::1:7", AT), (b"a b:7", AT), (b"\xff:7", AT)], NOW)

    assert found.live == {"fe80::1": 1, "a b": 1, "\N{REPLACEMENT CHARACTER}": 1}
