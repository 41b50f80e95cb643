"""The adapters' parts on a fake Redis, turn by turn; what happens between them is tested on a real one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import dramatiq
import fakeredis
import pytest
import redis
from dramatiq.brokers.stub import StubBroker
from keepsake_client.protocol import COUNTERS, UPDATES_STREAM
from structlog.testing import capture_logs

from adapters import dispatcher, ltm_requests, maintenance, memory_updates
from adapters.dispatcher import Dispatcher
from adapters.loop import Loop
from adapters.ltm_requests import RequestAdapter
from adapters.ltm_responses import ResponsePublisher
from adapters.maintenance import Maintenance
from adapters.membership import Lease, Membership
from adapters.memory_updates import UpdateAdapter, says_logged
from adapters.rejected import Rejected
from adapters.stream import UpdateStream
from tests.unit.test_loop import Script


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns that find nothing return at once."""
    monkeypatch.setattr(ltm_requests, "POLL_TIMEOUT_S", 0.02)
    monkeypatch.setattr(memory_updates, "POLL_TIMEOUT_S", 0.02)
    monkeypatch.setattr(dispatcher, "WAIT_MS", 20)
    monkeypatch.setattr(maintenance, "INTERVAL_S", 0)
    monkeypatch.setattr(maintenance, "MEASURE_INTERVAL_S", 0)


@pytest.fixture
def client() -> Iterator[fakeredis.FakeRedis]:
    with fakeredis.FakeRedis() as client:
        yield client


@pytest.fixture
def broker() -> Iterator[StubBroker]:
    broker = StubBroker(middleware=[])
    for queue in ("interactive", "writes", "index"):
        broker.declare_queue(queue)
    yield broker
    broker.close()


def event(content: str, **more: Any) -> str:
    return json.dumps({"user_id": "u1", "content": content, "source": "user", **more})


def asked(request_id: str) -> str:
    return json.dumps({"request_id": request_id, "type": "search", "user_id": "u1", "data": {"query": "tea?"}})


# The broker's faults and the message's


class Fails:
    """A broker's `enqueue` that raises what it is told to, until it is told nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, broker: StubBroker) -> None:
        self.error: Exception | None = None
        self._enqueue = broker.enqueue
        monkeypatch.setattr(broker, "enqueue", self._try)

    def _try(self, message: dramatiq.Message[Any], **options: Any) -> dramatiq.Message[Any]:
        if self.error:
            raise self.error
        return self._enqueue(message, **options)


@pytest.fixture
def requests(client: fakeredis.FakeRedis, broker: StubBroker) -> RequestAdapter:
    rejected, responses = Rejected(client, "ltm_requests"), ResponsePublisher(client, "ltm_responses")
    return RequestAdapter(client, "ltm_requests", Membership(client, "a1"), broker, responses, rejected, 1_000)


@pytest.mark.parametrize("error", [redis.ConnectionError("gone"), redis.OutOfMemoryError("full")])
def test_a_request_stays_in_hand_until_the_broker_takes_it(
    client: fakeredis.FakeRedis,
    broker: StubBroker,
    requests: RequestAdapter,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    """Given a broker that takes nothing for two turns, I expect the request in hand, and handed over after."""
    fails = Fails(monkeypatch, broker)
    fails.error = error
    client.lpush("ltm_requests", asked("r1"))
    for _ in range(2):
        with pytest.raises(type(error)):
            requests.turn()
        assert client.lrange("ltm_requests:taken:a1", 0, -1) == [asked("r1").encode()]

    fails.error = None
    requests.turn()

    assert broker.queues["interactive"].qsize() == 1
    assert client.keys() == []


def test_a_request_that_nobody_can_hand_over_is_answered(
    client: fakeredis.FakeRedis, broker: StubBroker, requests: RequestAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a request at which handing over breaks, I expect an error response, and the next one served."""
    fails = Fails(monkeypatch, broker)
    fails.error = ValueError("a bug")
    with client.pubsub(ignore_subscribe_messages=True) as answers:  # type: ignore[no-untyped-call]
        answers.subscribe("ltm_responses")
        answers.get_message()
        client.lpush("ltm_requests", asked("r1"))
        requests.turn()
        assert json.loads(answers.get_message()["data"])["error"] == "internal: ValueError"

    fails.error = None
    client.lpush("ltm_requests", asked("r2"))
    requests.turn()
    assert broker.queues["interactive"].qsize() == 1
    assert client.keys() == []


REFUSALS = [
    redis.OutOfMemoryError("OOM command not allowed"),
    redis.ReadOnlyError("You can't write against a read only replica."),
    redis.ResponseError("MISCONF Redis is configured to save RDB snapshots, but it cannot persist on disk"),
]


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: type(error).__name__)
def test_a_server_that_refuses_all_writes_is_told_of_once(error: Exception) -> None:
    """Given a full Redis over many turns, I expect one line when it refuses and one when it takes, no traceback."""
    with capture_logs() as lines:
        Script([None, error, error, error, None]).play()
    assert [line["event"] for line in lines] == ["dependency_down", "dependency_up"]


# The channel


class Channel:
    """An adapter of the channel, what it wrote, and the lease."""

    def __init__(self, client: fakeredis.FakeRedis, name: str = "a1") -> None:
        self.client = client
        self.lease = Lease(client, name)
        log = UpdateStream(client, UPDATES_STREAM, name, max_len=1_000)
        rejected = Rejected(client, "memory_updates")
        self.adapter = UpdateAdapter(client, "memory_updates", log, self.lease, rejected, 1_000)
        self.adapter.listen()
        self.adapter.turn()  # the confirmation

    def hear(self, *events: str) -> None:
        for each in events:
            self.client.publish("memory_updates", each)
        self.turn(len(events))

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.adapter.turn()

    def written(self) -> list[dict[str, Any]]:
        entries: Any = self.client.xrange(UPDATES_STREAM)
        return [json.loads(fields[b"event"]) for _, fields in entries]


def test_only_what_is_not_logged_is_written(client: fakeredis.FakeRedis) -> None:
    """Given events that say they are in the log and others, one of which only talks of it, I expect the others."""
    channel = Channel(client)
    channel.lease.renew()

    channel.hear(
        event("ours", logged=True), event("theirs"), event("x", meta={"logged": True}), event('"logged": true')
    )

    assert [written["content"] for written in channel.written()] == ["theirs", "x", '"logged": true']


def test_what_a_foreign_event_lacks_is_written_down(client: fakeredis.FakeRedis) -> None:
    """Given events without time and id, I expect both in the log; the same said twice has two, the same event one."""
    channel = Channel(client)
    channel.lease.renew()

    channel.hear(event("ok"), event("ok"), *[event("ok", timestamp=1_712_345_678)] * 2, event("ok", message_id="m1"))

    first, second, third, fourth, fifth = channel.written()
    assert first["timestamp"] != second["timestamp"]
    assert len({first["message_id"], second["message_id"], third["message_id"]}) == 3
    assert third == fourth
    assert fifth["message_id"] == "m1"


def test_only_the_holder_of_the_lease_writes(client: fakeredis.FakeRedis) -> None:
    """Given two adapters, I expect what both heard once in the log, and a bad one rejected once."""
    first, second = Channel(client, "a1"), Channel(client, "a2")
    for each in (first, second):
        each.lease.renew()
    assert (first.lease.held(), second.lease.held()) == (True, False)

    first.hear(event("hello"), "bad")
    second.turn(2)

    assert len(first.written()) == 1
    assert client.hgetall(COUNTERS) == {b"rejected": b"1"}


def test_a_new_holder_writes_what_the_last_one_had_not(client: fakeredis.FakeRedis) -> None:
    """Given a holder that dies after it wrote two of four events, all alike, I expect the other two from the next."""
    first, second = Channel(client, "a1"), Channel(client, "a2")
    first.lease.renew()
    first.hear(event("ok"), event("ok"))
    for _ in range(2):
        client.publish("memory_updates", event("ok"))
    second.turn(4)

    first.lease.release()  # as if it had run out
    second.lease.renew()
    second.turn()

    assert [written["content"] for written in second.written()] == ["ok"] * 4


def test_a_new_holder_that_hears_late_writes_nothing_twice(
    client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given an adapter that hears a second and a half after the holder wrote, I expect it to find what is written."""
    first, second = Channel(client, "a1"), Channel(client, "a2")
    first.lease.renew()
    first.hear(event("written"))
    late = time.time() + 1.5
    monkeypatch.setattr(memory_updates, "time", SimpleNamespace(time=lambda: late))
    second.turn()

    first.lease.release()
    second.lease.renew()
    second.turn()

    assert [written["content"] for written in second.written()] == ["written"]


def test_a_lease_that_is_not_renewed_ends(client: fakeredis.FakeRedis) -> None:
    """Given a lease that another has taken, I expect whoever had it to know when he renews, and to leave it alone."""
    mine, other = Lease(client, "a1"), Lease(client, "a2")
    mine.renew()
    client.delete("ltm:channel-reader")
    other.renew()

    mine.renew()
    mine.release()

    assert not mine.held()
    assert other.held()
    assert client.exists("ltm:channel-reader")


@pytest.mark.parametrize("raw", [b"", b"logged", b'["logged"]', b'{"logged"', b'{"logged": "true"}', b'"logged"' * 9])
def test_nothing_else_says_that_it_is_logged(raw: bytes) -> None:
    """Given bytes that do not say it in so many words, I expect them to be looked at as foreign."""
    assert not says_logged(raw)


# The log


def handing(client: fakeredis.FakeRedis, broker: StubBroker, log: UpdateStream) -> Dispatcher:
    rejected = Rejected(client, UPDATES_STREAM)
    return Dispatcher(log, Membership(client, log.consumer), broker, rejected, 1_000, prefetch=100, window=10)


def test_what_the_broker_does_not_take_is_handed_over_later(
    client: fakeredis.FakeRedis, broker: StubBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a broker that is away for a while, I expect every message once and in order when it is back."""
    fails = Fails(monkeypatch, broker)
    over = handing(client, broker, UpdateStream(client, UPDATES_STREAM, "a1", 1_000))
    for number in range(5):
        client.xadd(UPDATES_STREAM, {"event": event(f"m{number}")})
    over.connect()
    over.turn()
    fails.error = redis.ConnectionError("gone")
    with pytest.raises(redis.ConnectionError):
        over.turn()
    over.connect()  # as the loop does

    fails.error = None
    for _ in range(3):
        over.turn()

    handed = [dramatiq.Message.decode(broker.queues["index"].get_nowait()) for _ in range(5)]
    assert [message.kwargs["update"]["content"] for message in handed] == [f"m{number}" for number in range(5)]
    assert broker.queues["index"].empty()
    assert client.xinfo_groups(UPDATES_STREAM)[0]["pending"] == 0


def test_a_backlog_over_its_bound_is_told_of_once(client: fakeredis.FakeRedis, broker: StubBroker) -> None:
    """Given more messages than allowed over several looks, I expect one error and one count, and a line at the end."""
    log = UpdateStream(client, UPDATES_STREAM, "a1", 1_000)
    log.open()
    membership, lease = Membership(client, "a1"), Lease(client, "a1")
    keep = Maintenance(client, membership, lease, log, handing(client, broker, log), [], log_hours=1, max_backlog=3)
    for number in range(4):
        client.xadd(UPDATES_STREAM, {"event": event(f"m{number}")})
    with capture_logs() as lines:
        for _ in range(3):
            keep.turn()
        assert client.hgetall(COUNTERS) == {b"backlog_over": b"1"}
        log.read(10, None)
        log.ack([entry.id for entry in log.read(10, None)])
        for _ in range(2):
            keep.turn()
    assert [line["event"] for line in lines] == ["backlog_over", "backlog_back"]


def test_the_log_is_trimmed_by_age(client: fakeredis.FakeRedis, broker: StubBroker) -> None:
    """Given entries of two hours ago and LTM_STREAM_HOURS=1, I expect them gone after the keeper's turn."""
    log = UpdateStream(client, UPDATES_STREAM, "a1", 1_000)
    old = (int(client.time()[0]) - 7_200) * 1_000
    for number in range(500):
        client.xadd(UPDATES_STREAM, {"event": event("old")}, id=f"{old}-{number + 1}")
    client.xadd(UPDATES_STREAM, {"event": event("new")})
    log.open()
    log.read(1_000, None)
    log.ack([entry.id for entry in log.read(1_000, None)])

    Maintenance(
        client,
        Membership(client, "a1"),
        Lease(client, "a1"),
        log,
        handing(client, broker, log),
        [],
        1,
        max_backlog=1_000,
    ).turn()

    assert client.xlen(UPDATES_STREAM) < 200


def test_a_stuck_adapter_gives_no_sign(client: fakeredis.FakeRedis, broker: StubBroker) -> None:
    """Given a loop that does not turn, I expect no sign of life and no lease, so that another takes over."""
    log = UpdateStream(client, UPDATES_STREAM, "a1", 1_000)
    membership, lease = Membership(client, "a1"), Lease(client, "a1")
    stuck = Loop("stuck", lambda: None)
    stuck.pulse.alive = lambda: False  # type: ignore[method-assign]

    Maintenance(
        client, membership, lease, log, handing(client, broker, log), [stuck.pulse.alive], log_hours=1, max_backlog=1
    ).turn()

    assert membership.live() == set()
    assert not lease.held()
