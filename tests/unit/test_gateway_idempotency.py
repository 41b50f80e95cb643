"""Idempotency keys and events: a write that is sent again takes effect once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from keepsake_client.errors import RequestTimeout, Unavailable
from keepsake_client.protocol import STREAM_EVENT_FIELD, UPDATES_STREAM
from redis.exceptions import ConnectionError as RedisConnectionError

from services.gateway.access import ALL_RIGHTS, Caller
from services.gateway.api import api
from services.gateway.idempotency import KEY_PREFIX
from tests.unit.gateway_app import ANSWERS, GatewayApp, gateway_app

ADD: dict[str, Any] = {"user_id": "u1", "content": "My cat is Mochi"}
EVENTS: list[dict[str, Any]] = [{"user_id": "u1", "content": f"line {n}", "source": "user"} for n in range(3)]
KEY = {"Idempotency-Key": "8e03978e"}
DELETE = {"user_id": "u1", "filters": {"source": "ai"}}


@pytest.fixture(scope="module")
def app() -> Iterator[GatewayApp]:
    with gateway_app(api) as app:
        yield app


@pytest.fixture
def http(app: GatewayApp) -> GatewayApp:
    app.reset()
    return app


def published(http: GatewayApp) -> list[dict[str, Any]]:
    """The events in the stream."""
    entries = http.run(http.redis.xrange(UPDATES_STREAM))
    return [json.loads(fields[STREAM_EVENT_FIELD.encode()]) for _, fields in entries]


def kinds(http: GatewayApp) -> list[str]:
    return [kind for kind, *_ in http.memory.requests]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/memories/delete", DELETE),
        ("DELETE", "/v1/memories/m1?user_id=u1", None),
        ("DELETE", "/v1/users?user_id=u1", None),
    ],
)
def test_a_deletion_is_done_once_and_answered_the_same(http: GatewayApp, method: str, path: str, body: Any) -> None:
    """Given a deletion that is sent again, I expect one request on the wire, and the same count."""
    given = {"json": body} if body else {}

    answers = [http.send(method, path, headers=KEY, **given) for _ in range(2)]

    assert len(http.memory.requests) == 1
    assert [answer.json() for answer in answers] == [{"count": 1}, {"count": 1}]


@pytest.mark.parametrize(
    ("path", "body", "again"),
    [
        ("/v1/profile?user_id=u1", {"name": "Anna"}, ["profile_update", "profile_get"]),
        ("/v1/memories/m1", {"user_id": "u1", "content": "y"}, ["memory_update", "memory_get"]),
    ],
)
def test_a_change_is_made_once(http: GatewayApp, path: str, body: Any, again: list[str]) -> None:
    """Given a change that was made and is sent again, I expect the present state, and what came between left."""
    answers = [http.send("PATCH", path, json=body, headers=KEY) for _ in range(2)]

    assert kinds(http) == again
    assert answers[0].json() == answers[1].json()


def test_an_add_is_answered_with_the_memory_as_it_was_stored(http: GatewayApp) -> None:
    """Given an add that is sent again, I expect the memory that is there, with the time of the first."""
    first = http.send("POST", "/v1/memories", json=ADD, headers=KEY)
    again = http.send("POST", "/v1/memories", json=ADD, headers=KEY)

    assert kinds(http) == ["add", "memory_get"]
    assert (again.status_code, again.json()) == (201, first.json())


def test_an_add_whose_memory_was_deleted_stays_deleted(http: GatewayApp) -> None:
    """Given an add, its deletion, and the add again, I expect no memory."""
    http.send("POST", "/v1/memories", json=ADD, headers=KEY)
    http.memory.fails("not_found: the user has no memory of this id")

    again = http.send("POST", "/v1/memories", json=ADD, headers=KEY)

    assert (again.status_code, again.json()) == (201, {"memory": None})


def test_what_is_not_known_to_be_done_is_sent_again_with_the_same_id(http: GatewayApp) -> None:
    """Given a write without an answer in time, and again, I expect one id on the wire: the pipeline deduplicates it."""
    http.memory.fails(RequestTimeout("no response"))
    assert http.send("POST", "/v1/memories", json=ADD, headers=KEY).status_code == 504

    http.memory.answer = lambda kind, _: ANSWERS[kind]
    assert http.send("POST", "/v1/memories", json={**ADD, "deadline_ms": 9_000}, headers=KEY).status_code == 201

    assert http.memory.ids[0] == http.memory.ids[1] is not None


def test_without_a_key_each_is_a_request_of_its_own(http: GatewayApp) -> None:
    """Given the same write twice without a key, I expect two, and nothing kept of them."""
    for _ in range(2):
        http.send("POST", "/v1/memories", json=ADD)

    assert http.memory.ids[0] != http.memory.ids[1]
    assert http.run(http.redis.keys()) == []


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/memories", {**ADD, "content": "My dog"}), ("/v1/memories/delete", DELETE)],
    ids=["another body", "another route"],
)
def test_a_key_of_another_request_is_422(http: GatewayApp, path: str, body: Any) -> None:
    """Given a key that was used for another request, I expect 422 and nothing asked."""
    http.send("POST", "/v1/memories", json=ADD, headers=KEY)

    response = http.send("POST", path, json=body, headers=KEY)

    assert (response.status_code, response.json()["code"], kinds(http)) == (422, "unprocessable", ["add"])


@pytest.mark.parametrize("other", [{"user_id": "u2"}, {"caller": "another"}])
def test_a_key_is_of_one_user_and_one_caller(http: GatewayApp, other: dict[str, str]) -> None:
    """Given the same key of another user or caller, I expect a request of its own."""
    http.send("POST", "/v1/memories", json=ADD, headers=KEY)
    http.keys.of = Caller(other.get("caller", "open"), ALL_RIGHTS)

    assert http.send(
        "POST", "/v1/memories", json={**ADD, "user_id": other.get("user_id", "u1")}, headers=KEY
    ).is_success
    assert kinds(http) == ["add", "add"]
    assert http.memory.ids[0] != http.memory.ids[1]


def test_what_is_kept_of_a_request_can_be_compared_by_its_bearer_alone(http: GatewayApp) -> None:
    """Given the same contents of two users, I expect hashes in Redis that do not show it."""
    for user in ("u1", "u2"):
        http.send("POST", "/v1/memories", json={**ADD, "user_id": user}, headers=KEY)

    kept = [http.run(http.redis.hget(place, "request")) for place in http.run(http.redis.keys())]
    assert len(set(kept)) == 2


def test_a_request_that_is_under_way_is_409(http: GatewayApp) -> None:
    """Given a request that is sent again before its answer, I expect 409 for the second, and the first to be done."""

    async def story() -> list[int]:
        responses: asyncio.Queue[None] = asyncio.Queue()
        asked = asyncio.Event()
        answer = http.memory.request

        async def slow(*given: Any, **options: Any) -> Any:
            asked.set()
            await responses.get()
            return await answer(*given, **options)

        http.memory.request = slow  # type: ignore[method-assign]
        try:
            first = asyncio.create_task(http.fetch("POST", "/v1/memories", json=ADD, headers=KEY))
            await asked.wait()
            second = await http.fetch("POST", "/v1/memories", json=ADD, headers=KEY)
            responses.put_nowait(None)
            return [second.status_code, (await first).status_code]
        finally:
            del http.memory.request

    assert http.run(story()) == [409, 201]


def test_redis_has_a_hash_and_no_contents(http: GatewayApp) -> None:
    """Given a write with a key, I expect neither its content nor its ids in Redis, and an end to what is kept."""
    http.send("POST", "/v1/memories", json=ADD, headers=KEY)

    (place,) = http.run(http.redis.keys(f"{KEY_PREFIX}*"))
    kept = repr((place, http.run(http.redis.hgetall(place))))
    assert not [text for text in ("Mochi", "u1", "8e03978e") if text in kept]
    assert 0 < http.run(http.redis.ttl(place)) <= 86_400


def test_without_redis_a_key_is_503(http: GatewayApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a Redis that does not answer, I expect 503 and nothing asked: it would not be known if it was done."""

    async def fail(*_: Any, **__: Any) -> None:
        raise RedisConnectionError("no answer")

    monkeypatch.setattr(http.redis, "eval", fail)

    assert http.send("POST", "/v1/memories", json=ADD, headers=KEY).status_code == 503
    assert http.memory.requests == []


@pytest.mark.parametrize("key", ["", " ", "a b", "é", "x" * 256])
def test_a_key_that_is_none_is_refused(http: GatewayApp, key: str) -> None:
    """Given a key with spaces or of another script, or none, I expect 400."""
    headers = [(b"idempotency-key", key.encode())]

    assert http.send("POST", "/v1/memories", json=ADD, headers=headers).status_code == 400


def test_of_two_keys_none_is_taken(http: GatewayApp) -> None:
    """Given a request with two keys, of which a proxy may have added one, I expect 400 and nothing done."""
    headers = [(b"idempotency-key", key) for key in (b"one", b"two")]

    assert http.send("POST", "/v1/memories", json=ADD, headers=headers).status_code == 400
    assert http.memory.requests == []


@pytest.mark.parametrize("events", [EVENTS[0], EVENTS], ids=["one", "many"])
def test_events_are_published_in_order(http: GatewayApp, events: Any) -> None:
    """Given one event or several, I expect each published with the id that the answer names."""
    response = http.send("POST", "/v1/events", json=events)

    assert response.status_code == 202
    expected = events if isinstance(events, list) else [events]
    assert [event["content"] for event in published(http)] == [event["content"] for event in expected]
    assert [event["message_id"] for event in published(http)] == [
        event["message_id"] for event in response.json()["events"]
    ]


def test_an_event_is_published_as_it_was_sent(http: GatewayApp) -> None:
    """Given every field of an event, I expect them on the wire, a time without a zone as it was written."""
    event = {
        **EVENTS[0],
        "timestamp": "2024-04-05 19:34",
        "session": "s1",
        "meta": {"mood": "calm"},
        "message_id": "m1",
        "task_id": "t1",
        "require_ai_response": False,
        "agent_id": "a1",
        "speaker": "Anna",
        "ttl_days": 3,
    }

    http.send("POST", "/v1/events", json=event)

    del event["session"]
    meta = {"mood": "calm", "session_id": "s1"}
    speaker = {"id": None, "name": "Anna"}
    assert published(http) == [{**event, "meta": meta, "speaker": speaker, "logged": True}]


@pytest.mark.parametrize(
    "bad",
    [
        {"content": " "},
        {"source": "cat"},
        {"timestamp": "soon"},
        {"content": "x" * 40_000},
        {"user_id": None},
        {"x": 1},
    ],
    ids=repr,
)
def test_one_bad_event_holds_back_all(http: GatewayApp, bad: dict[str, Any]) -> None:
    """Given a list with an event that cannot be published, I expect a problem and none of them published."""
    response = http.send("POST", "/v1/events", json=[EVENTS[0], {**EVENTS[1], **bad}])

    assert response.status_code in {400, 403, 413}
    assert published(http) == []


def test_what_was_published_before_a_failure_is_named(http: GatewayApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a Redis that goes away after the first event, I expect 503 with what was published, and the rest later."""
    remember, calls = http.memory.remember, iter([True, False])

    async def fail(*given: Any, **options: Any) -> str:
        if next(calls, True):
            return await remember(*given, **options)
        raise Unavailable("Redis does not answer")

    monkeypatch.setattr(http.memory, "remember", fail)
    failed = http.send("POST", "/v1/events", json=EVENTS, headers=KEY)
    again = http.send("POST", "/v1/events", json=EVENTS, headers=KEY)

    assert failed.status_code == 503
    assert [event["published"] for event in failed.json()["events"]] == [True, False, False]
    assert again.status_code == 202
    ids = [event["message_id"] for event in again.json()["events"]]
    assert ids == [event["message_id"] for event in failed.json()["events"]]
    assert list(dict.fromkeys(event["message_id"] for event in published(http))) == ids


def test_events_that_were_published_are_not_again(http: GatewayApp) -> None:
    """Given a list that is sent again with its key, I expect the same ids, and none published twice."""
    answers = [http.send("POST", "/v1/events", json=EVENTS, headers=KEY).json() for _ in range(2)]

    assert answers[0] == answers[1]
    assert len(published(http)) == len(EVENTS)


def test_a_lease_of_a_killed_gateway_ends(http: GatewayApp) -> None:
    """Given a gateway that was killed in a request, I expect the key free again soon after its deadline."""

    async def story() -> int:
        leases: list[int] = []
        original = http.redis.delete

        async def killed(*names: str) -> None:
            leases.append(await http.redis.pttl(names[0]))

        http.redis.delete = killed
        try:
            await http.fetch("POST", "/v1/memories", json={**ADD, "deadline_ms": 1_000}, headers=KEY)
        finally:
            http.redis.delete = original
        return leases[0]

    assert 0 < http.run(story()) <= 6_000
