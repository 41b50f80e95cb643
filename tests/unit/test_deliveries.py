"""The deliveries of a message that kills its worker are counted and limited."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import dramatiq
import fakeredis
import pytest
import redis
from dramatiq.brokers.stub import StubBroker
from structlog.testing import capture_logs

from tasks.middleware.deliveries import COUNT_TTL_S, MAX_DELIVERIES, DeliveryLimit, TooManyDeliveries
from tasks.middleware.retries import Retries
from tests.support import wait_until

ID = "11111111-2222-3333-4444-555555555555"
KEY = f"ltm:deliveries:{ID}"


class Bench:
    """A worker that notes what it ran, and how the message was counted meanwhile."""

    def __init__(self) -> None:
        self.server = fakeredis.FakeServer()
        self.client = fakeredis.FakeRedis(server=self.server)
        self.broker = StubBroker(middleware=[DeliveryLimit(self.client), Retries()])
        self.counted: list[Any] = []
        for queue in ("index", "writes", "interactive"):
            self._declare(queue)
        self.worker = dramatiq.Worker(self.broker, worker_timeout=10, worker_threads=1)
        self.worker.start()

    def _declare(self, queue: str) -> None:
        @dramatiq.actor(broker=self.broker, actor_name=queue, queue_name=queue)
        def work() -> None:
            if self.server.connected:
                self.counted.append(self.client.get(KEY))
            else:
                self.counted.append("down")

    def run(self, queue: str) -> str:
        """Run one message of a queue; its id."""
        message: dramatiq.Message[Any] = dramatiq.Message(queue, queue, (), {}, {"redis_message_id": ID})
        self.broker.enqueue(message)
        self.broker.join(queue, timeout=60_000, fail_fast=False)
        return message.message_id

    def close(self) -> None:
        self.worker.stop()
        self.broker.close()
        self.client.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


@pytest.mark.parametrize("queue", ["index", "writes"])
def test_a_delivery_is_counted_while_it_runs(bench: Bench, queue: str) -> None:
    """Given a queue whose messages are delivered again, I expect a count while one runs, and none after."""
    bench.run(queue)

    assert (bench.counted, bench.client.exists(KEY)) == ([b"1"], 0)


def test_a_search_is_not_counted(bench: Bench) -> None:
    """Given an interactive message, I expect no round trip: delivered again it would be past its deadline."""
    bench.run("interactive")

    assert bench.counted == [None]


def test_the_last_delivery_is_run(bench: Bench) -> None:
    """Given a message under which two workers have died, I expect it run once more."""
    bench.client.set(KEY, MAX_DELIVERIES - 1)

    bench.run("index")

    assert (len(bench.counted), bench.broker.dead_letters) == (1, [])


def test_one_delivery_too_many_is_a_dead_letter(bench: Bench) -> None:
    """Given a message under which three workers have died, I expect a dead letter, no run, and the count deleted."""
    bench.client.set(KEY, MAX_DELIVERIES)

    bench.run("index")

    assert (bench.counted, len(bench.broker.dead_letters), bench.client.exists(KEY)) == ([], 1, 0)


def test_its_error_says_what_happened(bench: Bench) -> None:
    """Given one delivery too many, I expect an error that says how many workers died."""
    bench.client.set(KEY, MAX_DELIVERIES)
    message: dramatiq.Message[Any] = dramatiq.Message("index", "index", (), {}, {"redis_message_id": ID})

    with pytest.raises(TooManyDeliveries, match=r"^3 worker processes died while they ran it$"):
        DeliveryLimit(bench.client).before_process_message(bench.broker, dramatiq.MessageProxy(message))


def test_a_count_expires(bench: Bench) -> None:
    """Given a worker that dies, I expect the count it leaves behind to expire."""
    middleware = DeliveryLimit(bench.client)
    message: dramatiq.Message[Any] = dramatiq.Message("index", "index", (), {}, {"redis_message_id": ID})

    middleware.before_process_message(bench.broker, dramatiq.MessageProxy(message))

    assert 0 < bench.client.ttl(KEY) <= COUNT_TTL_S


def test_an_outage_of_redis_delays_nothing(bench: Bench) -> None:
    """Given a Redis that is down, I expect the message run all the same, and two lines that say what is missing."""
    bench.server.connected = False

    with capture_logs() as lines:
        message_id = bench.run("index")

    assert (bench.counted, bench.broker.dead_letters) == (["down"], [])
    known = {"message_id": message_id, "reason": "ConnectionError", "log_level": "info"}
    assert lines == [{"event": "delivery_not_counted", **known}, {"event": "delivery_count_not_deleted", **known}]


def test_a_message_of_rabbitmq_is_identified_by_its_attempts(bench: Bench) -> None:
    """Given messages without an id of Redis, I expect each attempt of one counted for itself."""
    middleware = DeliveryLimit(bench.client)
    for options in ({}, {"retries": 1}):
        message: dramatiq.Message[Any] = dramatiq.Message("index", "index", (), {}, options, "m1")
        middleware.before_process_message(bench.broker, dramatiq.MessageProxy(message))

    assert sorted(bench.client.keys()) == [b"ltm:deliveries:m1:0", b"ltm:deliveries:m1:1"]


def test_a_message_that_is_delivered_again_runs_alone(bench: Bench) -> None:
    """Given two messages that were running when a worker died, I expect the second begun when the first has ended.

    Only one of them killed the worker, and the other must not be counted when it does so again.
    """
    middleware = DeliveryLimit(bench.client)
    first, second = (
        dramatiq.MessageProxy(dramatiq.Message("index", "index", (), {}, {"redis_message_id": name})) for name in "ab"
    )
    for name in "ab":
        bench.client.set(f"ltm:deliveries:{name}", 1)
    middleware.before_process_message(bench.broker, first)
    begin = threading.Thread(target=middleware.before_process_message, args=(bench.broker, second), daemon=True)
    begin.start()
    wait_until(lambda: bench.client.get("ltm:deliveries:b") == b"1" and begin.is_alive(), description="the wait")

    middleware.after_process_message(bench.broker, first)
    begin.join(timeout=60)

    assert (begin.is_alive(), bench.client.get("ltm:deliveries:b")) == (False, b"2")


def test_a_message_that_ran_alone_may_be_delivered_again(bench: Bench) -> None:
    """Given a message that ran alone to its end, I expect it and others to run as any message after that."""
    middleware = DeliveryLimit(bench.client)
    message = dramatiq.MessageProxy(dramatiq.Message("index", "index", (), {}, {"redis_message_id": ID}))
    bench.client.set(KEY, 1)

    for _ in range(2):
        middleware.before_process_message(bench.broker, message)
        middleware.after_process_message(bench.broker, message)

    assert bench.client.exists(KEY) == 0


def refuse(*_: Any, **__: Any) -> None:
    raise redis.exceptions.NoPermissionError("this user has no permissions to run the 'set' command")


def test_a_delivery_is_counted_in_one_round_trip(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a message's first delivery, I expect one command to count it and set when the count expires."""
    middleware = DeliveryLimit(bench.client)
    message: dramatiq.Message[Any] = dramatiq.Message("index", "index", (), {}, {"redis_message_id": ID})
    for name in ("pipeline", "incrby", "expire"):
        monkeypatch.setattr(bench.client, name, refuse)

    middleware.before_process_message(bench.broker, dramatiq.MessageProxy(message))

    assert (bench.client.get(KEY), bench.client.ttl(KEY) > 0) == (b"1", True)


@pytest.mark.parametrize(("before", "after"), [(0, b"1"), (1, b"2")])
def test_deliveries_are_counted_under_the_access_rules_of_version_0_2(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, before: int, after: bytes
) -> None:
    """Given rules that do not permit SET, I expect each delivery counted, with an end of its count."""
    bench.client.incrby(KEY, before)
    monkeypatch.setattr(bench.client, "set", refuse)
    message: dramatiq.Message[Any] = dramatiq.Message("index", "index", (), {}, {"redis_message_id": ID})

    DeliveryLimit(bench.client).before_process_message(bench.broker, dramatiq.MessageProxy(message))

    assert (bench.client.get(KEY), bench.client.ttl(KEY) > 0) == (after, True)


class AskedLock:
    """A lock that notes how often it was asked for."""

    def __init__(self) -> None:
        self.asked = 0
        self._lock = threading.Lock()

    def acquire(self) -> None:
        self.asked += 1
        self._lock.acquire()

    def release(self) -> None:
        self._lock.release()


def test_a_message_that_waits_is_not_counted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a message that waits to run alone, I expect no count of it, not even for a moment.

    The process may die in that moment, and the message be taken for the cause.
    """
    middleware, lock = DeliveryLimit(bench.client), AskedLock()
    monkeypatch.setattr(middleware, "_one_suspect", lock)
    counted: list[str] = []

    def count(key: str) -> int:
        counted.append(key)
        return 2

    monkeypatch.setattr(middleware, "_count", count)
    messages = [
        dramatiq.MessageProxy(dramatiq.Message("index", "index", (), {}, {"redis_message_id": name})) for name in "ab"
    ]
    for name in "ab":
        bench.client.set(f"ltm:deliveries:{name}", 1)
    middleware.before_process_message(bench.broker, messages[0])

    begin = threading.Thread(target=middleware.before_process_message, args=(bench.broker, messages[1]), daemon=True)
    begin.start()
    wait_until(lambda: lock.asked == 2, description="the wait")

    assert counted == ["ltm:deliveries:a"]
    middleware.after_process_message(bench.broker, messages[0])
    begin.join(timeout=60)
    assert counted == ["ltm:deliveries:a", "ltm:deliveries:b"]
