"""What a subscription knows of its connection, and what waits while Redis takes no writes."""

from __future__ import annotations

import asyncio

import fakeredis
import pytest
import redis
from keepsake_client.protocol import COUNTERS
from keepsake_client.refusals import refuses_writes
from keepsake_client.subscription import HalfOpen, SubscriptionMonitor

from services.runtime.bounded_queue import BoundedQueue
from services.runtime.counters import PendingCounts

REFUSED = [
    "OOM command not allowed when used memory > 'maxmemory'.",
    "READONLY You can't write against a read only replica.",
    "MISCONF Valkey is configured to save RDB snapshots, but it's currently unable to persist to disk.",
    "NOREPLICAS Not enough good replicas to write.",
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
    "Command # 1 (RPUSH a x) of pipeline caused error: NOREPLICAS Not enough good replicas to write.",
    "Command # 1 (RPUSH a x) of pipeline caused error: ('NOREPLICAS Not enough good replicas to write.',)",
    "ERR Error running script (call to f_1): @user_script:1: -READONLY You can't write against a read only replica.",
]
NOT_REFUSED = [
    "UNBLOCKED the stream key no longer exists",
    "WRONGTYPE Operation against a key holding the wrong kind of value",
    "NOPERM this user has no permissions to run the 'xadd' command",
    "ERR value is NOREPLICAS",
    "Command # 1 (RPUSH a MISCONF) of pipeline caused error: WRONGTYPE Operation against a key",
    "Command # 1 (RPUSH a  of pipeline caused error: MISCONF) of pipeline caused error: WRONGTYPE Operation",
]


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("message", REFUSED)
def test_a_refusal_of_all_writes_is_known_by_its_code(message: str) -> None:
    """Given an error with the code of a refusal, in each form in which redis-py gives it, I expect it recognised."""
    assert refuses_writes(redis.ResponseError(message))


@pytest.mark.parametrize("message", NOT_REFUSED)
def test_another_error_is_no_refusal(message: str) -> None:
    """Given the error of one command, whatever its contents quote, I expect no refusal of all writes."""
    assert not refuses_writes(redis.ResponseError(message))


def test_a_lost_connection_is_no_refusal() -> None:
    """Given an error that is no answer of Redis, I expect no refusal."""
    assert not refuses_writes(redis.ConnectionError("READONLY"))


def test_a_silent_subscription_is_pinged_and_then_half_open() -> None:
    """Given a silence, I expect one ping for each interval, and HalfOpen at its limit; hearing ends before."""
    clock = Clock()
    monitor = SubscriptionMonitor(5, 10, clock)
    assert not monitor.hears()
    monitor.received("subscribe")

    pinged = []
    for _ in range(9):
        clock.now += 1
        pinged.append(monitor.ping_due())
    assert pinged == [False] * 4 + [True] + [False] * 4
    assert monitor.hears()

    clock.now += 1
    with pytest.raises(HalfOpen):
        monitor.ping_due()
    assert not monitor.hears()


def test_a_pong_ends_a_silence() -> None:
    """Given a pong after nine seconds, I expect ten more before the subscription is half-open."""
    clock = Clock()
    monitor = SubscriptionMonitor(5, 10, clock)
    monitor.received("subscribe")
    clock.now += 9
    monitor.received("pong")
    clock.now += 9

    assert monitor.ping_due()
    assert monitor.hears()


def test_a_new_subscription_is_not_taken_for_hearing() -> None:
    """Given a subscription that is requested again after a silence, I expect it to hear once it is confirmed."""
    clock = Clock()
    monitor = SubscriptionMonitor(5, 10, clock)
    monitor.received("subscribe")
    clock.now += 20
    assert monitor.subscribed_s() == 20
    monitor.restart()

    assert (monitor.hears(), monitor.subscribed_s()) == (False, 0)
    assert not monitor.ping_due()
    monitor.received("subscribe")
    clock.now += 1
    assert (monitor.hears(), monitor.subscribed_s()) == (True, 1)


def test_an_error_is_an_answer_once_the_subscription_is_confirmed() -> None:
    """Given an error in answer to a ping, I expect a pong; in answer to the subscription, I expect it raised."""
    monitor = SubscriptionMonitor()
    error = redis.ResponseError("NOPERM")
    with pytest.raises(redis.ResponseError, match="NOPERM"):
        monitor.answered(error)

    monitor.received("subscribe")

    assert monitor.answered(error) == {"type": "pong"}


@pytest.mark.parametrize(("max_items", "max_bytes", "kept"), [(2, 100, ["bb", "ccc"]), (9, 4, ["ccc"]), (9, 2, [])])
def test_a_bounded_queue_drops_its_oldest_items(max_items: int, max_bytes: int, kept: list[str]) -> None:
    """Given three texts, I expect the newest within both bounds, and the number of those that were dropped."""
    queue: BoundedQueue[str] = BoundedQueue(len, max_items, max_bytes)

    dropped = sum(queue.append(text) for text in ("a", "bb", "ccc"))

    assert (list(queue), dropped, len(queue)) == (kept, 3 - len(kept), len(kept))


def test_a_bounded_queue_counts_what_it_retains() -> None:
    """Given items that are removed, I expect room for as many bytes as they had."""
    queue: BoundedQueue[str] = BoundedQueue(len, 9, 4)
    queue.append("aa")
    queue.append("bb")

    queue.retain(lambda text: text == "bb")

    assert queue.append("cc") == 0
    assert (queue.peek(), queue.popleft(), list(queue)) == ("bb", "bb", ["cc"])


def test_counts_wait_until_redis_takes_them() -> None:
    """Given a Redis that is away at the first flush, I expect the sums at the next one, and nothing at a third."""
    server = fakeredis.FakeServer()
    counts, client = PendingCounts(COUNTERS), fakeredis.FakeRedis(server=server)
    for number in (1, 2):
        counts.count("rejected", number)
    counts.count("backlog_over")
    server.connected = False
    counts.flush(client)
    server.connected = True

    for _ in range(2):
        counts.flush(client)

    assert client.hgetall(COUNTERS) == {b"rejected": b"3", b"backlog_over": b"1"}


def test_counts_wait_in_asyncio_too() -> None:
    """Given a Redis that is away at the first flush of a loop, I expect the sum at the next one."""

    async def story() -> None:
        server = fakeredis.FakeServer()
        counts, client = PendingCounts(COUNTERS), fakeredis.FakeAsyncRedis(server=server)
        counts.count("rejected", 3)
        server.connected = False
        await counts.flush_async(client)
        server.connected = True
        await counts.flush_async(client)
        assert await client.hgetall(COUNTERS) == {b"rejected": b"3"}
        await client.aclose()

    asyncio.run(story())
