"""The waking broker on real servers, and what it relies on inside Dramatiq 2.2.

Each test has a namespace of its own, so the machine's own Redis may be used by others meanwhile.
"""

from __future__ import annotations

import inspect
import json
import re
import threading
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import dramatiq
import pytest
import redis
from dramatiq.brokers import redis as dramatiq_redis
from dramatiq.brokers.redis import RedisBroker, _RedisConsumer
from dramatiq.common import current_millis
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import Middleware, Retries

from services.runtime.queues import INTERACTIVE_QUEUE, QueueKeys
from tasks import unknown
from tasks.broker import build_broker
from tasks.middleware.retries import Retries as KeepsakeRetries
from tasks.redis_broker import (
    _HOST_TIME,
    _REDIS_TIME,
    HEARTBEAT_TIMEOUT_MS,
    RECONCILE_INTERVAL_S,
    WakingConsumer,
    WakingRedisBroker,
)
from tests.support import wait_until

MACHINES_REDIS = "redis://127.0.0.1:6379/9"
QUEUE = "things"
#: Long enough for the consumer to wait in Redis, short enough to stop soon.
WORKER_TIMEOUT_MS = 300


class Site:
    """One server, one namespace on it, and the brokers and workers of a test there."""

    def __init__(self, url: str) -> None:
        self.namespace = f"test-{uuid.uuid4().hex}"
        self._url = f"{url}?client_name={self.namespace}"
        self.client = redis.Redis.from_url(url)
        self._brokers: list[WakingRedisBroker] = []
        self._workers: list[dramatiq.Worker] = []

    def broker(self, *middleware: Middleware, reconcile_interval_s: float = RECONCILE_INTERVAL_S) -> WakingRedisBroker:
        """A broker as a worker process of its own would have it."""
        broker = build_broker(self._url, middleware)
        assert isinstance(broker, WakingRedisBroker)
        broker.reconcile_interval_s = reconcile_interval_s
        broker.namespace = self.namespace
        broker.declare_queue(QUEUE)
        self._brokers.append(broker)
        return broker

    def worker(self, broker: WakingRedisBroker, threads: int = 2) -> dramatiq.Worker:
        worker = dramatiq.Worker(broker, worker_timeout=WORKER_TIMEOUT_MS, worker_threads=threads)
        worker.start()
        self._workers.append(worker)
        return worker

    def stop(self, worker: dramatiq.Worker) -> None:
        self._workers.remove(worker)
        worker.stop(timeout=60_000)

    def key(self, name: str) -> str:
        return f"{self.namespace}:{name}"

    def keys(self) -> set[str]:
        """The keys of this test, without its namespace."""
        prefix = f"{self.namespace}:"
        return {key.decode().removeprefix(prefix) for key in self.client.scan_iter(f"{prefix}*", count=1_000)}

    def heartbeat(self, broker: WakingRedisBroker) -> float:
        """When a worker's last heartbeat was, in milliseconds since 1970."""
        at: Any = self.client.zscore(self.key("__heartbeats__"), broker.broker_id)
        return float(at)

    def waiting(self) -> list[str]:
        """The ids of the connections of this test that are blocked in Redis just now."""
        return [
            each["id"]
            for each in self.client.client_list()
            if each["name"] == self.namespace and "b" in each["flags"] and each["cmd"] == "blmove"
        ]

    def close(self) -> None:
        with ThreadPoolExecutor() as threads:
            list(threads.map(self.stop, list(self._workers)))
        for broker in self._brokers:
            broker.close()
        if keys := self.keys():
            self.client.delete(*(self.key(key) for key in keys))
        self.client.close()


@pytest.fixture(params=["Valkey", "Redis"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """A site on embedded Valkey, and on the machine's Redis where there is one."""
    if request.param == "Valkey":
        url = request.getfixturevalue("valkey_url")
    else:
        url = MACHINES_REDIS
        with redis.Redis.from_url(url, socket_connect_timeout=1) as client:
            try:
                client.ping()
            except redis.RedisError as error:
                pytest.skip(f"no Redis on this machine at {url}: {error}")
    site = Site(url)
    yield site
    site.close()


class Notes:
    """What an actor was called with, in order."""

    def __init__(self) -> None:
        self.taken: list[Any] = []

    def actor(self, broker: WakingRedisBroker, **options: Any) -> dramatiq.Actor[[Any], None]:
        """An actor that notes its argument."""

        @dramatiq.actor(broker=broker, actor_name="note", queue_name=QUEUE, **options)
        def note(thing: Any) -> None:
            self.taken.append(thing)

        return note


# What is relied on inside Dramatiq


def test_the_constructor_of_a_consumer_is_known() -> None:
    """Given Dramatiq's private consumer, I expect its constructor to take what `WakingConsumer` passes on."""
    assert list(inspect.signature(_RedisConsumer.__init__).parameters) == [
        "self",
        "broker",
        "queue_name",
        "prefetch",
        "timeout",
    ]


def test_the_broker_asks_for_its_class_of_consumer() -> None:
    """Given Dramatiq's broker, I expect `consumer_class` to be what it makes consumers of."""
    assert "self.consumer_class(self, queue_name, prefetch, timeout)" in inspect.getsource(RedisBroker.consume)


def test_every_override_has_a_method_to_override() -> None:
    """Given the public methods of `WakingConsumer`, I expect Dramatiq's to have each: a renamed one is not called."""
    overrides = {name for name in vars(WakingConsumer) if not name.startswith("_") or name in ("__init__", "__next__")}

    assert overrides - set(dir(_RedisConsumer)) == set()


def test_dramatiq_knows_no_other_methods_of_a_consumer() -> None:
    """Given Dramatiq's consumer, I expect `WakingConsumer` to override every method that uses Redis."""
    theirs = {name for name, member in vars(_RedisConsumer).items() if callable(member) or isinstance(member, property)}

    assert theirs - set(vars(WakingConsumer)) == set()


def test_the_commands_of_the_script_are_known() -> None:
    """Given dispatch.lua, I expect the commands that this broker sends, and no new ones to consider."""
    script = dramatiq_redis._scripts["dispatch"].decode()

    assert set(re.findall(r'command == "(\w+)"', script)) == {
        "enqueue",
        "fetch",
        "requeue",
        "ack",
        "nack",
        "purge",
        "qsize",
    }


def test_the_script_has_the_time_of_its_caller_in_one_line() -> None:
    """Given dispatch.lua, I expect the one line that this broker replaces with the time of Redis."""
    assert dramatiq_redis._scripts["dispatch"].count(b"local timestamp = ARGV[2]") == 1


def test_the_keys_are_known(site: Site) -> None:
    """Given one message waiting and one fetched, I expect just the keys that `QueueKeys` spells."""
    broker = site.broker()
    note = Notes().actor(broker)
    note.send(1)
    note.send(2)

    broker.do_fetch(QUEUE, 1)

    assert site.keys() == {QUEUE, f"{QUEUE}.msgs", f"__acks__.{broker.broker_id}.{QUEUE}", "__heartbeats__"}
    keys = QueueKeys(QUEUE, site.namespace)
    assert [keys.ids, keys.messages, keys.acks(broker.broker_id)] == [
        site.key(QUEUE),
        site.key(f"{QUEUE}.msgs"),
        site.key(f"__acks__.{broker.broker_id}.{QUEUE}"),
    ]


# Clocks


def test_a_worker_whose_clock_is_behind_has_not_failed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a worker on a host whose clock is 30 s behind, which holds a message, I expect the others to leave it with
    that worker, and its heartbeat at the time of Redis."""
    behind, other = site.broker(), site.broker()
    note = Notes().actor(behind)
    note.send(1)
    monkeypatch.setattr(dramatiq_redis, "current_millis", lambda: current_millis() - 30_000)
    held = behind.do_fetch(QUEUE, 1)
    monkeypatch.undo()

    taken = other.do_fetch(QUEUE, 1)

    assert (len(held), taken) == (1, [])
    at, others = (site.heartbeat(broker) for broker in (behind, other))
    assert abs(at - others) < HEARTBEAT_TIMEOUT_MS


def test_a_user_of_redis_who_may_not_ask_for_its_time_sends_its_own(site: Site) -> None:
    """Given access rules of an earlier release, without TIME, I expect the script to run by the time it was given."""
    broker = site.broker()
    script = dramatiq_redis._scripts["dispatch"].replace(_HOST_TIME, _REDIS_TIME)
    refused = script.replace(b'redis.pcall("time")', b'{err = "NOPERM"}')
    broker.scripts["dispatch"] = broker.client.register_script(refused)

    broker.do_fetch(QUEUE, 1)

    assert refused != script
    assert 0 <= current_millis() - site.heartbeat(broker) < 60_000


# Waking


def test_an_idle_consumer_is_woken_by_each_message(site: Site) -> None:
    """Given a consumer that waits in Redis for up to a minute, I expect each message to reach it as it is pushed.

    Twenty of them, one after another: if any had to wait for the time to be up, the socket would time out before.
    """
    broker = site.broker()
    note = Notes().actor(broker)
    consumer = broker.consume(QUEUE, prefetch=1, timeout=60_000)
    broker.client.connection_pool.connection_kwargs["socket_timeout"] = 30
    delivered: list[Any] = []

    def consume() -> None:
        for message in consumer:
            assert message is not None, "the wait was over before a message came"
            delivered.append(message.args[0])
            consumer.ack(message)
            if len(delivered) == 20:
                return

    thread = threading.Thread(target=consume, daemon=True)
    thread.start()
    for number in range(20):
        wait_until(site.waiting, description="the consumer to wait in Redis")
        note.send(number)
        wait_until(lambda n=number: len(delivered) > n, description="the message to arrive")  # type: ignore[misc]
    thread.join(timeout=60)

    assert delivered == list(range(20))


def test_messages_are_run_first_come_first(site: Site) -> None:
    """Given messages on one queue and one thread to run them, I expect the order they were sent in."""
    broker, notes = site.broker(), Notes()
    note = notes.actor(broker)
    for number in range(20):
        note.send(number)

    site.worker(broker, threads=1)
    wait_until(lambda: len(notes.taken) == 20, description="every message")

    assert notes.taken == list(range(20))


def test_waiting_changes_nothing(site: Site) -> None:
    """Given a worker that has looked at its empty queues many times, I expect no list, and nothing that grows."""
    site.worker(site.broker())

    def looks() -> int:
        return int(site.client.info("commandstats").get("cmdstat_blmove", {}).get("calls", 0))

    before = looks()
    wait_until(lambda: looks() > before + 6, description="several looks")

    assert site.keys() == {"__heartbeats__"}


def test_several_workers_share_a_queue(site: Site) -> None:
    """Given three workers on one queue, all of them woken by each push, I expect every message run, and once."""
    notes = Notes()
    brokers = [site.broker() for _ in range(3)]
    actors = [notes.actor(broker) for broker in brokers]
    for broker in brokers:
        site.worker(broker)

    for number in range(60):
        actors[number % 3].send(number)
    wait_until(lambda: len(notes.taken) >= 60 and brokers[0].do_qsize(QUEUE) == 0, description="every message")

    assert sorted(notes.taken) == list(range(60))


def test_nothing_is_left_of_messages_that_were_run(site: Site) -> None:
    """Given messages that were run, I expect no trace of them in Redis."""
    broker, notes = site.broker(), Notes()
    note = notes.actor(broker)
    site.worker(broker)
    for number in range(20):
        note.send(number)

    wait_until(lambda: len(notes.taken) == 20 and broker.do_qsize(QUEUE) == 0, description="every message")

    assert site.keys() == {"__heartbeats__"}


def test_more_messages_than_can_be_prefetched_are_run(site: Site) -> None:
    """Given far more messages than one thread may hold, I expect the wait for a free slot to end each time."""
    broker, notes = site.broker(), Notes()
    note = notes.actor(broker)
    for number in range(200):
        note.send(number)

    site.worker(broker, threads=1)

    wait_until(lambda: len(notes.taken) == 200, description="every message")


# The interactive queue


class Held:
    """An actor that holds its thread until it is let go, on the interactive queue of several workers of one thread."""

    def __init__(self, site: Site, workers: int, reconcile_interval_s: float) -> None:
        self.begun: list[int] = []
        self._let_go: defaultdict[int, threading.Event] = defaultdict(threading.Event)
        self.brokers = [site.broker(reconcile_interval_s=reconcile_interval_s) for _ in range(workers)]
        actors = [
            dramatiq.actor(broker=broker, actor_name="hold", queue_name=INTERACTIVE_QUEUE)(self._hold)
            for broker in self.brokers
        ]
        self.send = actors[0].send
        for broker in self.brokers:
            site.worker(broker, threads=1)

    def _hold(self, number: int) -> None:
        self.begun.append(number)
        self._let_go[number].wait(120)

    def wait_until_begun(self, number: int) -> None:
        wait_until(lambda: number in self.begun, description=f"search {number} to begin")

    def let_go(self, *numbers: int) -> None:
        for number in numbers:
            self._let_go[number].set()


@contextmanager
def held_by(site: Site, workers: int, reconcile_interval_s: float = RECONCILE_INTERVAL_S) -> Iterator[Held]:
    """Workers with that actor, which all end with the block."""
    held = Held(site, workers, reconcile_interval_s)
    try:
        yield held
    finally:
        held.let_go(*range(100))


def test_a_search_does_not_wait_beside_an_idle_process(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given two processes of one thread, and a second search while the first one runs, I expect the other process to
    run it, however often that happens."""
    monkeypatch.setattr("tasks.redis_broker.LEFT_ALONE_S", 60.0)  # however slow the machine is
    with held_by(site, workers=2) as held:
        for number in range(0, 40, 2):
            held.send(number)
            held.wait_until_begun(number)
            held.send(number + 1)
            held.wait_until_begun(number + 1)
            held.let_go(number, number + 1)
            wait_until(lambda: held.brokers[0].do_qsize(INTERACTIVE_QUEUE) == 0, description="both to end")


def busy_consumer(site: Site) -> tuple[Any, dramatiq.Actor[[Any], None]]:
    """The consumer of a process whose only thread has a message of the interactive queue, and an actor there."""
    broker = site.broker()
    actor = dramatiq.actor(broker=broker, actor_name="search", queue_name=INTERACTIVE_QUEUE)(lambda _: None)
    consumer = broker.consume(INTERACTIVE_QUEUE, prefetch=2, timeout=300)
    broker.held[INTERACTIVE_QUEUE].add("one that runs")
    return consumer, actor


def recorded_waits(consumer: Any, freed: Sequence[bool]) -> list[float]:
    """The seconds that a busy consumer waits for a free thread each time, which is free where `freed` says so."""
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return freed[len(waits) - 1]

    consumer._slot_free = SimpleNamespace(wait=wait, clear=lambda: None)
    return waits


def test_a_busy_process_leaves_what_has_just_arrived(site: Site) -> None:
    """Given searches that arrive while a process is busy, I expect one that another process takes before the next look
    left alone, and one that still waits then fetched."""
    consumer, actor = busy_consumer(site)
    ids = site.key(INTERACTIVE_QUEUE)

    assert next(consumer) is None
    for number in range(3):
        actor.send(number)
        assert next(consumer) is None
        assert site.client.lpop(ids) is not None  # as another process does
        assert next(consumer) is None

    waiting = actor.send(3)
    assert next(consumer) is None
    assert site.client.llen(ids) == 1
    assert next(consumer).message_id == waiting.message_id


def test_a_busy_process_looks_less_often_while_nothing_waits(site: Site) -> None:
    """Given a search that takes long and none that waits, I expect 4 ms between two looks, then twice as long each time
    up to 0.1 s, and 4 ms again once a thread is free."""
    consumer, _ = busy_consumer(site)
    freed = [False] * 7 + [True, False]
    waits = recorded_waits(consumer, freed)

    for _ in freed:
        assert next(consumer) is None

    assert waits == pytest.approx([0.004, 0.008, 0.016, 0.032, 0.064, 0.1, 0.1, 0.1, 0.004])


def test_a_busy_process_looks_again_soon_where_something_waits(site: Site) -> None:
    """Given a search that arrives after looks in vain, I expect the next look to see it, and to fetch it 4 ms later."""
    consumer, actor = busy_consumer(site)
    waits = recorded_waits(consumer, [False] * 5)
    for _ in range(3):
        assert next(consumer) is None

    waiting = actor.send(1)
    assert next(consumer) is None
    assert next(consumer).message_id == waiting.message_id

    assert waits == pytest.approx([0.004, 0.008, 0.016, 0.032, 0.004])


def test_a_busy_process_finds_what_was_lost_on_its_way(site: Site) -> None:
    """Given a search that runs for long, and another that Redis counts as fetched and no process has, I expect that one
    requeued meanwhile."""
    with held_by(site, workers=1, reconcile_interval_s=0.2) as held:
        held.send(0)
        held.wait_until_begun(0)
        acks = site.key(f"__acks__.{held.brokers[0].broker_id}.{INTERACTIVE_QUEUE}")
        site.client.sadd(acks, "lost")

        wait_until(lambda: not site.client.sismember(acks, "lost"), description="the id without a message to be gone")
        assert held.begun == [0]


def test_a_busy_process_takes_what_no_other_takes(site: Site) -> None:
    """Given searches that wait and no other process, I expect one of them fetched while the first runs, ahead of its
    end, and the others left on the queue."""
    with held_by(site, workers=1) as held:
        for number in range(4):
            held.send(number)

        acks = site.key(f"__acks__.{held.brokers[0].broker_id}.{INTERACTIVE_QUEUE}")
        wait_until(lambda: site.client.scard(acks) == 2, description="one run and one fetched")
        assert held.begun == [0]

        held.let_go(0, 1, 2, 3)
        wait_until(lambda: held.begun == [0, 1, 2, 3], description="all in their order")


# Delays


def test_a_retry_is_run(site: Site) -> None:
    """Given an actor that fails at first, I expect its message to come back through the queue of delayed ones."""
    broker = site.broker(Retries())
    tries: list[int] = []

    @dramatiq.actor(broker=broker, queue_name=QUEUE, min_backoff=50, max_backoff=50)
    def fail_twice() -> None:
        tries.append(len(tries))
        if len(tries) < 3:
            raise ZeroDivisionError

    fail_twice.send()
    site.worker(broker)
    wait_until(lambda: len(tries) == 3 and broker.do_qsize(QUEUE) == 0, description="the third try")

    assert site.keys() == {"__heartbeats__"}


def test_a_delayed_message_is_not_run_before_its_time(site: Site) -> None:
    """Given a message with a delay, I expect it run, and not before the moment it was put off to."""
    broker = site.broker()
    ran_at: list[int] = []

    @dramatiq.actor(broker=broker, queue_name=QUEUE)
    def note_time() -> None:
        ran_at.append(current_millis())

    site.worker(broker)
    message = note_time.send_with_options(delay=400)
    wait_until(lambda: ran_at, description="the delayed message")

    assert ran_at[0] >= message.options["eta"]


def test_a_delayed_message_delays_no_other(site: Site) -> None:
    """Given a message put off for an hour, I expect one sent after it to run now."""
    broker, notes = site.broker(), Notes()
    note = notes.actor(broker)
    site.worker(broker)

    note.send_with_options(args=("later",), delay=3_600_000)
    note.send("now")

    wait_until(lambda: notes.taken, description="the message that is not delayed")
    assert notes.taken == ["now"]


# Shutdown


def test_prefetched_messages_are_requeued_at_shutdown(site: Site) -> None:
    """Given a worker that is stopped with messages it has fetched and not begun, I expect another one to run them."""
    broker, notes, begun, go_on = site.broker(), Notes(), threading.Event(), threading.Event()

    @dramatiq.actor(broker=broker, actor_name="note", queue_name=QUEUE)
    def hold(number: int) -> None:
        begun.set()
        go_on.wait(120)

    for number in range(4):
        hold.send(number)
    first = site.worker(broker, threads=1)
    acks = site.key(f"__acks__.{broker.broker_id}.{QUEUE}")
    wait_until(lambda: begun.is_set() and site.client.scard(acks) == 2, description="one run and one prefetched")
    stopping = threading.Thread(target=site.stop, args=[first])
    stopping.start()
    wait_until(lambda: not first.workers[0].running, description="the stop")
    go_on.set()
    stopping.join(timeout=60)

    another = site.broker()
    notes.actor(another)
    site.worker(another)
    wait_until(lambda: len(notes.taken) == 3, description="the requeued messages")
    assert sorted(notes.taken) == [1, 2, 3]


def test_delayed_messages_are_requeued_at_shutdown(site: Site) -> None:
    """Given a worker that is stopped while it holds a delayed message, I expect the message back on its queue."""
    broker = site.broker()
    note = Notes().actor(broker)
    worker = site.worker(broker)
    note.send_with_options(args=("later",), delay=3_600_000)
    wait_until(
        lambda: site.client.scard(site.key(f"__acks__.{broker.broker_id}.{QUEUE}.DQ")) == 1,
        description="the worker to hold it",
    )

    site.stop(worker)

    assert site.client.llen(site.key(f"{QUEUE}.DQ")) == 1


# What goes wrong

UNDECODABLE = {
    "not JSON": b"garbage",
    "a list": b"[]",
    "not a message": b'{"hello": "world"}',
    "a message without an id": b'{"queue_name": "things", "actor_name": "note", "args": [1], "kwargs": {},'
    b' "options": {}, "message_id": "m", "message_timestamp": 1}',
    "a message without options": b'{"queue_name": "things", "actor_name": "note", "args": [1], "kwargs": {},'
    b' "options": null, "message_id": "m", "message_timestamp": 1}',
}


def push(site: Site, redis_id: str, data: bytes | None) -> None:
    if data is not None:
        site.client.hset(site.key(f"{QUEUE}.msgs"), redis_id, data)
    site.client.rpush(site.key(QUEUE), redis_id)


@pytest.mark.parametrize("data", UNDECODABLE.values(), ids=UNDECODABLE)
def test_an_undecodable_message_is_a_dead_letter(site: Site, data: bytes) -> None:
    """Given something that is no message on the queue, I expect it among the dead letters as it was."""
    push(site, "bad", data)

    site.worker(site.broker())
    wait_until(lambda: site.client.zcard(site.key(f"{QUEUE}.XQ")), description="the dead letter")

    assert site.client.hgetall(site.key(f"{QUEUE}.XQ.msgs")) == {b"bad": data}


@pytest.mark.parametrize("data", UNDECODABLE.values(), ids=UNDECODABLE)
def test_the_rest_of_its_batch_is_run(site: Site, data: bytes) -> None:
    """Given a batch with something undecodable in the middle, I expect the messages around it to run."""
    broker, notes = site.broker(), Notes()
    note = notes.actor(broker)
    note.send(1)
    push(site, "bad", data)
    note.send(2)

    site.worker(broker, threads=2)
    wait_until(lambda: len(notes.taken) == 2, description="both messages")

    assert sorted(notes.taken) == [1, 2]


def test_an_id_without_a_message_is_forgotten(site: Site) -> None:
    """Given an id whose message is gone, I expect no trace of it after a while."""
    push(site, "gone", None)

    site.worker(site.broker())

    wait_until(lambda: site.keys() == {"__heartbeats__"}, description="the id to be forgotten")


def test_a_fetch_whose_reply_was_lost_is_reconciled(site: Site) -> None:
    """Given messages that Redis delivered to this process and that never arrived, I expect them to run all the same."""
    broker, notes = site.broker(reconcile_interval_s=0.1), Notes()
    note = notes.actor(broker)
    for number in range(3):
        note.send(number)
    broker.do_fetch(QUEUE, 2)  # and the reply is dropped

    site.worker(broker)
    wait_until(lambda: len(notes.taken) == 3 and broker.do_qsize(QUEUE) == 0, description="the stranded messages")

    assert sorted(notes.taken) == [0, 1, 2]


def test_a_message_that_is_running_is_not_requeued(site: Site) -> None:
    """Given an actor that runs for longer than the interval of reconciling, I expect its message to run once."""
    broker, notes, go_on = site.broker(reconcile_interval_s=0.1), Notes(), threading.Event()

    @dramatiq.actor(broker=broker, queue_name=QUEUE)
    def hold(number: int) -> None:
        notes.taken.append(number)
        go_on.wait(120)

    compared: list[None] = []
    smembers = broker.client.smembers

    def counted(name: Any) -> Any:
        compared.append(None)
        return smembers(name)

    broker.client.smembers = counted  # type: ignore[method-assign]
    hold.send(1)
    site.worker(broker)
    wait_until(lambda: notes.taken and len(compared) > 5, description="several comparisons")
    go_on.set()
    wait_until(lambda: broker.do_qsize(QUEUE) == 0, description="the end of the actor")

    assert notes.taken == [1]


def test_the_messages_of_a_failed_worker_are_requeued(site: Site) -> None:
    """Given messages held by a worker without a heartbeat for longer than allowed, I expect them to run."""
    failed, notes = site.broker(), Notes()
    note = notes.actor(failed)
    note.send(1)
    note.send(2)
    failed.do_fetch(QUEUE, 2)
    long_ago = current_millis() - HEARTBEAT_TIMEOUT_MS - 1
    site.client.zadd(site.key("__heartbeats__"), {failed.broker_id: long_ago})

    another = site.broker()
    notes.actor(another)
    site.worker(another)
    wait_until(lambda: len(notes.taken) == 2, description="the failed worker's messages")

    assert sorted(notes.taken) == [1, 2]


def test_the_messages_of_a_live_worker_stay(site: Site) -> None:
    """Given messages held by a worker with a heartbeat just now, I expect another one's fetch not to take them."""
    alive = site.broker()
    Notes().actor(alive).send(1)
    alive.do_fetch(QUEUE, 1)

    assert site.broker().do_fetch(QUEUE, 1) == []


def test_a_lost_connection_loses_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a server that closes the connections of a worker that waits, I expect the next message to run, once."""
    monkeypatch.setattr("dramatiq.worker.CONSUMER_RESTART_DELAY_SECS", 0.1)
    broker, notes = site.broker(), Notes()
    note = notes.actor(broker)
    site.worker(broker)
    wait_until(lambda: len(site.waiting()) == 2, description="both consumers to wait")
    for client_id in site.waiting():
        site.client.client_kill_filter(_id=client_id)

    for number in range(3):
        wait_until(lambda n=number: _sent(note, n), description="a connection to send on")  # type: ignore[misc]
    wait_until(lambda: len(notes.taken) == 3 and broker.do_qsize(QUEUE) == 0, description="the messages")

    assert sorted(notes.taken) == [0, 1, 2]


def _sent(actor: dramatiq.Actor[[Any], None], thing: Any) -> bool:
    try:
        actor.send(thing)
    except (redis.ConnectionError, dramatiq.BrokerConnectionError):
        return False
    return True


@pytest.mark.parametrize("error", [redis.ConnectionError, redis.TimeoutError])
def test_a_lost_connection_is_one_that_dramatiq_knows(
    site: Site, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """Given either of redis-py's unrelated errors, I expect the one after which Dramatiq reconnects."""
    broker = site.broker()
    consumer = broker.consume(QUEUE, timeout=1_000)

    def lose(*_: Any) -> None:
        raise error("gone")

    monkeypatch.setattr(broker.client, "blmove", lose)

    with pytest.raises(ConnectionClosed):
        next(consumer)


@pytest.mark.parametrize("name", ["ack", "nack"])
def test_a_message_that_could_not_be_acknowledged_stays_held(
    site: Site, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Given a server that is down when a message is done, I expect it held: Dramatiq tries again until it is up."""
    broker = site.broker()
    Notes().actor(broker).send(1)
    consumer = broker.consume(QUEUE)
    message = next(consumer)

    def lose(*_: Any) -> None:
        raise redis.TimeoutError("gone")

    monkeypatch.setattr(broker, f"do_{name}", lose, raising=False)
    with pytest.raises(ConnectionClosed):
        getattr(consumer, name)(message)

    assert broker.held[QUEUE] == {message.options["redis_message_id"]}  # type: ignore[union-attr]


def test_a_message_for_an_actor_that_the_worker_does_not_have_fails_as_any_other(site: Site) -> None:
    """Given a message without an asker for an actor of a later release, I expect a count, and a dead letter that says
    what to do: Dramatiq itself makes one before any middleware sees it."""
    counted, broker = Notes(), site.broker(KeepsakeRetries())
    unknown.declare(broker, cast(Any, SimpleNamespace(count=counted.taken.append)))
    broker.declare_queue(QUEUE)

    broker.enqueue(dramatiq.Message(QUEUE, "of_later", (), {}, {}))
    site.worker(broker)

    wait_until(lambda: site.client.zcard(site.key(f"{QUEUE}.XQ")), description="the dead letter")
    assert counted.taken == ["worker_outdated"]
    [body] = site.client.hvals(site.key(f"{QUEUE}.XQ.msgs"))
    assert json.loads(body)["options"]["error"].startswith("worker_outdated: ")
