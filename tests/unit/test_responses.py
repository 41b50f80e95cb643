"""An actor's outcome becomes a response: when it is final, and once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any

import dramatiq
import fakeredis
import pytest
import redis
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Retries
from keepsake_client.errors import Unavailable
from keepsake_client.protocol import COUNTERS, LTMRequest, Memory
from redis.client import PubSub
from structlog.testing import capture_logs

from adapters.ltm_responses import ResponsePublisher
from services.runtime.errors import Expired, ProfileConflict
from tasks import queues
from tests.support import wait_until

SECRET = "the user's own words"


@dataclass
class Stage:
    """A worker whose actor `memory.search` does what a test says, and a subscription to the responses."""

    server: fakeredis.FakeServer
    broker: StubBroker
    pubsub: PubSub
    does: list[Callable[[], dict[str, Any]]] = field(default_factory=list)
    runs: int = 0

    def ask(self, request_id: str = "r1") -> None:
        """Send a request, and wait until the worker has finished it."""
        request = LTMRequest(request_id=request_id, type="search", user_id="u1", data={"query": SECRET})
        self.broker.enqueue(queues.request_message(request, 1.5))
        self.broker.join("interactive", timeout=60_000, fail_fast=False)

    def run(self) -> dict[str, Any]:
        self.runs += 1
        return self.does.pop(0)()

    def answers(self) -> list[dict[str, Any]]:
        """The responses since the last call; the worker has finished, so they are all there."""
        found = []
        while message := self.pubsub.get_message():
            found.append(json.loads(message["data"]))
        return found


@pytest.fixture
def stage() -> Iterator[Stage]:
    server = fakeredis.FakeServer()
    with fakeredis.FakeRedis(server=server) as publisher, fakeredis.FakeRedis(server=server) as listener:
        # The worker's own order: ResponsePublisher sees the verdict of Retries.
        broker = StubBroker(middleware=[ResponsePublisher(publisher, "ltm_responses"), Retries()])
        with listener.pubsub(ignore_subscribe_messages=True) as pubsub:
            pubsub.subscribe("ltm_responses")
            pubsub.get_message()
            stage = Stage(server, broker, pubsub)

            @dramatiq.actor(
                broker=broker,
                actor_name="memory.search",
                queue_name="interactive",
                max_retries=2,
                min_backoff=1,
                max_backoff=2,
                throws=(ProfileConflict, Expired),
            )
            def search(request: dict[str, Any], received_at: float, enqueued_at: float) -> dict[str, Any]:
                return stage.run()

            worker = dramatiq.Worker(broker, worker_timeout=10, worker_threads=1)
            worker.start()
            yield stage
            worker.stop()
        broker.close()


def succeed() -> dict[str, Any]:
    return {"memories": [Memory(id="m1", content="I like tea", score=0.5, timestamp=1.0)]}


def be_unavailable() -> dict[str, Any]:
    raise Unavailable("PostgreSQL does not answer")


def conflict() -> dict[str, Any]:
    raise ProfileConflict(1, 2)


def crash() -> dict[str, Any]:
    raise ZeroDivisionError(SECRET)


def test_what_the_actor_returns_is_answered(stage: Stage) -> None:
    """Given an actor that succeeds, I expect its fields in the response, with the asker's ids."""
    stage.does = [succeed]

    stage.ask()

    (response,) = stage.answers()
    assert (response["request_id"], response["user_id"], response["success"], response["error"]) == (
        "r1",
        "u1",
        True,
        None,
    )
    assert [memory["content"] for memory in response["memories"]] == ["I like tea"]


def succeed_slowly() -> dict[str, Any]:
    time.sleep(0.03)
    return succeed()


def test_an_answer_is_logged_with_its_times(stage: Stage) -> None:
    """Given an answer, I expect one line: ids, how long it waited, how long it took, and no contents."""
    stage.does = [succeed_slowly]

    with capture_logs() as logs:
        stage.ask()

    (line,) = [entry for entry in logs if entry["event"] == "responded"]
    assert (line["request_id"], line["user_id"], line["type"], line["success"]) == ("r1", "u1", "search", True)
    assert line["queued_ms"] > 0
    assert 30 <= line["worked_ms"] < 10_000
    assert SECRET not in str(logs)


@pytest.mark.parametrize(
    ("received", "queued_ms"),
    [({"received_at": 999.98766}, 12.3), ({"received_at": 1_000.5}, 0.0), ({}, 0.0)],
    ids=["before", "on a clock that is ahead", "not known"],
)
def test_times_are_in_milliseconds(stage: Stage, received: dict[str, float], queued_ms: float) -> None:
    """Given work of 0.25 s, I expect it and the wait before it in ms, to a tenth, and none below 0."""
    request = {"request_id": "r1", "type": "search", "user_id": "u1"}
    message = dramatiq.MessageProxy(
        dramatiq.Message("interactive", "memory.search", (), {"request": request, **received}, {})
    )
    moments = chain([1_000.0], repeat(1_000.25))
    with fakeredis.FakeRedis(server=stage.server) as client, capture_logs() as lines:
        publisher = ResponsePublisher(client, "ltm_responses", clock=lambda: next(moments))
        publisher.before_process_message(stage.broker, message)
        publisher.after_process_message(stage.broker, message, result={})

    assert lines == [
        {
            "event": "responded",
            "log_level": "info",
            "request_id": "r1",
            "user_id": "u1",
            "type": "search",
            "success": True,
            "queued_ms": queued_ms,
            "worked_ms": 250.0,
        }
    ]


def test_a_domain_error_is_answered_with_its_text(stage: Stage) -> None:
    """Given an actor that refuses, I expect the error's code and text, and no success."""
    stage.does = [conflict]

    stage.ask()

    (response,) = stage.answers()
    assert (response["success"], response["error"]) == (
        False,
        "conflict: expected_version is 1 and the profile is at version 2",
    )


def test_a_failure_carries_the_six_fields(stage: Stage) -> None:
    """Given an actor that refuses, I expect the six fields all the same."""
    stage.does = [conflict]

    stage.ask()

    assert set(stage.answers()[0]) == {"request_id", "user_id", "success", "memories", "user_profile", "error"}


def test_an_unexpected_error_is_answered_without_its_text(stage: Stage) -> None:
    """Given a crash whose message quotes the user, I expect `internal:` and the kind of error, and no quote."""
    stage.does = [crash] * 3

    stage.ask()

    assert [response["error"] for response in stage.answers()] == ["internal: ZeroDivisionError"]


def test_a_retry_that_succeeds_is_answered_once(stage: Stage) -> None:
    """Given an actor that succeeds at its second attempt, I expect one answer, the success."""
    stage.does = [be_unavailable, succeed]

    stage.ask()

    assert [response["success"] for response in stage.answers()] == [True]


def test_retries_are_answered_at_their_end_alone(stage: Stage) -> None:
    """Given an actor that fails every time, I expect one answer after the last attempt."""
    stage.does = [be_unavailable] * 3

    stage.ask()

    assert [response["error"] for response in stage.answers()] == ["unavailable: PostgreSQL does not answer"]
    assert stage.runs == 3


def test_an_error_that_is_not_retried_is_answered_at_once(stage: Stage) -> None:
    """Given an error that the actor declares as final, I expect the answer after one attempt."""
    stage.does = [conflict]

    stage.ask()

    assert stage.runs == 1


def test_a_response_that_cannot_be_published_does_not_fail_its_message(stage: Stage) -> None:
    """Given a Redis that is down when the answer is ready, I expect the message acknowledged: its work is done."""

    def succeed_as_redis_goes() -> dict[str, Any]:
        stage.server.connected = False
        return succeed()

    stage.does = [succeed_as_redis_goes]
    stage.ask()
    stage.server.connected = True

    assert (stage.runs, stage.broker.dead_letters) == (1, [])


def test_a_response_that_cannot_be_published_does_not_stop_the_next(stage: Stage) -> None:
    """Given a Redis that was down for one answer, I expect the next one."""

    def succeed_as_redis_goes() -> dict[str, Any]:
        stage.server.connected = False
        return succeed()

    stage.does = [succeed_as_redis_goes, succeed]
    stage.ask("r1")
    stage.server.connected = True
    stage.ask("r2")

    assert [response["request_id"] for response in stage.answers()] == ["r2"]


def test_a_response_that_cannot_be_published_is_logged(stage: Stage) -> None:
    """Given a Redis that is down, I expect a line with the request's id and the reason."""

    def succeed_as_redis_goes() -> dict[str, Any]:
        stage.server.connected = False
        return succeed()

    stage.does = [succeed_as_redis_goes]
    with capture_logs() as lines:
        stage.ask()
    stage.server.connected = True

    [line] = [line for line in lines if line["event"] == "response_not_published"]
    assert (line["request_id"], line["log_level"]) == ("r1", "warning")
    assert line["reason"].startswith("ConnectionError")


def test_a_response_is_deduplicated(stage: Stage) -> None:
    """Given one message run twice, as when a worker froze and resumed, I expect its first answer and no other."""
    request = LTMRequest(request_id="r1", type="search", user_id="u1", data={"query": SECRET})
    message = queues.request_message(request, 1.5)
    stage.does = [succeed, expire]

    with capture_logs() as lines:
        for _ in range(2):
            stage.broker.enqueue(message)
            stage.broker.join("interactive", timeout=60_000, fail_fast=False)

    assert (stage.runs, [answer["success"] for answer in stage.answers()]) == (2, [True])
    assert [(line["event"], line["request_id"]) for line in lines] == [
        ("responded", "r1"),
        ("response_deduplicated", "r1"),
    ]


def test_a_request_id_that_is_used_again_is_answered_again(stage: Stage) -> None:
    """Given an asker that gives all its requests one id, I expect each answered."""
    stage.does = [succeed, succeed]

    stage.ask("r1")
    stage.ask("r1")

    assert [answer["request_id"] for answer in stage.answers()] == ["r1", "r1"]


def test_a_response_without_a_listener_is_no_error(stage: Stage) -> None:
    """Given no subscriber any more, I expect the response published all the same, and no warning."""
    stage.pubsub.unsubscribe()  # type: ignore[no-untyped-call]
    stage.does = [succeed]

    with capture_logs() as lines:
        stage.ask()

    assert [(line["event"], line["log_level"]) for line in lines] == [("responded", "info")]


def test_no_content_is_logged_with_a_response(stage: Stage) -> None:
    """Given an answer, I expect its line in the log to hold ids and no content."""
    stage.does = [succeed]

    with capture_logs() as lines:
        stage.ask()

    assert "tea" not in str(lines)


def test_an_event_has_no_response(stage: Stage) -> None:
    """Given an actor message without a request, as memory.index has, I expect no response."""
    done = []

    @dramatiq.actor(broker=stage.broker, actor_name="memory.index", queue_name="index")
    def index(update: dict[str, Any]) -> None:
        done.append(update)

    index.send(update={"user_id": "u1"})
    wait_until(lambda: done, description="the event")
    stage.broker.join("index", timeout=60_000)

    assert stage.answers() == []


def expire() -> dict[str, Any]:
    raise Expired("too late")


@pytest.mark.parametrize(
    ("outcome", "counter"),
    [(expire, b"searches_expired"), (lambda: {**succeed(), "partial": True}, b"searches_partial")],
)
def test_a_search_that_ran_out_of_time_is_counted(
    stage: Stage, outcome: Callable[[], dict[str, Any]], counter: bytes
) -> None:
    """Given a search that expired, or was cut short, I expect it among the counters that `ltm status` shows."""
    stage.does = [outcome]

    stage.ask()

    with fakeredis.FakeRedis(server=stage.server) as client:
        assert client.hgetall(COUNTERS) == {counter: b"1"}


def test_a_search_that_cannot_be_counted_is_no_error(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a Redis that goes down after a partial search was answered, I expect the answer, and no error."""

    def fail(*_: Any) -> None:
        raise redis.ConnectionError("gone")

    request = LTMRequest(request_id="r1", type="search", user_id="u1", data={"query": SECRET})
    message = dramatiq.MessageProxy(queues.request_message(request, 1.5))
    with fakeredis.FakeRedis(server=stage.server) as client:
        monkeypatch.setattr(client, "hincrby", fail)
        publisher = ResponsePublisher(client, "ltm_responses")
        publisher.after_process_message(stage.broker, message, result={"memories": [], "partial": True})

    assert [answer["partial"] for answer in stage.answers()] == [True]
