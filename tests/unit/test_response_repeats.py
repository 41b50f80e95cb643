"""Responses to requests without a deadline are published again, a little later; the others once, as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
import fakeredis
import pytest
import redis
from dramatiq.brokers.stub import StubBroker
from keepsake_client.protocol import COUNTERS, LTMRequest, LTMResponse
from redis.client import PubSub

from adapters.ltm_requests import RequestAdapter
from adapters.ltm_responses import ResponsePublisher
from adapters.membership import Membership
from adapters.response_repeats import ResponseRepeats
from services.runtime.rejected import RejectSink
from tasks.queues import request_message
from tests.support import wait_until

#: Short, and in order.
REPEATS_S = (0.01, 0.03)
BROKER = StubBroker(middleware=[])


@pytest.fixture
def client() -> Iterator[fakeredis.FakeRedis]:
    with fakeredis.FakeRedis() as client:
        yield client


@contextmanager
def listening(client: fakeredis.FakeRedis) -> Iterator[PubSub]:
    with client.pubsub(ignore_subscribe_messages=True) as pubsub:  # type: ignore[no-untyped-call]
        pubsub.subscribe("ltm_responses")
        pubsub.get_message()
        yield pubsub


def received(pubsub: PubSub) -> list[bytes]:
    found = []
    while message := pubsub.get_message():
        found.append(message["data"])
    return found


def search(**data: Any) -> dramatiq.MessageProxy:
    request = LTMRequest(request_id="r1", type="search", user_id="u1", data={"query": "tea?", **data})
    return dramatiq.MessageProxy(request_message(request, 1.5))


def test_a_response_without_a_deadline_is_repeated(client: fakeredis.FakeRedis) -> None:
    """Given a search without `deadline_ms`, I expect its response three times, the same bytes each time."""
    publisher = ResponsePublisher(client, "ltm_responses", repeats_s=REPEATS_S)
    with listening(client) as pubsub:
        publisher.after_process_message(BROKER, search(), result={"memories": []})
        publisher.close()
        responses = received(pubsub)

    assert len(responses) == 3
    assert len(set(responses)) == 1


def test_a_response_with_a_deadline_is_published_once(client: fakeredis.FakeRedis) -> None:
    """Given a search with `deadline_ms`, I expect its response once, as it is without repeats, and no thread."""
    publisher = ResponsePublisher(client, "ltm_responses", repeats_s=REPEATS_S)
    with listening(client) as pubsub:
        publisher.after_process_message(BROKER, search(deadline_ms=600), result={"memories": []})
        publisher.close()
        responses = received(pubsub)

    assert responses == [LTMResponse(request_id="r1", user_id="u1", success=True).to_wire().encode()]
    assert publisher._repeats._thread is None


def test_a_failure_is_repeated_too(client: fakeredis.FakeRedis) -> None:
    """Given a search without a deadline that fails, I expect its error response three times."""
    publisher = ResponsePublisher(client, "ltm_responses", repeats_s=REPEATS_S)
    message = search()
    message.fail()
    with listening(client) as pubsub:
        publisher.after_process_message(BROKER, message, exception=ValueError("bug"))
        publisher.close()

        assert [json.loads(raw)["error"] for raw in received(pubsub)] == ["internal: ValueError"] * 3


@pytest.mark.parametrize(("data", "times"), [({}, 3), ({"deadline_ms": 600}, 1)])
def test_an_error_response_of_the_adapter_is_repeated(
    client: fakeredis.FakeRedis, data: dict[str, Any], times: int
) -> None:
    """Given a request of an unknown type, I expect its error response repeated, unless it has a deadline."""
    publisher = ResponsePublisher(client, "ltm_responses", repeats_s=REPEATS_S)
    rejects = RejectSink(client, "ltm_requests")
    adapter = RequestAdapter(
        client, "ltm_requests", Membership(client, "a1"), BROKER, publisher, rejects, 1_000, poll_timeout_s=0.02
    )
    client.lpush("ltm_requests", json.dumps({"request_id": "r1", "type": "find", "user_id": "u1", "data": data}))
    with listening(client) as pubsub:
        adapter.run_once()
        publisher.close()

        assert [json.loads(raw)["request_id"] for raw in received(pubsub)] == ["r1"] * times


def test_without_repeats_every_response_is_published_once(client: fakeredis.FakeRedis) -> None:
    """Given LTM_RESPONSE_REPEATS_MS empty, I expect a response without a deadline once."""
    publisher = ResponsePublisher(client, "ltm_responses")
    with listening(client) as pubsub:
        publisher.after_process_message(BROKER, search(), result={"memories": []})
        publisher.close()

        assert len(received(pubsub)) == 1


def test_repeats_are_bounded(client: fakeredis.FakeRedis) -> None:
    """Given room for one response's repeats, I expect those of a second one left out and counted, and room after."""
    repeats = ResponseRepeats(client, "ltm_responses", [0.05], max_waiting=1)
    with listening(client) as pubsub:
        repeats.add("first")
        repeats.add("second")
        wait_until(lambda: not repeats._waiting, description="the first one's repeat")
        repeats.add("third")
        repeats.close()

        assert received(pubsub) == [b"first", b"third"]
    assert client.hgetall(COUNTERS) == {b"responses_not_repeated": b"1"}


def test_a_repeat_that_fails_ends_nothing(client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a Redis that is away at the first repeat, I expect the second one."""
    publish, failures = client.publish, [redis.ConnectionError("gone")]

    def fail_once(channel: str, message: str) -> Any:
        if failures:
            raise failures.pop()
        return publish(channel, message)

    monkeypatch.setattr(client, "publish", fail_once)
    repeats = ResponseRepeats(client, "ltm_responses", REPEATS_S)
    with listening(client) as pubsub:
        repeats.add("response")
        repeats.close()

        assert received(pubsub) == [b"response"]


def test_large_responses_are_repeated_one_after_the_other(client: fakeredis.FakeRedis) -> None:
    """Given a response whose repeats fill the memory for them, and another once they are published, I expect both
    repeated."""
    large, small = "x" * 9_000_000, "y"
    repeats = ResponseRepeats(client, "ltm_responses", REPEATS_S)
    with listening(client) as pubsub:
        repeats.add(large)
        wait_until(lambda: not repeats._waiting, description="the repeats of the first")
        repeats.add(small)
        repeats.close()

        assert received(pubsub) == [large.encode()] * 2 + [small.encode()] * 2
