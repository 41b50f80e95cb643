"""The HTTP API with a stack behind it: a memory's life, and writes that are repeated after their gateway was killed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import redis

from services.gateway.__main__ import DOORS
from services.gateway.idempotency import KEY_PREFIX
from tests.acceptance.conftest import Stack
from tests.served_gateway import served, settings_of
from tests.support import wait_until

DEADLINE = {"deadline_ms": 60_000}
#: Of an event that no chat service answers, so that its user has no other memories.
SAID = {"source": "user", "require_ai_response": False}


@pytest.fixture(scope="module")
def http(stack: Stack) -> Iterator[httpx.Client]:
    with served(settings_of(stack.redis_url), DOORS) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def contents(http: httpx.Client, user_id: str) -> list[str]:
    """The contents of a user's memories, oldest first."""
    found = http.get("/v1/memories", params={"user_id": user_id, "order": "oldest", **DEADLINE}).json()
    return [memory["content"] for memory in found["memories"]]


def killed(stack: Stack) -> None:
    """Leave Redis in the state after a gateway was killed: a request was done, and not yet noted as done."""
    with redis.Redis.from_url(stack.redis_url) as client:
        for place in client.scan_iter(f"{KEY_PREFIX}*", _type="hash"):
            client.hdel(place, "done")


def test_the_life_of_a_memory(http: httpx.Client) -> None:
    """Given an event, I expect it found, corrected, exported, imported for another user, and deleted."""
    told = http.post("/v1/events", json={"user_id": "h/1", "content": "My cat is called Mochi.", **SAID})
    assert told.status_code == 202
    wait_until(lambda: contents(http, "h/1"), description="the event to be indexed")
    query = {"user_id": "h/1", "query": "What is my cat called?", **DEADLINE}
    (found,) = http.post("/v1/memories/search", json=query).json()["memories"]
    assert found["metadata"]["message_id"] == told.json()["events"][0]["message_id"]

    correction = {"user_id": "h/1", "content": "My cat is called Mocha.", **DEADLINE}
    assert http.patch(f"/v1/memories/{found['id']}", json=correction).status_code == 200
    assert "Mocha" in http.post("/v1/context", json=query).json()["context"]

    exported = http.get("/v1/users/export", params={"user_id": "h/1"})
    imported = http.post("/v1/users/import", params={"user_id": "h/2"}, content=exported.content)
    assert [json.loads(line)["kind"] for line in exported.text.splitlines()] == ["memory"]
    assert imported.json()["count"] == 1
    assert contents(http, "h/2") == ["My cat is called Mocha."]

    assert http.delete(f"/v1/memories/{found['id']}", params={"user_id": "h/1", **DEADLINE}).json() == {"count": 1}
    assert http.delete("/v1/users", params={"user_id": "h/2"}).json() == {"count": 1}
    assert contents(http, "h/1") == contents(http, "h/2") == []


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/memories", {"user_id": "k1", "content": "one", **DEADLINE}),
        ("PATCH", "/v1/profile?user_id=k2&deadline_ms=60000", {"visits": [1]}),
    ],
)
def test_a_write_whose_gateway_was_killed_takes_effect_once(
    http: httpx.Client, stack: Stack, method: str, path: str, body: dict[str, Any]
) -> None:
    """Given a write that was done, and a gateway that was killed before it noted that, I expect the same answer."""
    key = {"Idempotency-Key": "killed"}

    first = http.request(method, path, json=body, headers=key)
    killed(stack)
    again = http.request(method, path, json=body, headers=key)

    assert (again.status_code, again.json()) == (first.status_code, first.json())
    assert first.is_success


def test_events_whose_gateway_was_killed_are_one_memory_each(http: httpx.Client, stack: Stack) -> None:
    """Given events that were published twice because their gateway was killed, I expect each remembered once."""
    # With times: one without is dated by whichever of its two publications is indexed.
    events = [{"user_id": "k3", "content": f"line {n}", "timestamp": 1_700_000_000 + n, **SAID} for n in range(3)]
    last = {"user_id": "k3", "content": "the last one", **SAID}

    for _ in range(2):
        assert http.post("/v1/events", json=events, headers={"Idempotency-Key": "killed"}).status_code == 202
        killed(stack)
    http.post("/v1/events", json=last)

    expected = ["line 0", "line 1", "line 2", "the last one"]
    # Several threads index: the last one may be there before the others.
    wait_until(lambda: {*contents(http, "k3")} == {*expected}, description="the events to be indexed")
    assert sorted(contents(http, "k3")) == expected
