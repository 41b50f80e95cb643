"""Membership and the lease on a fake Redis: which adapters are live, and which one of them leads."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

import fakeredis
import pytest
from keepsake_client.protocol import ADAPTER_FAILED_AFTER_S, MEMBERSHIP_KEY
from redis.exceptions import ResponseError

from adapters.leader import LEASE_KEY, LEASE_S, Lease
from adapters.membership import EVICT_AFTER_S, Membership, adapter_name


class Clock:
    """A monotonic clock that a test sets; it begins at 0, as that of a host that has just booted."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def client() -> Iterator[fakeredis.FakeRedis]:
    with fakeredis.FakeRedis() as client:
        yield client


def ago(client: Any, seconds: float) -> float:
    """A time on the server's clock, in seconds since 1970."""
    now, microseconds = client.time()
    return float(now) + float(microseconds) / 1e6 - seconds


# Membership


def test_a_name_says_which_process_it_is_and_is_used_once() -> None:
    """Given two names made by one process, I expect host and process id in both, and two names."""
    first, second = adapter_name(), adapter_name()

    for name in (first, second):
        assert re.fullmatch(f"{re.escape(socket.gethostname())}-{os.getpid()}-[0-9a-f]{{8}}", name)
    assert first != second


def test_a_frozen_adapter_learns_that_the_others_may_have_claimed_from_it(client: fakeredis.FakeRedis) -> None:
    """Given heartbeats 10 s, then 10.5 s, then 1 s apart, I expect the second alone to say so."""
    clock = Clock()
    membership = Membership(client, "a1", clock=clock)
    reported = []
    for pause in (ADAPTER_FAILED_AFTER_S, ADAPTER_FAILED_AFTER_S + 0.5, 1.0):
        clock.now += pause
        reported.append(membership.heartbeat())

    assert reported == [False, True, False]


def test_an_adapter_that_froze_before_its_first_heartbeat_learns_it_too(client: fakeredis.FakeRedis) -> None:
    """Given a first heartbeat 11 s after the start, I expect it to say that others may have claimed."""
    clock = Clock()
    membership = Membership(client, "a1", clock=clock)
    clock.now += ADAPTER_FAILED_AFTER_S + 1

    assert membership.heartbeat()


def test_an_adapter_fails_after_ten_seconds_without_a_heartbeat(client: fakeredis.FakeRedis) -> None:
    """Given heartbeats 0, 9 and 11 s old, I expect two live adapters, and a failed one with its last heartbeat."""
    membership = Membership(client, "a1")
    membership.heartbeat()
    failed_at = ago(client, ADAPTER_FAILED_AFTER_S + 1)
    client.zadd(MEMBERSHIP_KEY, {"a2": ago(client, ADAPTER_FAILED_AFTER_S - 1), "a3": failed_at})

    assert membership.live() == {"a1", "a2"}
    assert membership.failed() == {"a3": pytest.approx(failed_at)}


def test_an_adapter_is_live_or_failed_and_never_both(
    client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a heartbeat that is exactly 10 s old, I expect the adapter to be live and not failed."""
    membership = Membership(client, "a1")
    monkeypatch.setattr(membership, "_now", lambda: 1_000.0)
    client.zadd(MEMBERSHIP_KEY, {"a2": 1_000.0 - ADAPTER_FAILED_AFTER_S})

    assert (membership.live(), membership.failed()) == ({"a2"}, {})


def test_a_heartbeat_of_the_future_is_of_a_failed_adapter(client: fakeredis.FakeRedis) -> None:
    """Given an adapter that failed before Redis's clock was set back by an hour, I expect it failed, and not live."""
    membership = Membership(client, "a1")
    membership.heartbeat()
    client.zadd(MEMBERSHIP_KEY, {"a2": ago(client, -3_600)})

    assert (membership.live(), set(membership.failed())) == ({"a1"}, {"a2"})


def test_the_time_to_fail_is_an_argument(client: fakeredis.FakeRedis) -> None:
    """Given another time, I expect it to hold for the others and for this adapter's own heartbeat."""
    clock = Clock()
    membership = Membership(client, "a1", failed_after_s=1.0, clock=clock)
    client.zadd(MEMBERSHIP_KEY, {"a2": ago(client, 2)})
    clock.now += 1.5

    assert membership.heartbeat()
    assert (membership.live(), set(membership.failed())) == ({"a1"}, {"a2"})


def test_a_failed_adapter_is_evicted_after_ten_minutes(client: fakeredis.FakeRedis) -> None:
    """Given an adapter that failed 9 minutes ago, one 11 minutes ago and one unknown, I expect the second evicted."""
    membership = Membership(client, "a1")
    client.zadd(MEMBERSHIP_KEY, {"a2": ago(client, EVICT_AFTER_S - 60), "a3": ago(client, EVICT_AFTER_S + 60)})

    for name in ("a2", "a3", "unknown"):
        membership.evict(name)

    assert client.zrange(MEMBERSHIP_KEY, 0, -1) == [b"a2"]


def test_an_adapter_that_leaves_is_no_member(client: fakeredis.FakeRedis) -> None:
    """Given two members of which one leaves, I expect the other to stay."""
    first, second = Membership(client, "a1"), Membership(client, "a2")
    first.heartbeat()
    second.heartbeat()

    first.leave()

    assert client.zrange(MEMBERSHIP_KEY, 0, -1) == [b"a2"]


# The lease


def test_one_adapter_holds_the_lease(client: fakeredis.FakeRedis) -> None:
    """Given two adapters that both renew, I expect the first to hold it, by name, for three seconds in Redis."""
    first, second = Lease(client, "a1"), Lease(client, "a2")
    first.renew()
    second.renew()

    assert (first.held(), second.held()) == (True, False)
    assert client.get(LEASE_KEY) == b"a1"
    assert 0 < client.pttl(LEASE_KEY) <= LEASE_S * 1_000


def test_a_lease_ends_by_the_clock_where_it_is_not_renewed(client: fakeredis.FakeRedis) -> None:
    """Given a lease of three seconds, I expect it held before they are over and not at that moment."""
    clock = Clock()
    lease = Lease(client, "a1", clock)
    assert not lease.held()
    lease.renew()

    clock.now += LEASE_S - 0.1
    assert lease.held()
    clock.now += 0.1
    assert not lease.held()


def test_a_lease_ends_here_before_it_ends_in_redis(
    client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a reply that took two seconds, I expect the three to be counted from the request."""
    clock = Clock()
    lease = Lease(client, "a1", clock)
    set_key = client.set

    def slow(*arguments: Any, **options: Any) -> Any:
        clock.now += 2
        return set_key(*arguments, **options)

    monkeypatch.setattr(client, "set", slow)
    lease.renew()

    clock.now += LEASE_S - 2
    assert not lease.held()


def test_renewing_extends_the_lease(client: fakeredis.FakeRedis) -> None:
    """Given a lease about to end, I expect a renewal to make it three seconds again, here and in Redis."""
    clock = Clock()
    lease = Lease(client, "a1", clock)
    lease.renew()
    client.pexpire(LEASE_KEY, 300)
    clock.now += LEASE_S - 0.3

    lease.renew()

    clock.now += LEASE_S - 0.1
    assert lease.held()
    assert client.pttl(LEASE_KEY) > 2_000


def test_a_lease_of_a_clock_that_was_set_back_ends(client: fakeredis.FakeRedis) -> None:
    """Given the lease of a failed adapter that lasts for an hour, as after Redis's clock was set back, I expect it to
    last for three seconds once another adapter bids for it; and one that ends sooner to stay as it is."""
    lease = Lease(client, "a1")
    client.set(LEASE_KEY, "a2", px=3_600_000)

    lease.renew()
    assert 0 < client.pttl(LEASE_KEY) <= LEASE_S * 1_000
    client.pexpire(LEASE_KEY, 500)
    lease.renew()

    assert client.pttl(LEASE_KEY) <= 500
    assert not lease.held()


def test_a_redis_that_shortens_no_lease_has_one_leader_all_the_same(
    client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given Redis 6.2, which knows no LT, I expect an adapter without the lease to leave it as it is, without an error,
    and to hold it once it is free."""

    def refuse(*_: Any, **__: Any) -> None:
        raise ResponseError("wrong number of arguments for 'pexpire' command")

    monkeypatch.setattr(client, "pexpire", refuse)
    lease = Lease(client, "a1")
    client.set(LEASE_KEY, "a2", px=3_600_000)

    lease.renew()
    assert not lease.held()
    assert client.pttl(LEASE_KEY) > LEASE_S * 1_000

    client.delete(LEASE_KEY)
    lease.renew()
    assert lease.held()


def test_an_acquisition_whose_reply_was_lost_is_held(client: fakeredis.FakeRedis) -> None:
    """Given a lease in Redis under this adapter's name that it does not know of, I expect the renewal to keep it."""
    client.set(LEASE_KEY, "a1", px=1_000)
    lease = Lease(client, "a1")

    lease.renew()

    assert lease.held()
    assert client.pttl(LEASE_KEY) > 2_000


def test_an_adapter_of_an_earlier_version_is_excluded_and_excludes(client: fakeredis.FakeRedis) -> None:
    """Given adapters that SET the key themselves, as version 0.1 did, I expect one holder whichever came first."""
    lease = Lease(client, "a1")
    lease.renew()
    assert not client.set(LEASE_KEY, "old", nx=True, px=3_000)

    lease.release()
    assert client.set(LEASE_KEY, "old", nx=True, px=3_000)
    lease.renew()
    assert not lease.held()


def test_a_lease_that_another_has_acquired_is_not_held(client: fakeredis.FakeRedis) -> None:
    """Given a lease that ran out and that another acquired, I expect a renewal to notice, and a release to keep it."""
    mine, other = Lease(client, "a1", Clock()), Lease(client, "a2")
    mine.renew()
    client.delete(LEASE_KEY)
    other.renew()

    mine.renew()
    mine.release()

    assert not mine.held()
    assert other.held()
    assert client.get(LEASE_KEY) == b"a2"


def test_a_lease_is_released_by_another_thread_than_renewed_it(client: fakeredis.FakeRedis) -> None:
    """Given a lease that a loop's thread renewed, I expect the main thread to release it at shutdown."""
    lease = Lease(client, "a1")
    loop = threading.Thread(target=lease.renew)
    loop.start()
    loop.join()
    assert lease.held()

    lease.release()

    assert not client.exists(LEASE_KEY)


def test_a_released_lease_is_free_at_once(client: fakeredis.FakeRedis) -> None:
    """Given a holder that releases it, twice, I expect it not held, and another to acquire it."""
    first, second = Lease(client, "a1", Clock()), Lease(client, "a2")
    first.renew()

    first.release()
    assert not first.held()
    second.renew()
    first.release()

    assert second.held()
    assert client.get(LEASE_KEY) == b"a2"
