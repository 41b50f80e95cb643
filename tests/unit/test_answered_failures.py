"""A failure that its response explains is no dead letter; one that an operator has to look at is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import dramatiq
import fakeredis
import pytest
from dramatiq.brokers.stub import StubBroker
from keepsake_client.errors import Unavailable
from keepsake_client.protocol import LTMRequest, RequestType

from adapters.ltm_responses import ResponsePublisher
from services.runtime.errors import Expired, ProfileConflict
from tasks import queues, unknown
from tasks.middleware.deliveries import TooManyDeliveries
from tasks.middleware.retries import Retries, RetryPolicy


class Stage:
    """A worker whose actors fail as a test says, and a subscription to the responses."""

    def __init__(self) -> None:
        server = fakeredis.FakeServer()
        self.client = fakeredis.FakeRedis(server=server)
        self.pubsub = self.client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        self.pubsub.subscribe("ltm_responses")
        self.pubsub.get_message()
        # The worker's own order: ResponsePublisher sees the verdict of Retries.
        self.broker = StubBroker(middleware=[ResponsePublisher(self.client, "ltm_responses"), Retries()])
        self.failures: list[Exception] = []
        self.counted: list[str] = []
        unknown.declare(self.broker, cast(Any, SimpleNamespace(count=self.counted.append)))
        for route in queues.BY_TYPE.values():
            self._declare(route)
        self.worker = dramatiq.Worker(self.broker, worker_timeout=10, worker_threads=1)
        self.worker.start()

    def _declare(self, route: queues.Route) -> None:
        policy = RetryPolicy(max_age_s=60, min_backoff_ms=1, max_backoff_ms=2)

        @dramatiq.actor(broker=self.broker, actor_name=route.actor, queue_name=route.queue, retry=policy)
        def work(request: dict[str, Any], received_at: float, enqueued_at: float) -> dict[str, Any]:
            if self.failures:
                raise self.failures.pop(0)
            return {}

    def ask(self, kind: RequestType, *failures: Exception) -> list[str | None]:
        """The `error` of every response to one request whose first attempts fail in these ways."""
        self.failures = list(failures)
        return self.send(queues.request_message(request(kind), 1.5))

    def send(self, message: dramatiq.Message[Any]) -> list[str | None]:
        """The `error` of every response to this message."""
        self.broker.enqueue(message)
        self.broker.join(message.queue_name, timeout=60_000, fail_fast=False)
        errors = []
        while message := self.pubsub.get_message():
            errors.append(json.loads(message["data"])["error"])
        return errors

    def close(self) -> None:
        self.worker.stop()
        self.broker.close()
        self.pubsub.close()
        self.client.close()


def request(kind: RequestType) -> LTMRequest:
    return LTMRequest(request_id="r1", type=kind, user_id="u1", data={})


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.close()


@pytest.mark.parametrize(
    ("kind", "error"), [("search", Expired("late")), ("profile_update", ProfileConflict(1, 2)), ("add", Expired("x"))]
)
def test_a_failure_that_the_response_explains_is_no_dead_letter(
    stage: Stage, kind: RequestType, error: Exception
) -> None:
    """Given a request that is refused, I expect the answer and no dead letter: an overload would fill Redis."""
    (answered,) = stage.ask(kind, error)

    assert answered is not None
    assert stage.broker.dead_letters == []


@pytest.mark.parametrize("kind", ["search", "profile_get"])
def test_a_search_is_never_a_dead_letter(stage: Stage, kind: RequestType) -> None:
    """Given a crash in a request that has no use tomorrow, I expect the answer and no dead letter."""
    assert stage.ask(kind, ZeroDivisionError()) == ["internal: ZeroDivisionError"]
    assert stage.broker.dead_letters == []


@pytest.mark.parametrize("error", [ZeroDivisionError(), TooManyDeliveries("three workers died")])
def test_a_write_that_fails_unexpectedly_is_a_dead_letter(stage: Stage, error: Exception) -> None:
    """Given a write that crashes, or kills its worker, I expect the answer, and a dead letter to find the cause in."""
    assert stage.ask("add", error) == [f"internal: {type(error).__name__}"]
    assert len(stage.broker.dead_letters) == 1


def test_a_failure_before_a_success_is_not_answered(stage: Stage) -> None:
    """Given a database that is down for two attempts, I expect one answer, the success."""
    assert stage.ask("add", Unavailable("down"), Unavailable("down")) == [None]


@pytest.mark.parametrize("kind", ["search", "profile_update"])
def test_a_request_that_the_worker_does_not_know_is_answered(stage: Stage, kind: RequestType) -> None:
    """Given a request for an actor of a later release, on either queue, I expect the answer to name the remedy, no dead
    letter, whose replay would do what its asker was told to send again, and a count."""
    message = queues.request_message(request(kind), 1.5).copy(actor_name="memory_of_later")

    (answered,) = stage.send(message)

    assert answered is not None
    assert answered.startswith("worker_outdated: ")
    assert "stop the workers of the earlier release" in answered
    assert (stage.broker.dead_letters, stage.counted) == ([], ["worker_outdated"])


def test_an_event_that_the_worker_does_not_know_is_a_dead_letter(stage: Stage) -> None:
    """Given a message without an asker for an actor of a later release, I expect a dead letter, and a count."""
    message = dramatiq.Message[Any](queues.INDEX.queue, "index_of_later", (), {"update": {}}, {})
    stage.broker.declare_queue(queues.INDEX.queue)

    assert stage.send(message) == []
    [letter] = stage.broker.dead_letters
    assert (letter.message_id, letter.actor_name) == (message.message_id, "index_of_later")
    assert stage.counted == ["worker_outdated"]
