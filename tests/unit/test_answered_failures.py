"""A failure that its response explains is no dead letter; one that an operator has to look at is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import dramatiq
import fakeredis
import pytest
from dramatiq.brokers.stub import StubBroker
from keepsake_client.errors import Unavailable
from keepsake_client.protocol import LTMRequest, RequestType

from adapters.ltm_responses import ResponsePublisher
from services.runtime.errors import Expired, ProfileConflict
from tasks import queues
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
        request = LTMRequest(request_id="r1", type=kind, user_id="u1", data={})
        self.broker.enqueue(queues.request_message(request, 1.5))
        self.broker.join(queues.BY_TYPE[kind].queue, timeout=60_000, fail_fast=False)
        errors = []
        while message := self.pubsub.get_message():
            errors.append(json.loads(message["data"])["error"])
        return errors

    def close(self) -> None:
        self.worker.stop()
        self.broker.close()
        self.pubsub.close()
        self.client.close()


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
