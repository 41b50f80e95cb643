"""From the wire to the actor: which request goes where, and what becomes of one that goes nowhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import dramatiq
import fakeredis
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import TimeLimit
from keepsake_client.errors import InvalidJSON
from keepsake_client.protocol import (
    COUNTERS,
    REJECTED_STREAM,
    REQUEST_TYPES,
    UPDATES_STREAM,
    LTMRequest,
    MemoryUpdateMessage,
    RequestType,
)
from redis.client import PubSub
from structlog.testing import capture_logs

from adapters.dispatcher import Dispatcher
from adapters.leader import Lease
from adapters.loop import Loop
from adapters.ltm_requests import RequestAdapter
from adapters.ltm_responses import ResponsePublisher
from adapters.membership import Membership
from adapters.memory_updates import UpdateAdapter
from adapters.stream import UpdateStream
from services.runtime.rejected import MAX_ENTRIES, RejectSink
from services.runtime.settings import Settings
from tasks import actors, queues
from tasks.middleware.resources import Resources
from tasks.middleware.retries import Retries
from tests.support import wait_until

MAX_CHARS = 1_000
#: An iteration that finds nothing ends at once, so that a loop can be stopped at once.
POLL_TIMEOUT_S = 0.02
UPDATE = {"user_id": "u1", "content": "I like tea", "source": "user", "timestamp": 1_712_345_678, "meta": {"a": 1}}
EXPECTED = {
    "search": ("memory.search", "interactive"),
    "add": ("memory.add", "writes"),
    "profile_get": ("profile.get", "interactive"),
    "profile_update": ("profile.update", "writes"),
    "memory_list": ("memory.list", "interactive"),
    "memory_get": ("memory.get", "interactive"),
    "memory_update": ("memory.update", "writes"),
    "memory_delete": ("memory.delete", "writes"),
    "user_forget": ("user.forget", "writes"),
    "user_export": ("user.export", "interactive"),
    "user_list": ("user.list", "interactive"),
    "user_import": ("user.import", "index"),
    "context": ("memory.context", "interactive"),
}


@pytest.fixture
def broker() -> Iterator[StubBroker]:
    """A broker with every actor declared; nothing consumes it."""
    broker = StubBroker(middleware=[TimeLimit(), Retries()])
    resources = cast(Resources, SimpleNamespace(settings=Settings()))  # the actors are declared and never run
    actors.declare(broker, resources)
    yield broker
    broker.close()


@pytest.fixture
def client() -> Iterator[fakeredis.FakeRedis]:
    with fakeredis.FakeRedis() as client:
        yield client


@pytest.fixture
def answers(client: fakeredis.FakeRedis) -> Iterator[PubSub]:
    """A subscription to the responses, made before anything is asked."""
    with client.pubsub(ignore_subscribe_messages=True) as pubsub:  # type: ignore[no-untyped-call]
        pubsub.subscribe("ltm_responses")
        pubsub.get_message()
        yield pubsub


@pytest.fixture
def requests(client: fakeredis.FakeRedis, broker: StubBroker) -> RequestAdapter:
    return RequestAdapter(
        client,
        "ltm_requests",
        Membership(client, "a1"),
        broker,
        ResponsePublisher(client, "ltm_responses"),
        RejectSink(client, "ltm_requests"),
        MAX_CHARS,
        poll_timeout_s=POLL_TIMEOUT_S,
    )


class Updates:
    """The path of an event: from the channel to the stream, and from the stream to the actor."""

    def __init__(self, client: fakeredis.FakeRedis, broker: StubBroker) -> None:
        lease = Lease(client, "a1")
        lease.renew()
        stream = UpdateStream(client, UPDATES_STREAM, "a1", max_len=1_000)
        rejects = RejectSink(client, "memory_updates")
        self._channel = UpdateAdapter(
            client, "memory_updates", stream, lease, rejects, MAX_CHARS, poll_timeout_s=POLL_TIMEOUT_S
        )
        self._dispatcher = Dispatcher(
            stream,
            Membership(client, "a1"),
            broker,
            RejectSink(client, UPDATES_STREAM),
            MAX_CHARS,
            prefetch=100,
            window=10,
            poll_timeout_s=POLL_TIMEOUT_S,
        )

    def connect(self) -> None:
        self._channel.connect()
        self._dispatcher.connect()

    def run_once(self) -> None:
        self._channel.run_once()
        self._dispatcher.run_once()


@pytest.fixture
def updates(client: fakeredis.FakeRedis, broker: StubBroker) -> Updates:
    updates = Updates(client, broker)
    updates.connect()
    updates.run_once()  # the confirmation
    updates.run_once()  # nothing is pending
    return updates


def asked(kind: str, request_id: str = "r1") -> bytes:
    data = {
        **{"query": "tea?", "content": "I like tea", "updates": {"drink": "tea"}},
        **{"id": "m1", "ids": ["m1"], "records": []},
    }
    return json.dumps({"request_id": request_id, "type": kind, "user_id": "u1", "data": data}).encode()


def taken(broker: StubBroker, queue: str) -> list[dramatiq.Message[Any]]:
    """The messages on an actor queue, first come first."""
    found = []
    while not broker.queues[queue].empty():
        found.append(dramatiq.Message.decode(broker.queues[queue].get_nowait()))
    return found


def answer(answers: PubSub) -> dict[str, Any]:
    message = wait_until(answers.get_message, description="a response")
    response: dict[str, Any] = json.loads(message["data"])
    return response


def rejected(client: fakeredis.FakeRedis) -> list[dict[str, str]]:
    entries: Any = client.xrange(REJECTED_STREAM)
    return [{name.decode(): value.decode() for name, value in entry.items()} for _, entry in entries]


# Routes


@pytest.mark.parametrize("kind", REQUEST_TYPES)
def test_each_type_has_its_actor_on_its_queue(kind: RequestType) -> None:
    """Given a request of a type, I expect a message for the actor that serves it, on the queue of its urgency."""
    message = queues.request_message(LTMRequest(request_id="r1", type=kind, user_id="u1"), 1.5)

    assert (message.actor_name, message.queue_name) == EXPECTED[kind]


def test_an_event_is_indexed() -> None:
    """Given an event, I expect a message for memory.index on the bulk queue."""
    message = queues.index_message(MemoryUpdateMessage.model_validate(UPDATE))

    assert (message.actor_name, message.queue_name) == ("memory.index", "index")


@pytest.mark.parametrize("route", [*queues.BY_TYPE.values(), queues.INDEX], ids=lambda route: route.actor)
def test_every_route_leads_to_a_declared_actor(broker: StubBroker, route: queues.Route) -> None:
    """Given a route, I expect the worker to declare its actor on that very queue."""
    assert broker.get_actor(route.actor).queue_name == route.queue


def test_every_declared_actor_is_on_a_route(broker: StubBroker) -> None:
    """Given the actors of the worker, I expect a way to each of them."""
    assert broker.get_declared_actors() == {route.actor for route in [*queues.BY_TYPE.values(), queues.INDEX]}


def test_a_request_reaches_its_actor_whole() -> None:
    """Given a request, I expect the actor to read the same one out of its message."""
    request = LTMRequest(request_id="\ud800", type="search", user_id="用户一", data={"query": "tea?"})

    message = dramatiq.Message.decode(queues.request_message(request, 1.5).encode())

    assert LTMRequest.model_validate(message.kwargs["request"]) == request
    assert message.kwargs["received_at"] == 1.5


def test_an_event_reaches_its_actor_whole() -> None:
    """Given an event, I expect the actor to read the same one out of its message."""
    update = MemoryUpdateMessage.model_validate({**UPDATE, "message_id": "m1", "timestamp": 1.25})

    message = dramatiq.Message.decode(queues.index_message(update).encode())

    assert MemoryUpdateMessage.model_validate(message.kwargs["update"]) == update


# Requests


@pytest.mark.parametrize("kind", REQUEST_TYPES)
def test_a_request_on_the_list_is_enqueued(
    client: fakeredis.FakeRedis, broker: StubBroker, requests: RequestAdapter, kind: str
) -> None:
    """Given a request on the list, I expect it on the queue of its actor after one iteration."""
    client.lpush("ltm_requests", asked(kind))

    requests.run_once()

    actor, queue = EXPECTED[kind]
    assert [message.actor_name for message in taken(broker, queue)] == [actor]


def test_requests_are_served_first_come_first(
    client: fakeredis.FakeRedis, broker: StubBroker, requests: RequestAdapter
) -> None:
    """Given three requests that were LPUSHed, I expect them enqueued in the order they were pushed in."""
    for number in range(3):
        client.lpush("ltm_requests", asked("search", f"r{number}"))

    for _ in range(3):
        requests.run_once()

    assert [m.kwargs["request"]["request_id"] for m in taken(broker, "interactive")] == ["r0", "r1", "r2"]


def test_an_iteration_without_a_request_does_nothing(client: fakeredis.FakeRedis, requests: RequestAdapter) -> None:
    """Given an empty list, I expect an iteration to leave Redis empty."""
    requests.run_once()

    assert client.keys() == []


def test_an_invalid_request_is_answered(client: fakeredis.FakeRedis, requests: RequestAdapter, answers: PubSub) -> None:
    """Given an invalid request with a readable id, I expect an error response and all six fields of it."""
    client.lpush("ltm_requests", json.dumps({"request_id": "r1", "user_id": "u1", "type": "search", "data": []}))

    requests.run_once()

    response = answer(answers)
    assert response.pop("error").startswith("invalid_request: data: ")
    assert response == {"request_id": "r1", "user_id": "u1", "success": False, "memories": [], "user_profile": {}}


def test_an_unknown_type_is_answered_with_all_there_are(
    client: fakeredis.FakeRedis, requests: RequestAdapter, answers: PubSub
) -> None:
    """Given an unknown type, I expect an answer that names all."""
    client.lpush("ltm_requests", asked("forget"))

    requests.run_once()

    assert answer(answers)["error"] == (
        'unknown_type: type is "forget"; it must be one of search, add, profile_get, profile_update, memory_list,'
        " memory_get, memory_update, memory_delete, user_forget, user_export, user_import, context, user_list"
    )


def test_an_invalid_request_without_a_user_is_answered(
    client: fakeredis.FakeRedis, requests: RequestAdapter, answers: PubSub
) -> None:
    """Given a request that lacks its user_id, I expect an answer with an empty one."""
    client.lpush("ltm_requests", json.dumps({"request_id": "r1", "type": "search", "data": {"query": "x"}}))

    requests.run_once()

    assert answer(answers)["user_id"] == ""


def test_an_invalid_request_is_not_enqueued(
    client: fakeredis.FakeRedis, broker: StubBroker, requests: RequestAdapter
) -> None:
    """Given an invalid request, I expect nothing on the queue."""
    client.lpush("ltm_requests", json.dumps({"request_id": "r1", "user_id": "u1", "type": "search", "data": []}))

    requests.run_once()

    assert taken(broker, "interactive") == []


def test_a_request_that_cannot_be_answered_is_kept(client: fakeredis.FakeRedis, requests: RequestAdapter) -> None:
    """Given a request without a readable id, I expect where, why and what in the stream of rejects."""
    client.lpush("ltm_requests", "hello")

    requests.run_once()

    (entry,) = rejected(client)
    assert entry.pop("reason").startswith("invalid_json: not JSON")
    assert entry == {"at": "ltm_requests", "message": "hello"}


# Rejected


def test_the_first_thousand_characters_are_kept(client: fakeredis.FakeRedis) -> None:
    """Given a long rejected message, I expect its first 1,000 characters, not bytes."""
    RejectSink(client, "here").add(("茶" * 1_500).encode(), InvalidJSON("no"))

    assert rejected(client)[0]["message"] == "茶" * 1_000


def test_bytes_that_are_no_utf8_are_kept_readable(client: fakeredis.FakeRedis) -> None:
    """Given invalid UTF-8, I expect what can be read of it."""
    RejectSink(client, "here").add(b"tea \xff", InvalidJSON("no"))

    assert rejected(client)[0]["message"] == "tea \ufffd"


def test_the_stream_is_capped(client: fakeredis.FakeRedis) -> None:
    """Given far more rejected messages than are kept, I expect the stream not to grow for ever."""
    rejects = RejectSink(client, "here")

    for _ in range(MAX_ENTRIES + 500):
        rejects.add(b"x", InvalidJSON("no"))

    assert MAX_ENTRIES <= client.xlen(REJECTED_STREAM) < MAX_ENTRIES + 200


def test_every_rejected_message_is_counted_and_logged(client: fakeredis.FakeRedis) -> None:
    """Given rejected messages, I expect them in the counter, and a line of each without its content."""
    rejects = RejectSink(client, "here")

    with capture_logs() as lines:
        rejects.add(b"secret", InvalidJSON("no"))
        rejects.add("茶".encode(), InvalidJSON("no"))

    assert client.hgetall(COUNTERS) == {b"rejected": b"2"}
    assert [(line["event"], line["at"], line["reason"], line["bytes"]) for line in lines] == [
        ("rejected", "here", "invalid_json", 6),
        ("rejected", "here", "invalid_json", 3),
    ]


# Events


def test_a_published_event_is_enqueued(client: fakeredis.FakeRedis, broker: StubBroker, updates: Updates) -> None:
    """Given an event on the channel, I expect it on the index queue after one iteration."""
    client.publish("memory_updates", json.dumps(UPDATE))

    updates.run_once()

    assert [message.actor_name for message in taken(broker, "index")] == ["memory.index"]


def test_an_invalid_event_is_kept(client: fakeredis.FakeRedis, updates: Updates) -> None:
    """Given an invalid event, which has no asker, I expect where, why and what in the stream of rejects."""
    raw = json.dumps({**UPDATE, "content": " ", "request_id": "r1"})
    client.publish("memory_updates", raw)

    updates.run_once()

    assert rejected(client) == [
        {"at": "memory_updates", "reason": "invalid_request: content: must not be blank", "message": raw}
    ]


def test_events_are_received_again_after_an_outage(
    client: fakeredis.FakeRedis, broker: StubBroker, updates: Updates
) -> None:
    """Given a second connect, as the loop calls after an outage, I expect events to arrive, and once each."""
    updates.connect()
    updates.run_once()
    client.publish("memory_updates", json.dumps(UPDATE))

    for _ in range(2):
        updates.run_once()

    assert len(taken(broker, "index")) == 1


# Loops

BAD = [
    b"hello",
    b"\xff\xfe",
    b"[]",
    b"null",
    b'{"x": NaN}',
    b"[" * 100_000,
    b'"' + b"x" * 2_000_000 + b'"',
    b"{}",
    b'{"user_id": null}',
    b'{"request_id": "bad", "type": "forget"}',
]


def test_the_loop_of_requests_outlives_bad_ones(
    client: fakeredis.FakeRedis, broker: StubBroker, requests: RequestAdapter
) -> None:
    """Given bad requests among good ones, I expect every good one to be enqueued, in order."""
    for number, raw in enumerate(BAD):
        client.lpush("ltm_requests", raw, asked("search", f"r{number}"))
    loop = Loop("ltm_requests", requests.run_once)
    loop.start()

    wait_until(lambda: broker.queues["interactive"].qsize() == len(BAD), description="the good requests")
    loop.stop()
    loop.join()

    ids = [message.kwargs["request"]["request_id"] for message in taken(broker, "interactive")]
    assert (ids, loop.failures) == ([f"r{number}" for number in range(len(BAD))], 0)


def test_the_loop_of_events_outlives_bad_ones(
    client: fakeredis.FakeRedis, broker: StubBroker, updates: Updates
) -> None:
    """Given bad events among good ones, I expect every good one to be enqueued."""
    loop = Loop("memory_updates", updates.run_once, connect=updates.connect)
    loop.start()
    wait_until(lambda: client.pubsub_numsub("memory_updates")[0][1], description="the subscription")

    for raw in BAD:
        client.publish("memory_updates", raw)
        client.publish("memory_updates", json.dumps(UPDATE))
    wait_until(lambda: broker.queues["index"].qsize() == len(BAD), description="the good events")
    loop.stop()
    loop.join()

    assert (len(rejected(client)), loop.failures) == (len(BAD), 0)
