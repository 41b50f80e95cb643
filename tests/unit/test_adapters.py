"""The adapters' parts on a fake Redis, one iteration at a time; what happens between them is tested on a real one."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import fakeredis
import pytest
import redis
from dramatiq.brokers.stub import StubBroker
from hypothesis import given, settings
from hypothesis import strategies as st
from keepsake_client.protocol import COUNTERS, MANAGING, MEMBERSHIP_KEY, UPDATES_STREAM
from keepsake_client.turns import TURN_FIELD, TURNS_STREAM
from redis.exceptions import NoPermissionError
from redis.lock import Lock
from structlog.testing import capture_logs

from adapters.dispatcher import Dispatcher
from adapters.leader import Lease
from adapters.ltm_requests import RequestAdapter
from adapters.ltm_responses import ResponsePublisher
from adapters.maintenance import Maintenance
from adapters.membership import Membership
from adapters.memory_updates import KEPT_S, SLACK_S, UpdateAdapter, says_logged
from adapters.stream import UpdateStream
from services.runtime.availability import Availability
from services.runtime.counters import PendingCounts
from services.runtime.rejected import RejectSink
from tests.unit.test_loop import Script

#: The longest wait for a message: an iteration that finds nothing ends at once.
POLL_TIMEOUT_S = 0.02
MANAGE_QUEUE = "ltm_requests:manage"


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
    return json.dumps({"user_id": "u1", "content": content, "source": "user"} | more)


def asked(request_id: str) -> str:
    return json.dumps({"request_id": request_id, "type": "search", "user_id": "u1", "data": {"query": "tea?"}})


# Requests to manage memories


def managing(request_id: str, kind: str = "user_forget") -> str:
    data = {
        "memory_update": {"id": "m", "content": "x"},
        "memory_delete": {"ids": ["m"]},
        "user_import": {"records": []},
    }
    return json.dumps({"request_id": request_id, "type": kind, "user_id": "u1", "data": data.get(kind, {})})


@pytest.mark.parametrize("kind", sorted(MANAGING))
def test_what_manages_is_taken_from_its_own_list_alone(
    client: fakeredis.FakeRedis, broker: StubBroker, kind: str
) -> None:
    """Given LTM_MANAGE_QUEUE, I expect a request that changes or hands out what a user has to be refused on the common
    list, which serves all others, and to be served on its own; without the setting, on the common one."""
    listener = client.pubsub()  # type: ignore[no-untyped-call]
    listener.subscribe("ltm_responses")
    listener.get_message(timeout=1)
    common = request_adapter(client, broker, managed_at=MANAGE_QUEUE)
    client.lpush("ltm_requests", managing("r1", kind), asked("r2"))
    common.run_once()
    common.run_once()

    refusal = json.loads(listener.get_message(timeout=1)["data"])
    assert (refusal["request_id"], refusal["user_id"], refusal["success"]) == ("r1", "u1", False)
    assert refusal["error"] == f"forbidden: {kind} is taken from ltm_requests:manage alone (LTM_MANAGE_QUEUE)"
    assert [message["request"]["request_id"] for message in enqueued(broker)] == ["r2"]
    assert client.lrange("ltm_requests:taken:a1", 0, -1) == []

    client.lpush(MANAGE_QUEUE, managing("r3", kind))
    request_adapter(client, broker, manages=True).run_once()
    client.lpush("ltm_requests", managing("r4", kind))
    request_adapter(client, broker).run_once()
    served = [message["request"]["request_id"] for queue in broker.queues for message in enqueued(broker, queue)]
    assert sorted(served) == ["r3", "r4"]


def test_both_lists_of_a_failed_adapter_are_claimed_before_it_is_evicted(
    client: fakeredis.FakeRedis, broker: StubBroker
) -> None:
    """Given a failed adapter that held a request of each list, I expect each to be served by the adapter of its list,
    whichever comes first."""
    client.zadd(MEMBERSHIP_KEY, {"failed": 1.0})
    client.lpush("ltm_requests:taken:failed", asked("r1"))
    client.lpush(f"{MANAGE_QUEUE}:taken:failed", managing("r2"))
    common = request_adapter(client, broker, 0.0, managed_at=MANAGE_QUEUE)
    common.run_once()
    assert client.zscore(MEMBERSHIP_KEY, "failed") is not None

    request_adapter(client, broker, 0.0, manages=True).run_once()
    common.run_once()

    assert client.zscore(MEMBERSHIP_KEY, "failed") is None
    assert [message["request"]["request_id"] for message in enqueued(broker)] == ["r1"]
    (forgotten,) = enqueued(broker, "writes")
    assert (forgotten["request"]["request_id"], forgotten["received_at"]) == ("r2", 1.0)


# Requests


class Fails:
    """A broker's `enqueue` that raises `error` while there is one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, broker: StubBroker) -> None:
        self.error: Exception | None = None
        self._enqueue = broker.enqueue
        monkeypatch.setattr(broker, "enqueue", self._try)

    def _try(self, message: dramatiq.Message[Any], **options: Any) -> dramatiq.Message[Any]:
        if self.error:
            raise self.error
        return self._enqueue(message, **options)


def request_adapter(
    client: fakeredis.FakeRedis, broker: StubBroker, claim_interval_s: float = 60.0, name: str = "a1", **manage: Any
) -> RequestAdapter:
    queue = MANAGE_QUEUE if manage.get("manages") else "ltm_requests"
    return RequestAdapter(
        client,
        queue,
        Membership(client, name),
        broker,
        ResponsePublisher(client, "ltm_responses"),
        RejectSink(client, queue),
        1_000,
        poll_timeout_s=POLL_TIMEOUT_S,
        claim_interval_s=claim_interval_s,
        **manage,
    )


def test_a_request_that_the_broker_took_without_saying_so_is_sent_as_the_same_message(
    client: fakeredis.FakeRedis, broker: StubBroker, requests: RequestAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a broker that takes a request and fails before it says so, I expect the next try to send the same message,
    of whose responses one is published; the same request, pushed again, is another message."""
    ids: list[str] = []
    outcomes: list[Exception | None] = [dramatiq.ConnectionClosed("unconfirmed"), None, None]

    def enqueue(message: dramatiq.Message[Any]) -> None:
        ids.append(message.message_id)
        if error := outcomes.pop(0):
            raise error

    monkeypatch.setattr(broker, "enqueue", enqueue)
    client.lpush("ltm_requests", asked("r1"))

    with pytest.raises(dramatiq.ConnectionClosed):
        requests.run_once()
    requests.run_once()
    client.lpush("ltm_requests", asked("r1"))
    requests.run_once()

    assert ids[0] == ids[1] != ids[2]


def test_a_request_is_taken_and_enqueued_by_the_clock_that_workers_compare_with(
    client: fakeredis.FakeRedis, broker: StubBroker
) -> None:
    """Given a clock that stands at 5, I expect that time as both moments of a request, whatever the host's is."""
    client.lpush("ltm_requests", asked("r1"))

    request_adapter(client, broker, clock=lambda: 5.0).run_once()

    [message] = enqueued(broker, "interactive")
    assert (message["received_at"], message["enqueued_at"]) == (5.0, 5.0)


@pytest.fixture
def requests(client: fakeredis.FakeRedis, broker: StubBroker) -> RequestAdapter:
    return request_adapter(client, broker)


def enqueued(broker: StubBroker, queue: str = "interactive") -> list[dict[str, Any]]:
    """The arguments of the messages on an actor queue, in order; they leave it."""
    messages = []
    while not broker.queues[queue].empty():
        messages.append(dramatiq.Message.decode(broker.queues[queue].get_nowait()).kwargs)
    return messages


@pytest.mark.parametrize("error", [redis.ConnectionError("gone"), redis.OutOfMemoryError("full")])
def test_a_request_stays_claimed_until_the_broker_takes_it(
    client: fakeredis.FakeRedis,
    broker: StubBroker,
    requests: RequestAdapter,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    """Given a broker that takes nothing for two iterations, I expect the request claimed, and enqueued after."""
    fails = Fails(monkeypatch, broker)
    fails.error = error
    client.lpush("ltm_requests", asked("r1"))
    for _ in range(2):
        with pytest.raises(type(error)):
            requests.run_once()
        assert client.lrange("ltm_requests:taken:a1", 0, -1) == [asked("r1").encode()]

    fails.error = None
    requests.run_once()

    assert broker.queues["interactive"].qsize() == 1
    assert client.keys() == []


def test_a_request_that_cannot_be_enqueued_is_answered(
    client: fakeredis.FakeRedis, broker: StubBroker, requests: RequestAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a request at which enqueueing breaks, I expect an error response, and the next one served."""
    fails = Fails(monkeypatch, broker)
    fails.error = ValueError("a bug")
    with client.pubsub(ignore_subscribe_messages=True) as answers:  # type: ignore[no-untyped-call]
        answers.subscribe("ltm_responses")
        answers.get_message()
        client.lpush("ltm_requests", asked("r1"))
        with capture_logs() as lines:
            requests.run_once()
        assert json.loads(answers.get_message()["data"])["error"] == "internal: ValueError"
    known = {"request_id": "r1", "exc_info": True, "log_level": "error"}
    assert lines[0] == {"event": "request_not_enqueued", **known}

    fails.error = None
    client.lpush("ltm_requests", asked("r2"))
    requests.run_once()
    assert broker.queues["interactive"].qsize() == 1
    assert client.keys() == []


def test_a_request_whose_move_lost_its_reply_is_served(
    client: fakeredis.FakeRedis, broker: StubBroker, requests: RequestAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a connection lost after Redis moved the request, I expect the next iteration to serve it, once."""
    move = client.blmove

    def lose_the_reply(*arguments: Any) -> None:
        move(*arguments)
        raise redis.ConnectionError("gone")

    client.lpush("ltm_requests", asked("r1"))
    with monkeypatch.context() as patch:
        patch.setattr(client, "blmove", lose_the_reply)
        with pytest.raises(redis.ConnectionError):
            requests.run_once()

    for _ in range(2):
        requests.run_once()

    assert [message["request"]["request_id"] for message in enqueued(broker)] == ["r1"]
    assert client.keys() == []


def test_claimed_requests_are_served_oldest_first(
    client: fakeredis.FakeRedis, broker: StubBroker, requests: RequestAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given claimed requests after an outage, I expect them enqueued in the order in which they were claimed.

    Two of them are equal, byte for byte: each is served.
    """
    sent = ["r1", "r2", "r3", "r1", "r4"]
    client.lpush("ltm_requests:taken:a1", *map(asked, sent))

    def fail(*_: Any) -> None:
        raise redis.ConnectionError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(client, "blmove", fail)
        with pytest.raises(redis.ConnectionError):
            requests.run_once()
    requests.run_once()

    assert [message["request"]["request_id"] for message in enqueued(broker)] == sent


def test_an_adapter_is_a_member_before_it_claims(client: fakeredis.FakeRedis, requests: RequestAdapter) -> None:
    """Given an adapter that has connected, I expect a heartbeat: nothing looks for the requests of an unknown one."""
    requests.connect()

    assert Membership(client, "other").live() == {"a1"}


def test_an_empty_request_is_rejected(client: fakeredis.FakeRedis, requests: RequestAdapter) -> None:
    """Given a request without a byte, I expect it counted as a reject, and not left claimed."""
    client.lpush("ltm_requests", "")

    requests.run_once()

    assert client.hgetall(COUNTERS) == {b"rejected": b"1"}
    assert client.keys("ltm_requests*") == []


def test_a_request_is_received_when_it_is_moved(
    client: fakeredis.FakeRedis, broker: StubBroker, requests: RequestAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a request that comes while the adapter waits, I expect the end of the wait as the time of its receipt."""
    move = client.blmove
    came_at: list[float] = []

    def wait(*arguments: Any) -> Any:
        time.sleep(0.02)
        came_at.append(time.time())
        return move(*arguments)

    monkeypatch.setattr(client, "blmove", wait)
    client.lpush("ltm_requests", asked("r1"))
    requests.run_once()

    [message] = enqueued(broker)
    assert came_at[0] <= message["received_at"] <= message["enqueued_at"] <= time.time()


def test_an_adapter_that_failed_long_ago_is_evicted(client: fakeredis.FakeRedis, broker: StubBroker) -> None:
    """Given an adapter that failed 11 minutes ago, I expect its request served, and no member of its name."""
    client.zadd(MEMBERSHIP_KEY, {"failed": float(client.time()[0]) - 660})
    client.lpush("ltm_requests:taken:failed", asked("r1"))

    request_adapter(client, broker).run_once()

    assert len(enqueued(broker)) == 1
    assert client.zscore(MEMBERSHIP_KEY, "failed") is None


def test_the_requests_of_a_failed_adapter_are_claimed(client: fakeredis.FakeRedis, broker: StubBroker) -> None:
    """Given two requests of an adapter that failed a minute ago, and one of a live one, I expect the two enqueued.

    They come in order, as received at its last heartbeat, and it stays a member: it may only be frozen.
    """
    requests = request_adapter(client, broker)
    requests.connect()
    last_heartbeat = float(client.time()[0]) - 60
    client.zadd(MEMBERSHIP_KEY, {"failed": last_heartbeat, "live": last_heartbeat + 59})
    client.lpush("ltm_requests:taken:failed", asked("r1"), asked("r2"))
    client.lpush("ltm_requests:taken:live", asked("r3"))

    with capture_logs() as lines:
        requests.run_once()

    claimed = [(message["request"]["request_id"], message["received_at"]) for message in enqueued(broker)]
    assert claimed == [("r1", last_heartbeat), ("r2", last_heartbeat)]
    assert client.keys("ltm_requests*") == [b"ltm_requests:taken:live"]
    assert client.zscore(MEMBERSHIP_KEY, "failed") == last_heartbeat
    claim = {"event": "request_claimed", "at": "ltm_requests", "failed_adapter": "failed", "log_level": "warning"}
    assert lines == [claim] * 2


def test_a_request_of_a_failed_adapter_waits_for_the_broker(
    client: fakeredis.FakeRedis, broker: StubBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given two requests of a failed adapter and a broker that takes nothing at first, I expect both, in order."""
    requests = request_adapter(client, broker)
    client.zadd(MEMBERSHIP_KEY, {"failed": float(client.time()[0]) - 60})
    client.lpush("ltm_requests:taken:failed", asked("r1"), asked("r2"))
    fails = Fails(monkeypatch, broker)
    fails.error = redis.ConnectionError("gone")
    with pytest.raises(redis.ConnectionError):
        requests.run_once()

    fails.error = None
    requests.run_once()

    assert [message["request"]["request_id"] for message in enqueued(broker)] == ["r1", "r2"]
    assert client.keys("ltm_requests*") == []


@pytest.mark.parametrize(("interval_s", "looks"), [(60.0, 1), (0.0, 3)])
def test_failed_adapters_are_looked_for_now_and_then(
    client: fakeredis.FakeRedis,
    broker: StubBroker,
    monkeypatch: pytest.MonkeyPatch,
    interval_s: float,
    looks: int,
) -> None:
    """Given three iterations, I expect one look where the interval is longer than they, and three where it is 0."""
    looked: list[None] = []

    def failed(_: Membership) -> dict[str, float]:
        looked.append(None)
        return {}

    monkeypatch.setattr(Membership, "failed", failed)
    requests = request_adapter(client, broker, interval_s)

    for _ in range(3):
        requests.run_once()

    assert len(looked) == looks


def test_released_requests_are_taken_next_and_in_order(client: fakeredis.FakeRedis, requests: RequestAdapter) -> None:
    """Given two claimed requests and one that waits, I expect them on the list as they came."""
    client.lpush("ltm_requests:taken:a1", "r1", "r2")
    client.lpush("ltm_requests", "r3")

    with capture_logs() as lines:
        requests.release()

    assert client.lrange("ltm_requests", 0, -1) == [b"r3", b"r2", b"r1"]
    assert client.keys() == [b"ltm_requests"]
    assert lines == [{"event": "request_released", "at": "ltm_requests", "log_level": "info"}] * 2


REFUSALS = [
    redis.OutOfMemoryError("OOM command not allowed"),
    redis.ReadOnlyError("You can't write against a read only replica."),
    redis.ResponseError("MISCONF Redis is configured to save RDB snapshots, but it cannot persist on disk"),
    redis.ResponseError("NOREPLICAS Not enough good replicas to write."),
]


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: type(error).__name__)
def test_a_server_that_refuses_all_writes_is_logged_once(error: Exception) -> None:
    """Given a full Redis over many iterations, I expect one line when it refuses and one when it accepts again."""
    with capture_logs() as lines:
        Script([None, error, error, error, None]).play()
    assert [line["event"] for line in lines] == ["dependency_down", "dependency_up"]


# The channel


class Channel:
    """An adapter of the channel, what it wrote, the lease, and a clock that runs `late` seconds ahead."""

    def __init__(
        self, client: fakeredis.FakeRedis, name: str = "a1", late: float = 0.0, confirmed: bool = True, **options: Any
    ) -> None:
        self.client = client
        self.late = late
        self.lease = Lease(client, name)
        self.writes = Availability("redis", at="writes")
        self.counts = PendingCounts(COUNTERS)
        stream = UpdateStream(client, UPDATES_STREAM, name, max_len=1_000)
        rejects = RejectSink(client, "memory_updates")
        self.adapter = UpdateAdapter(
            client,
            "memory_updates",
            stream,
            self.lease,
            rejects,
            1_000,
            writes=self.writes,
            counts=self.counts,
            clock=lambda: time.time() + self.late,
            **{"poll_timeout_s": POLL_TIMEOUT_S} | options,
        )
        self.adapter.connect()
        if confirmed:
            self.adapter.run_once()  # it receives the confirmation

    def receive(self, *events: str) -> None:
        for each in events:
            self.client.publish("memory_updates", each)
        self.run(len(events))

    def run(self, times: int = 1) -> None:
        for _ in range(times):
            self.adapter.run_once()

    def written(self) -> list[dict[str, Any]]:
        entries: Any = self.client.xrange(UPDATES_STREAM)
        return [json.loads(fields[b"event"]) for _, fields in entries]


def test_only_what_is_not_logged_is_written(client: fakeredis.FakeRedis) -> None:
    """Given events that say they are in the stream and others, one of which only quotes it, I expect the others."""
    channel = Channel(client)
    channel.lease.renew()

    channel.receive(
        event("logged", logged=True), event("not logged"), event("x", meta={"logged": True}), event('"logged": true')
    )

    assert [written["content"] for written in channel.written()] == ["not logged", "x", '"logged": true']


def test_an_event_without_time_and_id_gets_both(client: fakeredis.FakeRedis) -> None:
    """Given events without them, I expect both in the stream; equal contents have two ids, equal events one."""
    channel = Channel(client)
    channel.lease.renew()

    channel.receive(event("ok"), event("ok"), *[event("ok", timestamp=1_712_345_678)] * 2, event("ok", message_id="m1"))

    first, second, third, fourth, fifth = channel.written()
    assert first["timestamp"] != second["timestamp"]
    assert len({first["message_id"], second["message_id"], third["message_id"]}) == 3
    assert third == fourth
    assert fifth["message_id"] == "m1"


def test_a_leader_writes_equal_messages_each_time(client: fakeredis.FakeRedis) -> None:
    """Given a leader that receives the same bytes twice, one after the other, I expect both in the stream."""
    channel = Channel(client)
    channel.lease.renew()

    for _ in range(2):
        channel.receive(event("ok"))

    assert [written["content"] for written in channel.written()] == ["ok", "ok"]


def test_the_same_words_of_two_users_are_two_events(client: fakeredis.FakeRedis) -> None:
    """Given one content and time of two users, and of a user and the AI, I expect three ids."""
    channel = Channel(client)
    channel.lease.renew()

    channel.receive(*(event("ok", timestamp=1, **who) for who in ({}, {"user_id": "u2"}, {"source": "ai"})))

    assert len({written["message_id"] for written in channel.written()}) == 3


def test_only_the_leader_writes(client: fakeredis.FakeRedis) -> None:
    """Given two adapters, I expect what both received once in the stream, and a bad one rejected once."""
    first, second = Channel(client, "a1"), Channel(client, "a2")
    for each in (first, second):
        each.lease.renew()
    assert (first.lease.held(), second.lease.held()) == (True, False)

    first.receive(event("hello"), "bad")
    second.run(2)

    assert len(first.written()) == 1
    assert client.hgetall(COUNTERS) == {b"rejected": b"1"}


def test_a_new_leader_writes_what_the_last_one_had_not(client: fakeredis.FakeRedis) -> None:
    """Given a leader that fails after it wrote two of four equal events, I expect the other two from the next."""
    first, second = Channel(client, "a1"), Channel(client, "a2")
    first.lease.renew()
    first.receive(event("ok"), event("ok"))
    for _ in range(2):
        client.publish("memory_updates", event("ok"))
    second.run(4)

    first.lease.release()  # as if it had run out
    second.lease.renew()
    second.run()

    assert [written["content"] for written in second.written()] == ["ok"] * 4


@pytest.mark.parametrize("late", [1.5, SLACK_S - 0.2])
def test_a_new_leader_that_receives_late_writes_nothing_twice(client: fakeredis.FakeRedis, late: float) -> None:
    """Given an adapter that subscribed and received up to 2 s after the leader wrote, I expect no second entry.

    By its clock the entry is older than its subscription, so it looks a little further back.
    """
    first, second = Channel(client, "a1"), Channel(client, "a2", late)
    first.lease.renew()
    first.receive(event("written"))
    second.run()

    first.lease.release()
    second.lease.renew()
    second.run()

    assert [written["content"] for written in second.written()] == ["written"]


@pytest.mark.parametrize("frozen_s", [5, 60])
def test_a_new_leader_that_was_frozen_writes_nothing_twice(client: fakeredis.FakeRedis, frozen_s: float) -> None:
    """Given an adapter that subscribed early and receives long after the leader wrote, I expect no second entry."""
    first, second = Channel(client, "a1"), Channel(client, "a2")
    first.lease.renew()
    first.receive(event("written"))
    second.late = frozen_s
    second.run()

    first.lease.release()
    second.lease.renew()
    second.run()

    assert [written["content"] for written in second.written()] == ["written"]


def test_a_new_leader_leaves_out_recent_messages_alone(client: fakeredis.FakeRedis) -> None:
    """Given an "ok" that was written long ago and one that was not written, I expect the second to be written."""
    first, second = Channel(client, "a1"), Channel(client, "a2")
    first.lease.renew()
    first.receive(event("ok"))
    second.run()
    first.lease.release()
    second.late = KEPT_S + SLACK_S + 1
    second.run()
    second.receive(event("ok"))

    second.lease.renew()
    second.run()

    assert [written["content"] for written in second.written()] == ["ok", "ok"]


def test_a_new_leader_that_has_not_read_everything_writes_nothing_twice(client: fakeredis.FakeRedis) -> None:
    """Given a slow adapter that leads before it reads what the last leader wrote, I expect no second entry."""
    first, second = Channel(client, "a1"), Channel(client, "a2")
    first.lease.renew()
    first.receive(*(event(f"m{number}") for number in range(3)))
    first.lease.release()
    client.publish("memory_updates", event("m3"))
    second.lease.renew()

    second.run(5)

    assert [written["content"] for written in second.written()] == ["m0", "m1", "m2", "m3"]


def test_an_adapter_that_leads_from_its_first_iteration_writes_nothing_twice(client: fakeredis.FakeRedis) -> None:
    """Given an adapter that has subscribed, and leads before its first iteration, I expect no second entry."""
    first, second = Channel(client, "a1"), Channel(client, "a2", confirmed=False)
    first.lease.renew()
    first.receive(event("written"))
    first.lease.release()
    second.lease.renew()

    second.run(3)

    assert [written["content"] for written in second.written()] == ["written"]


def test_a_leader_that_was_followed_by_another_writes_nothing_twice(client: fakeredis.FakeRedis) -> None:
    """Given a leader that loses the lease and gets it back, I expect it to leave out what the other wrote meanwhile."""
    first, second = Channel(client, "a1"), Channel(client, "a2")
    first.lease.renew()
    first.receive(event("m0"))
    first.lease.release()
    second.lease.renew()
    client.publish("memory_updates", event("m1"))
    first.run()
    second.run(3)

    second.lease.release()
    first.lease.renew()
    first.run()

    assert [written["content"] for written in first.written()] == ["m0", "m1"]


def test_a_leader_that_gets_the_lease_back_writes_equal_messages_each_time(client: fakeredis.FakeRedis) -> None:
    """Given five equal messages of one moment, and a leader that loses the lease after the second and gets it back
    after the fourth, I expect five: what it wrote itself does not stand for what it has not."""
    channel = Channel(client)
    channel.lease.renew()
    channel.run()  # now it leads
    for _ in range(5):
        client.publish("memory_updates", event("ok"))
    channel.run(2)
    channel.lease.release()
    channel.run(2)

    channel.lease.renew()
    channel.run(2)

    assert [written["content"] for written in channel.written()] == ["ok"] * 5


def test_two_adapters_that_lead_in_turn_write_equal_messages_each_time(client: fakeredis.FakeRedis) -> None:
    """Given nine equal messages of one moment, and a lease that goes to and fro between two adapters with each, I
    expect nine: neither takes one that it knows to be written for one that is not."""
    adapters = Channel(client, "a1"), Channel(client, "a2")
    for number in range(9):
        leader, follower = adapters[number % 2], adapters[(number + 1) % 2]
        client.publish("memory_updates", event("ok"))
        follower.run()
        leader.lease.renew()
        leader.run()
        leader.lease.release()

    assert [written["content"] for written in leader.written()] == ["ok"] * 9


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0, 1, 2]), st.sampled_from([0, 1, None]), st.booleans()), min_size=8))
def test_however_the_lease_changes_hands_no_message_is_lost(steps: list[tuple[int, int | None, bool]]) -> None:
    """Given two adapters that hear all, and a lease that goes to either or to none at any moment, I expect each of the
    equal messages in the stream."""
    with fakeredis.FakeRedis() as client:
        adapters = [Channel(client, name, poll_timeout_s=0.0) for name in ("a1", "a2")]
        published = 0

        def lead(number: int | None) -> None:
            for adapter in adapters:
                adapter.lease.release()
            if number is not None:
                adapters[number].lease.renew()

        for count, leader, both_run in steps:
            for _ in range(count):
                client.publish("memory_updates", event("ok"))
            published += count
            lead(leader)
            for number, adapter in enumerate(adapters):
                if both_run or number == leader:
                    adapter.run()
        lead(0)
        adapters[0].run(published + 1)

        assert len(adapters[0].written()) >= published


@pytest.mark.parametrize(("behind", "later"), [(0, 1), (1, SLACK_S + 0.5)], ids=["at once", "a second later"])
def test_a_new_leader_writes_what_is_equal_to_what_it_forgot(
    client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch, behind: float, later: float
) -> None:
    """Given a follower that forgets an "ok" that the leader wrote, and another one soon after, which nothing has
    written, I expect both in the stream."""
    first, second = Channel(client, "a1", late=behind), Channel(client, "a2")
    first.lease.renew()
    write_then(first, event("ok"), monkeypatch)
    second.run()
    first.lease.release()
    second.late = later
    second.run()
    second.receive(event("ok"))
    second.late = KEPT_S + 0.5
    second.run()

    second.lease.renew()
    second.run()

    assert [written["content"] for written in second.written()] == ["ok", "ok"]


def test_a_leader_whose_lease_ends_writes_no_further(
    client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given ten messages, and a lease that ends as the leader writes the third, I expect the other seven from the next
    one, and none of them twice."""
    first, second = Channel(client, "a1"), Channel(client, "a2")
    first.lease.renew()
    for number in range(10):
        client.publish("memory_updates", event(f"m{number}"))
    append = client.xadd

    def expires(*args: Any, **options: Any) -> Any:
        entry_id = append(*args, **options)
        if client.xlen(UPDATES_STREAM) == 3:
            first.lease.release()
            second.lease.renew()
        return entry_id

    monkeypatch.setattr(client, "xadd", expires)
    first.run()
    assert [written["content"] for written in first.written()] == ["m0", "m1", "m2"]

    second.run()

    assert [written["content"] for written in second.written()] == [f"m{number}" for number in range(10)]


@pytest.mark.parametrize("leads", [False, True], ids=["as it begins to lead", "as it subscribes anew"])
def test_a_leader_that_gets_the_lease_back_at_once_writes_nothing_twice(
    client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch, leads: bool
) -> None:
    """Given a lease that goes to another adapter as the leader writes several messages, and is back before it looks
    again, I expect what the other wrote meanwhile once."""
    first, second = Channel(client, "a1"), Channel(client, "a2")
    first.lease.renew()
    if leads:
        first.run()
    append = client.xadd

    def expires(*args: Any, **options: Any) -> Any:
        first.lease.release()
        return append(*args, **options)

    for number in range(3):
        client.publish("memory_updates", event(f"m{number}"))
    if leads:
        first.adapter.connect()  # it receives what has come before that
    with monkeypatch.context() as patch:
        patch.setattr(client, "xadd", expires)
        first.run()
    second.lease.renew()
    second.run()
    second.lease.release()
    first.lease.renew()
    first.run()

    assert [written["content"] for written in first.written()] == ["m0", "m1", "m2"]


def test_what_was_written_is_remembered_while_an_older_message_is_kept(
    client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a leader that subscribed late and so missed an "x" and an "ok", and a follower that heard all and gets a
    lease that ends before it has written, I expect both from it once it leads again."""
    second = Channel(client, "a2")
    second.receive(event("x"), event("ok"))
    first = Channel(client, "a1")
    first.lease.renew()
    first.receive(event("ok"))
    second.run()
    second.late = 5
    second.run(2)
    first.receive(event("later"))
    second.run()
    first.lease.release()
    read = client.xrange

    def expires(*args: Any, **options: Any) -> Any:
        second.lease.release()
        return read(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(client, "xrange", expires)
        second.lease.renew()
        second.run()
    second.lease.renew()
    second.run()

    assert sorted(written["content"] for written in second.written()) == ["later", "ok", "ok", "x"]


def test_what_was_written_long_ago_stands_for_nothing(
    client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given an "ok" that an adapter wrote, and one of half a minute later that the last leader wrote, I expect no third
    from the next one, which is that adapter again."""
    first, second = Channel(client, "a1"), Channel(client, "a2")
    second.lease.renew()
    second.receive(event("ok"))
    second.lease.release()
    first.run()
    first.late = second.late = 30
    first.run()
    second.run()
    first.lease.renew()
    write_then(first, event("ok"), monkeypatch)
    second.run()

    first.lease.release()
    second.lease.renew()
    second.run()

    assert [written["content"] for written in second.written()] == ["ok", "ok"]


def test_what_another_wrote_is_remembered_with_its_own_time(
    client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given an "ok" that an adapter wrote, one that another wrote 1.5 s later, and one after 3 s that nothing has
    written, I expect three: by then the second is known, and the first no longer looked at."""
    first, second = Channel(client, "a1"), Channel(client, "a2")
    second.lease.renew()
    second.receive(event("ok"))
    second.lease.release()
    second.run()  # it no longer leads
    first.run()
    first.late = second.late = 1.5
    first.lease.renew()
    first.run()
    write_then(first, event("ok"), monkeypatch)
    first.lease.release()
    second.lease.renew()
    second.run()
    second.lease.release()
    second.late = 3.0
    second.run()
    second.receive(event("ok"))

    second.lease.renew()
    second.run()

    assert [written["content"] for written in second.written()] == ["ok"] * 3


def write_then(channel: Channel, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an adapter receive a message and write it, at the time of its clock by the clock of Redis as well."""
    append = channel.client.xadd
    entry_id = int((time.time() + channel.late) * 1000)
    with monkeypatch.context() as patch:
        patch.setattr(channel.client, "xadd", lambda key, fields, **_: append(key, fields, id=entry_id))
        channel.receive(message)


def test_a_write_whose_reply_was_lost_is_made_once(
    client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a write that succeeds and times out, and Redis found to take writes before the adapter looks again, I
    expect one entry."""
    channel = Channel(client)
    channel.lease.renew()
    channel.run()  # now it leads
    append = client.xadd

    def loses_the_reply(*args: Any, **options: Any) -> Any:
        append(*args, **options)
        raise redis.TimeoutError("slow")

    with monkeypatch.context() as patch:
        patch.setattr(client, "xadd", loses_the_reply)
        channel.receive(event("m0"))
    channel.writes.up()
    channel.run(2)

    assert [written["content"] for written in channel.written()] == ["m0"]


@pytest.mark.parametrize(("age", "contents"), [(KEPT_S - 1, ["m0", "m1"]), (KEPT_S + 1, ["m1"])])
def test_a_follower_keeps_the_last_seconds(client: fakeredis.FakeRedis, age: float, contents: list[str]) -> None:
    """Given a channel without a leader, I expect the next one to write what is no older than that."""
    channel = Channel(client)
    channel.receive(event("m0"))
    channel.late = age
    channel.receive(event("m1"))

    channel.lease.renew()
    channel.run()

    assert [written["content"] for written in channel.written()] == contents


def test_a_follower_keeps_no_more_than_it_may(client: fakeredis.FakeRedis) -> None:
    """Given max_kept=2, I expect the last two messages of a channel without a leader, the first time and later ones.

    A leader that a follower succeeds keeps its bound when it follows again.
    """
    first, second = Channel(client, "a1", max_kept=2), Channel(client, "a2")
    first.receive(event("m0"), event("m1"), event("m2"))
    first.lease.renew()
    first.run()
    assert [written["content"] for written in first.written()] == ["m1", "m2"]

    first.lease.release()
    first.receive(event("m3"), event("m4"), event("m5"))
    first.lease.renew()
    first.run()

    assert [written["content"] for written in second.written()] == ["m1", "m2", "m4", "m5"]


def test_an_event_without_a_time_has_that_of_its_receipt(client: fakeredis.FakeRedis) -> None:
    """Given an event that is written five seconds after it was received, I expect the time of its receipt."""
    channel = Channel(client, late=-5)
    channel.receive(event("m0"))
    received = time.time() - 5
    channel.late = 0

    channel.lease.renew()
    channel.run()

    [written] = channel.written()
    assert written["timestamp"] == pytest.approx(received, abs=2)


def test_a_burst_arrives_when_it_begins(client: fakeredis.FakeRedis) -> None:
    """Given events that waited while another was written, I expect them to have arrived with that one, as a deletion
    goes by it, and to be dated by their receipt; what comes after a pause arrives then."""
    channel, begun = Channel(client), time.time()
    channel.lease.renew()
    channel.run()  # now it leads
    for number in range(3):
        client.publish("memory_updates", event(f"m{number}"))
    channel.run()
    channel.late = 5
    channel.run()
    channel.late = 100
    channel.run(2)
    channel.receive(event("later"))

    entries: Any = client.xrange(UPDATES_STREAM)
    arrived = [float(fields[b"arrived_at"]) - begun for _, fields in entries]
    assert arrived[0] == arrived[1] < 4
    assert 90 - 4 < arrived[2] < 95  # no more than ten seconds before its receipt
    assert arrived[3] >= 100
    dated = [written["timestamp"] - begun for written in channel.written()]
    assert 5 <= dated[1] < 100 <= dated[2]


def test_what_is_received_while_redis_refuses_writes_is_kept(client: fakeredis.FakeRedis) -> None:
    """Given two minutes in which Redis refuses writes, I expect all that was received in them written after, each with
    the time at which it was heard: a deletion goes by it."""
    channel, begun = Channel(client), time.time()
    channel.lease.renew()
    channel.run()
    with capture_logs():
        channel.writes.down("full")
    channel.receive(event("m0"))
    channel.late = 120
    channel.run()
    channel.receive(event("m1"))
    assert channel.written() == []

    channel.writes.up()
    channel.lease.renew()
    channel.run()

    assert [written["content"] for written in channel.written()] == ["m0", "m1"]
    entries: Any = client.xrange(UPDATES_STREAM)
    first, second = (float(fields[b"arrived_at"]) - begun for _, fields in entries)
    assert 0 <= first < 100
    assert second >= 120


@pytest.mark.parametrize("error", [*REFUSALS, redis.TimeoutError("slow"), redis.ConnectionError("gone")])
def test_a_refused_write_does_not_end_the_subscription(
    client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Given a write that fails, I expect what is published meanwhile received, and each message written once after."""
    channel = Channel(client)
    channel.lease.renew()

    def refuse(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch, capture_logs() as lines:
        patch.setattr(client, "xadd", refuse)
        channel.receive(event("m0"), event("m1"), event("m2"))
    assert [line["event"] for line in lines] == ["dependency_down"]

    channel.writes.up()
    channel.receive(event("m3"))

    assert [written["content"] for written in channel.written()] == ["m0", "m1", "m2", "m3"]


@pytest.mark.parametrize(("lost", "sent"), [(0, 2), (3, 5)])
def test_what_cannot_be_kept_is_counted(client: fakeredis.FakeRedis, lost: int, sent: int) -> None:
    """Given room for two messages while Redis refuses writes, I expect the last two written, the others counted once
    and told in one line."""
    channel = Channel(client, max_kept=2)
    with capture_logs() as lines:
        channel.writes.down("full")
        channel.receive(*(event(f"m{number}") for number in range(sent)))
        channel.writes.up()
        channel.lease.renew()
        channel.run(2)
    channel.counts.flush(client)

    assert [written["content"] for written in channel.written()] == [f"m{sent - 2}", f"m{sent - 1}"]
    assert client.hgetall(COUNTERS) == ({b"updates_lost": b"%d" % lost} if lost else {})
    assert [line["lost"] for line in lines if line["event"] == "updates_lost"] == ([lost] if lost else [])


def test_what_a_leader_that_was_restarted_had_not_heard_is_written_by_another(client: fakeredis.FakeRedis) -> None:
    """Given two adapters that heard a refusal from its beginning and a leader that was started in it, I expect what
    the leader lacks from one of the two, later, and nothing twice."""
    first, second = Channel(client, "a1"), Channel(client, "a2")
    with capture_logs():
        for each in (first, second):
            each.writes.down("full")
        first.receive(event("m0"))
        second.run()
        restarted = Channel(client, "a3")
        restarted.writes.down("full")
        first.receive(event("m1"))
        for each in (second, restarted):
            each.run()
    adapters = (first, second, restarted)
    for each in adapters:
        each.writes.up()
    restarted.lease.renew()
    for each in (restarted, first, second):
        each.run()
    assert [written["content"] for written in restarted.written()] == ["m1"]

    for each in adapters:
        each.late = KEPT_S + 1
    for _ in range(2):
        restarted.lease.renew()
        for each in adapters:
            each.run()

    assert [written["content"] for written in restarted.written()] == ["m1", "m0"]


def test_what_was_kept_is_written_some_at_a_time(client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given more than one iteration may write, and a leader that fails in the middle, I expect its lease kept until
    then, and the rest written by the next leader, nothing twice.

    An iteration of many seconds would outlast the lease, and the loop would be taken for a stuck one.
    """
    monkeypatch.setattr("adapters.memory_updates.WRITTEN_AT_ONCE", 2)
    first, second = Channel(client, "a1"), Channel(client, "a2")
    with capture_logs():
        for each in (first, second):
            each.writes.down("full")
        first.receive(*(event(f"m{number}") for number in range(5)))
        second.run(5)
    for each in (first, second):
        each.writes.up()
    first.lease.renew()
    first.run()
    assert [written["content"] for written in first.written()] == ["m0", "m1"]
    first.lease.release()
    second.lease.renew()
    second.run()
    assert len(first.written()) == 2

    client.delete("ltm:channel-writer")  # it expires
    second.run(2)
    second.receive(event("m5"))

    assert [written["content"] for written in second.written()] == ["m0", "m1", "m2", "m3", "m4", "m5"]


def test_what_cannot_be_read_is_rejected_once(client: fakeredis.FakeRedis) -> None:
    """Given bytes that are no event, heard by two adapters while Redis refuses writes, I expect one reject."""
    first, second = Channel(client, "a1"), Channel(client, "a2")
    with capture_logs():
        for each in (first, second):
            each.writes.down("full")
        first.receive("bad")
        second.run()
        for each in (first, second):
            each.writes.up()
        first.lease.renew()
        first.run()
        second.late = KEPT_S + 1
        second.run(2)

    assert client.hgetall(COUNTERS) == {b"rejected": b"1"}


def test_access_rules_of_an_earlier_version_are_enough_to_lead(
    client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given an ACL without the key of the second lease, I expect the leader to write what it kept during a refusal."""
    channel = Channel(client)
    with capture_logs():
        channel.writes.down("full")
    channel.receive(event("m0"))
    channel.writes.up()
    channel.lease.renew()

    def refuse(*_: Any, **__: Any) -> None:
        raise redis.exceptions.NoPermissionError("No permissions to access a key")

    monkeypatch.setattr(Lock, "acquire", refuse)
    channel.run()

    assert [written["content"] for written in channel.written()] == ["m0"]


def test_what_is_kept_at_the_end_is_reported(client: fakeredis.FakeRedis) -> None:
    """Given an adapter that stops while Redis refuses writes, I expect one line with the number that it kept."""
    channel = Channel(client)
    with capture_logs() as lines:
        channel.writes.down("full")
        channel.receive(event("m0"), event("m1"))
        channel.adapter.stop()

    assert [(line["event"], line.get("kept")) for line in lines] == [
        ("dependency_down", None),
        ("updates_not_written", 2),
    ]


@pytest.mark.parametrize("raw", [b"", b"logged", b'["logged"]', b'{"logged"', b'{"logged": "true"}', b'"logged"' * 9])
def test_nothing_else_says_that_it_is_logged(raw: bytes) -> None:
    """Given bytes that are no such JSON object, I expect the event to count as not written."""
    assert not says_logged(raw)


# Maintenance


class Site:
    """The maintenance of one adapter, and what it works on."""

    def __init__(self, client: fakeredis.FakeRedis, broker: StubBroker, **options: Any) -> None:
        self.client: Any = client
        self.stream = UpdateStream(client, UPDATES_STREAM, "a1", 1_000)
        self.stream.open()
        failed_after_s = options.pop("failed_after_s", 10.0)
        self.membership = Membership(client, "a1", failed_after_s=failed_after_s)
        self.lease = Lease(client, "a1")
        rejects = RejectSink(client, UPDATES_STREAM)
        dispatcher = Dispatcher(self.stream, self.membership, broker, rejects, 1_000, prefetch=100, window=10)
        self.resets = 0
        dispatcher.reset = self._count_reset  # type: ignore[method-assign]
        self.maintenance = Maintenance(
            client,
            self.membership,
            self.lease,
            self.stream,
            dispatcher,
            options.pop("checks", []),
            **{
                "stream_hours": 1,
                "turns_hours": 1,
                "max_backlog": 1_000,
                "interval_s": 0,
                "measure_interval_s": 0,
                **options,
            },
        )

    def _count_reset(self) -> None:
        self.resets += 1

    def run(self, times: int = 1) -> None:
        for _ in range(times):
            self.maintenance.run_once()


def publish(client: Any, count: int) -> None:
    for number in range(count):
        client.xadd(UPDATES_STREAM, {"event": event(f"m{number}")})


def test_a_new_adapter_leaves_the_lease_to_those_that_were_subscribed(
    client: fakeredis.FakeRedis, broker: StubBroker
) -> None:
    """Given another live adapter, I expect a new one to bid for the free lease only after the other had its chance.

    A leader that was killed and restarted at once would lead again, without what was published meanwhile.
    """
    now = 0.0
    Membership(client, "a2").heartbeat()
    site = Site(client, broker, newcomer_wait_s=5.0, subscribed_s=lambda: now)

    site.run()
    assert not site.lease.held()

    now = 5.0
    site.run()
    assert site.lease.held()


def test_an_adapter_leads_where_all_have_just_subscribed(client: fakeredis.FakeRedis, broker: StubBroker) -> None:
    """Given adapters whose connections are closed again and again, I expect one to bid once the lease was free for as
    long as the others had a chance, and not before."""
    now = 0.0
    Membership(client, "a2").heartbeat()
    other = Lease(client, "a2")
    site = Site(client, broker, newcomer_wait_s=5.0, subscribed_s=lambda: 0.0, clock=lambda: now)
    other.renew()
    now = 6.0
    site.run()
    other.release()
    now = 10.9
    site.run()
    assert not site.lease.held()

    now = 11.0
    site.run()
    assert site.lease.held()


def test_an_adapter_that_is_alone_leads_at_once(client: fakeredis.FakeRedis, broker: StubBroker) -> None:
    site = Site(client, broker, newcomer_wait_s=5.0, subscribed_s=lambda: 0.0)

    site.run()

    assert site.lease.held()


def test_a_backlog_over_its_bound_is_reported_once(client: fakeredis.FakeRedis, broker: StubBroker) -> None:
    """Given more messages than allowed over several looks, I expect one error and one count, and a line at the end."""
    site = Site(client, broker, max_backlog=3)
    publish(client, 4)
    with capture_logs() as lines:
        site.run(3)
        assert client.hgetall(COUNTERS) == {b"backlog_over": b"1"}
        site.stream.read(10, None)
        first, *_ = site.stream.read(10, None)
        site.stream.ack([first.id])
        site.run(2)
    assert lines == [
        {"event": "backlog_over", "waiting": 4, "allowed": 3, "log_level": "error"},
        {"event": "backlog_recovered", "waiting": 3, "log_level": "info"},
    ]


def test_a_backlog_at_its_bound_is_not_over_it(client: fakeredis.FakeRedis, broker: StubBroker) -> None:
    """Given as many messages as allowed, I expect nothing reported."""
    site = Site(client, broker, max_backlog=3)
    publish(client, 3)

    with capture_logs() as lines:
        site.run()

    assert lines == []


@pytest.mark.parametrize(("measure_interval_s", "measured"), [(60, 1), (0, 3)])
def test_the_stream_is_measured_and_trimmed_now_and_then(
    client: fakeredis.FakeRedis,
    broker: StubBroker,
    monkeypatch: pytest.MonkeyPatch,
    measure_interval_s: float,
    measured: int,
) -> None:
    """Given three iterations of a leader, I expect measurements at their interval, and one trim a minute."""
    site = Site(client, broker, measure_interval_s=measure_interval_s)
    calls: Counter[str] = Counter()

    def note(name: str) -> Callable[..., int]:
        def count(*_: Any) -> int:
            calls[name] += 1
            return 0

        return count

    for name in ("backlog", "count_trimmed", "trim"):
        monkeypatch.setattr(site.stream, name, note(name))

    site.run(3)

    assert calls == {"backlog": measured, "count_trimmed": measured, "trim": 1}


def test_the_stream_is_trimmed_by_age(client: fakeredis.FakeRedis, broker: StubBroker) -> None:
    """Given entries of two hours ago and LTM_STREAM_HOURS=1, I expect them gone after one iteration of the leader."""
    site = Site(client, broker)
    old = (int(client.time()[0]) - 7_200) * 1_000
    for number in range(500):
        client.xadd(UPDATES_STREAM, {"event": event("old")}, id=f"{old}-{number + 1}")
    client.xadd(UPDATES_STREAM, {"event": event("new")})
    site.stream.read(1_000, None)
    site.stream.ack([entry.id for entry in site.stream.read(1_000, None)])

    site.run()

    assert client.xlen(UPDATES_STREAM) < 200


def test_turn_records_are_removed_by_age(client: fakeredis.FakeRedis, broker: StubBroker) -> None:
    """Given turn records of two days ago and of now, I expect the leader to remove the old ones."""
    site = Site(client, broker, turns_hours=24)
    old = (int(client.time()[0]) - 48 * 3_600) * 1_000
    for number in range(500):
        client.xadd(TURNS_STREAM, {TURN_FIELD: "old"}, id=f"{old}-{number + 1}")
    client.xadd(TURNS_STREAM, {TURN_FIELD: "new"})

    site.run()

    assert client.xlen(TURNS_STREAM) < 200  # Redis trims whole nodes of a hundred


def test_rules_without_the_right_to_turn_records_are_said_once(
    client: fakeredis.FakeRedis, broker: StubBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given access rules of an earlier version, I expect one warning, and the stream maintained as before."""
    site = Site(client, broker)
    trimmed: list[str] = []

    def xtrim(name: str, **_: Any) -> int:
        trimmed.append(name)
        if name == TURNS_STREAM:
            raise NoPermissionError
        return 0

    monkeypatch.setattr(client, "xtrim", xtrim)
    monkeypatch.setattr("adapters.maintenance.TRIM_INTERVAL_S", 0)
    with capture_logs() as logs:
        site.run(3)

    assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["turns_not_trimmed"]
    assert trimmed.count(TURNS_STREAM) == 1
    assert len(trimmed) > 2


def test_an_adapter_with_a_stuck_loop_sends_no_heartbeat(client: fakeredis.FakeRedis, broker: StubBroker) -> None:
    """Given a loop that is stuck, I expect no heartbeat and no lease, so that another adapter takes over."""
    site = Site(client, broker, checks=[lambda: True, lambda: False])

    site.run()

    assert site.membership.live() == set()
    assert not site.lease.held()


def test_an_adapter_that_works_is_a_member_and_leads(client: fakeredis.FakeRedis, broker: StubBroker) -> None:
    """Given loops that all work, I expect a heartbeat and the lease, and neither after it was released."""
    site = Site(client, broker, checks=[lambda: True, lambda: True])
    site.run()
    assert (site.membership.live(), site.lease.held()) == ({"a1"}, True)

    site.maintenance.release()

    assert (site.membership.live(), site.lease.held()) == (set(), False)
    assert not client.exists("ltm:channel-reader")


@pytest.mark.parametrize(("failed_after_s", "resets"), [(0.0, 2), (60.0, 0)])
def test_an_adapter_that_was_frozen_reads_its_entries_again(
    client: fakeredis.FakeRedis, broker: StubBroker, failed_after_s: float, resets: int
) -> None:
    """Given heartbeats further apart than adapters may be silent, I expect a reset of the dispatcher, else none."""
    site = Site(client, broker, failed_after_s=failed_after_s)

    site.run(2)

    assert site.resets == resets


def left_by_a_failed_adapter(site: Site) -> None:
    publish(site.client, 2)
    site.client.xreadgroup("indexers", "failed", {UPDATES_STREAM: ">"})


def test_the_leader_claims_the_entries_of_failed_adapters(client: fakeredis.FakeRedis, broker: StubBroker) -> None:
    """Given entries pending under a failed adapter, I expect the leader to claim them, and to read them again once."""
    site = Site(client, broker)
    left_by_a_failed_adapter(site)

    site.run(2)

    assert site.resets == 1
    site.stream.rewind()
    assert len(site.stream.read(10, None)) == 2


def test_a_follower_claims_and_measures_nothing(client: fakeredis.FakeRedis, broker: StubBroker) -> None:
    """Given another adapter that leads, I expect the entries of a failed one left to it, and no backlog reported."""
    site = Site(client, broker, max_backlog=1)
    Lease(client, "a2").renew()
    left_by_a_failed_adapter(site)

    with capture_logs() as lines:
        site.run()

    assert (site.resets, lines) == (0, [])


@pytest.mark.parametrize("message", ["no such key", "NOGROUP No such consumer group 'indexers' for key name 'x'"])
def test_a_stream_that_is_deleted_is_made_again(
    client: fakeredis.FakeRedis, broker: StubBroker, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    """Given that the stream is deleted between two iterations, I expect its group again after the second.

    Either error may be the first to tell, as the stream may be written again meanwhile.
    """
    site = Site(client, broker)
    site.run()
    client.delete(UPDATES_STREAM)

    def fail(_: Any) -> int:
        raise redis.ResponseError(message)

    monkeypatch.setattr(site.stream, "claim_from_failed", fail)
    site.run()

    assert client.xinfo_groups(UPDATES_STREAM)


def test_another_error_of_redis_is_raised(
    client: fakeredis.FakeRedis, broker: StubBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a key of another type in place of the stream, I expect its error, for the loop to log."""
    site = Site(client, broker)

    def fail(_: Any) -> int:
        raise redis.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value")

    monkeypatch.setattr(site.stream, "claim_from_failed", fail)

    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        site.run()
