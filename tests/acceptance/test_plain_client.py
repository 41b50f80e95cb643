"""Another service's view: redis-py and the contract's JSON, without any import of Keepsake."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from tests.support import wait_until

Ask = Callable[..., dict[str, Any]]

SIX_FIELDS = {"request_id", "user_id", "success", "memories", "user_profile", "error"}


@pytest.fixture
def client(stack: Any) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(stack.redis_url) as client:
        yield client


@pytest.fixture
def ask(client: redis.Redis) -> Iterator[Ask]:
    """Pushes a request and returns the response to it."""
    with client.pubsub() as pubsub:  # type: ignore[no-untyped-call]  # redis-py's lacks annotations
        pubsub.subscribe("ltm_responses")
        assert pubsub.get_message(timeout=60)["type"] == "subscribe"

        def ask(kind: str, user_id: str, **data: Any) -> dict[str, Any]:
            request_id = str(uuid.uuid4())
            request = {"request_id": request_id, "type": kind, "user_id": user_id, "data": data}
            client.lpush("ltm_requests", json.dumps(request))
            until = time.monotonic() + 60
            while time.monotonic() < until:
                message = pubsub.get_message(timeout=1)
                if message and (response := json.loads(message["data"]))["request_id"] == request_id:
                    return dict(response)
            raise AssertionError(f"no response to {kind}")

        yield ask


@pytest.fixture
def user() -> str:
    return f"用户-{uuid.uuid4().hex[:8]}"


def test_every_response_carries_the_six_fields(ask: Ask, user: str) -> None:
    for kind, data in (
        ("search", {"query": "tea"}),
        ("add", {"content": "tea"}),
        ("profile_get", {}),
        ("profile_update", {"updates": {"a": 1}}),
    ):
        response = ask(kind, user, **data)
        assert set(response) >= SIX_FIELDS, kind
        assert (response["user_id"], response["success"], response["error"]) == (user, True, None), kind


def test_an_added_memory_is_found(ask: Ask, user: str) -> None:
    ask("add", user, content="我喜欢喝绿茶。", metadata={"session_id": "s1"})

    (memory,) = ask("search", user, query="我喜欢喝什么？", limit=3)["memories"]

    assert memory["content"] == memory["memory"] == "我喜欢喝绿茶。"
    assert set(memory) >= {"id", "content", "memory", "score", "source", "timestamp", "metadata"}


def test_a_profile_is_patched_and_read(ask: Ask, user: str) -> None:
    ask("profile_update", user, updates={"name": "Anna", "likes": {"tea": True}})
    ask("profile_update", user, updates={"name": None, "likes": {"cello": True}})

    assert ask("profile_get", user)["user_profile"] == {"likes": {"tea": True, "cello": True}}


def test_a_published_message_is_indexed(client: redis.Redis, ask: Ask, user: str) -> None:
    event = {
        "user_id": user,
        "content": "I was born in Harbin.",
        "source": "user",
        "timestamp": 1712345678,
        "meta": {"session_id": "s1"},
    }

    client.publish("memory_updates", json.dumps(event))

    memories: Any = wait_until(
        lambda: ask("search", user, query="Where was I born?")["memories"], description="the message to be indexed"
    )
    assert (memories[0]["content"], memories[0]["timestamp"]) == ("I was born in Harbin.", 1712345678)


def test_the_error_for_an_unknown_type_names_the_known_ones(ask: Ask, user: str) -> None:
    response = ask("forget", user)

    assert response["success"] is False
    assert "search, add, profile_get, profile_update" in response["error"]
