"""The clock of Redis, as a process follows it whose host has another time."""

from __future__ import annotations

import time
from typing import Any

import fakeredis
import pytest
from redis.client import Pipeline
from redis.exceptions import NoPermissionError
from structlog.testing import capture_logs

from services.runtime.heartbeat import HeartbeatThread
from services.runtime.server_clock import TOLERANCE_S, ServerClock
from tests.support import wait_until


class Host:
    """A host whose clock stands at `now`."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.clock = ServerClock(lambda: self.now)

    def observe(self, server: float, took_s: float = 0.0) -> None:
        """Have Redis answer `server` to a command that begins now."""
        self.clock.observe((int(server), int(server % 1 * 1e6)), self.now, self.now + took_s)


def test_without_an_observation_the_clock_is_the_hosts() -> None:
    assert Host(1_000.0).clock() == 1_000.0


@pytest.mark.parametrize("ahead_s", [30.0, -30.0, 0.2])
def test_a_host_that_is_off_goes_by_redis(ahead_s: float) -> None:
    """Given a host ahead of Redis or behind it, I expect Redis's time, also a second later."""
    host = Host(1_000.0 + ahead_s)

    host.observe(1_000.0)
    host.now += 1.0

    assert host.clock() == pytest.approx(1_001.0)
    assert host.clock.ahead_s == pytest.approx(ahead_s)


def test_synchronized_clocks_are_left_alone() -> None:
    """Given a difference as between clocks that NTP keeps, I expect the host's own, which stages of one host need."""
    host = Host(1_000.0)

    host.observe(1_000.0 - TOLERANCE_S / 2)

    assert (host.clock(), host.clock.ahead_s) == (1_000.0, 0.0)


def test_a_slow_answer_of_redis_is_no_difference() -> None:
    """Given an answer that took a second, I expect no correction: Redis told its time at any moment of it."""
    host = Host(1_000.0)

    host.observe(1_000.9, took_s=1.0)

    assert host.clock() == 1_000.0


def test_a_process_that_was_frozen_while_redis_answered_learns_nothing() -> None:
    """Given a process that read an answer 30 s late, first with the right time, then on a host 2 s ahead, I expect no
    warning, and what was known."""
    right, ahead = Host(1_000.0), Host(1_002.0)
    ahead.observe(1_000.0)

    with capture_logs() as logs:
        right.observe(1_000.0, took_s=30.0)
        ahead.observe(1_000.0, took_s=30.0)

    assert right.clock.ahead_s == 0.0
    assert ahead.clock.ahead_s == pytest.approx(2.0)
    assert not logs


def test_a_clock_that_is_set_right_is_followed_no_longer() -> None:
    host = Host(1_030.0)
    host.observe(1_000.0)

    host.now = 1_001.0
    host.observe(1_001.0)

    assert host.clock() == 1_001.0


def test_a_difference_of_seconds_is_logged_once_until_it_has_ended() -> None:
    host = Host(1_030.0)

    with capture_logs() as logs:
        host.observe(1_000.0)
        host.observe(1_000.0)
        host.observe(1_030.0)
        host.observe(1_000.0)

    assert [(line["event"], line["ahead_of_redis_s"]) for line in logs] == [("clock_differs", 30.0)] * 2


def test_a_user_of_redis_who_may_not_ask_for_its_time_sends_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given access rules without TIME, I expect one heartbeat after the other, and the host's clock."""
    execute, beats = Pipeline.execute, list[Any]()

    def refused(pipeline: Any, **options: Any) -> list[Any]:
        _, *results = execute(pipeline, **options)
        beats.append(results)
        return [NoPermissionError("this user has no permissions to run the 'time' command"), *results]

    monkeypatch.setattr(Pipeline, "execute", refused)
    clock = ServerClock(lambda: 1_000.0)
    thread = HeartbeatThread(fakeredis.FakeRedis(), "memory", [lambda: True], interval_s=0.01, clock=clock)

    thread.start()
    wait_until(lambda: len(beats) > 1, description="a second heartbeat")
    thread.stop()

    assert clock() == 1_000.0


def test_heartbeats_observe_the_clock() -> None:
    """Given a process whose host is an hour ahead, I expect its heartbeats to tell its clock."""
    clock = ServerClock(lambda: time.time() + 3_600)
    thread = HeartbeatThread(fakeredis.FakeRedis(), "memory", [lambda: True], interval_s=0.01, clock=clock)

    thread.start()
    wait_until(lambda: clock.ahead_s, description="an observation")
    thread.stop()

    assert clock.ahead_s == pytest.approx(3_600, abs=60)
