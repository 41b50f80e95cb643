"""RabbitMQ for the workers' queues: the same behaviour, while the wire stays on Redis.

On the machine's own RabbitMQ, whose queues of these names are emptied before and after.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.errors import BrokerConnectionError
from typer.testing import CliRunner

from services.cli.app import build_app
from services.runtime.queues import INDEX_QUEUE, INTERACTIVE_QUEUE, WRITES_QUEUE
from tasks.broker import build_broker, dependencies
from tasks.queues import INDEX
from tests.integration.worker_process import Servers, WorkerProcess, servers
from tests.support import free_port, wait_until

MACHINES_RABBITMQ = "amqp://guest:guest@127.0.0.1:5672"
QUEUES = (INTERACTIVE_QUEUE, WRITES_QUEUE, INDEX_QUEUE)
ALL_WITHIN_S = 180


def broker() -> RabbitmqBroker:
    """A broker with the workers' queues declared."""
    broker = build_broker(MACHINES_RABBITMQ, [])
    assert isinstance(broker, RabbitmqBroker)
    for queue in QUEUES:
        broker.declare_queue(queue, ensure=True)
    return broker


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[RabbitmqBroker]:
    """The machine's RabbitMQ, the workers' queues empty."""
    try:
        rabbitmq = broker()
    except BrokerConnectionError as error:
        pytest.skip(f"no RabbitMQ on this machine at {MACHINES_RABBITMQ}: {error!r}")
    rabbitmq.flush_all()
    yield rabbitmq
    rabbitmq.flush_all()
    rabbitmq.close()


def test_its_version_is_known(rabbitmq: RabbitmqBroker) -> None:
    """Given RabbitMQ, I expect its version among the dependencies of a process, without the password; of one that does
    not answer, none; of a broker on Redis, nothing."""
    [stated] = dependencies(MACHINES_RABBITMQ)
    assert re.match(r"[0-9]+\.", stated.version or "")
    assert stated.detail == "amqp://guest:***@127.0.0.1:5672"
    [away] = dependencies(f"amqp://guest:guest@127.0.0.1:{free_port()}")
    assert away.version is None
    assert dependencies("redis://127.0.0.1:6379/0") == []


class Site:
    """Servers, one worker for each group of queues, the adapters, and an asker on the public wire."""

    def __init__(self, running: Servers, rabbitmq: RabbitmqBroker) -> None:
        self.running = running
        self.rabbitmq = rabbitmq
        self.asker = running.worker("asker", INTERACTIVE_QUEUE)
        self.indexer = running.worker("indexer", WRITES_QUEUE, INDEX_QUEUE)
        self.adapters = running.adapters()
        for process in (self.asker, self.indexer, self.adapters):
            process.ready()
        wait_until(
            lambda: running.client.pubsub_numsub("memory_updates")[0][1], description="the adapters' subscription"
        )
        self.answers = running.client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        self.answers.subscribe("ltm_responses")
        wait_until(lambda: running.client.pubsub_numsub("ltm_responses")[0][1], description="the subscription")

    def push(self, kind: str, data: dict[str, Any], user_id: str = "u1") -> str:
        request_id = uuid.uuid4().hex
        # With a deadline, it is answered once.
        data = {"deadline_ms": 60_000, **data}
        request = {"request_id": request_id, "type": kind, "user_id": user_id, "data": data}
        self.running.client.lpush("ltm_requests", json.dumps(request))
        return request_id

    def answer(self, request_id: str) -> dict[str, Any]:
        message: Any = wait_until(self.answers.get_message, ALL_WITHIN_S, "the answer")
        response: dict[str, Any] = json.loads(message["data"])
        assert response["request_id"] == request_id
        return response

    def ask(self, kind: str, **data: Any) -> dict[str, Any]:
        return self.answer(self.push(kind, data))

    def counts(self, queue: str) -> tuple[int, int, int]:
        """How many messages of a queue wait, are delayed and are dead."""
        return self.rabbitmq.get_queue_message_counts(queue)


@pytest.fixture(scope="module")
def site(rabbitmq: RabbitmqBroker) -> Iterator[Site]:
    with servers(MACHINES_RABBITMQ) as running:
        yield Site(running, rabbitmq)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("search", {"query": "tea?", "deadline_ms": 60_000}),
        ("add", {"content": "I like tea"}),
        ("profile_get", {}),
        ("profile_update", {"updates": {"name": "Lin"}}),
    ],
)
def test_each_type_is_answered(site: Site, kind: str, data: dict[str, Any]) -> None:
    """Given a request of each type on the list in Redis, I expect its answer on the channel in Redis."""
    response = site.ask(kind, **data)

    assert (response["success"], response["error"]) == (True, None)


def test_an_event_is_indexed(site: Site) -> None:
    """Given an event on the channel, I expect it in the memory."""
    event = {"user_id": "u2", "content": "My cat is called Tofu", "source": "user", "timestamp": 1}

    site.running.client.publish("memory_updates", json.dumps(event))

    wait_until(lambda: "My cat is called Tofu" in site.running.indexed(), ALL_WITHIN_S, "the memory")


def test_the_queues_are_on_rabbitmq(site: Site) -> None:
    """Given all of the above, I expect no key of the workers' queues in Redis."""
    assert list(site.running.client.scan_iter("dramatiq:*")) == []


def test_a_write_is_retried(site: Site) -> None:
    """Given a PostgreSQL that is down when an add is requested, I expect the answer to be its success."""
    site.running.postgres.stop()
    request_id = site.push("add", {"content": "added in the end"})
    wait_until(lambda: "retry_scheduled" in site.indexer.log(), description="a retry")

    site.running.postgres.start()

    assert site.answer(request_id)["success"]
    assert site.running.indexed().count("added in the end") == 1


def test_what_cannot_be_indexed_is_a_dead_letter(site: Site) -> None:
    """Given a message that fails permanently, I expect it among RabbitMQ's dead letters, and the next one indexed."""
    before = site.counts(INDEX_QUEUE)[2]

    site.rabbitmq.enqueue(dramatiq.Message(INDEX.queue, INDEX.actor, (), {"update": {}}, {}))
    site.running.index("after the bad one")

    wait_until(lambda: site.counts(INDEX_QUEUE)[2] == before + 1, description="the dead letter")
    wait_until(lambda: "after the bad one" in site.running.indexed(), ALL_WITHIN_S, "the next one")


def restarted(site: Site) -> WorkerProcess:
    site.indexer.kill()
    return site.running.worker("indexer", WRITES_QUEUE, INDEX_QUEUE)


def test_a_killed_worker_loses_nothing(site: Site) -> None:
    """Given kill -9 of the indexer in the middle of 200 messages, I expect each of them indexed once."""
    contents = [f"I like tea number {number:03}" for number in range(200)]
    site.running.index(*contents)

    def indexed() -> list[str]:
        return [content for content in site.running.indexed() if content in contents]

    wait_until(lambda: len(indexed()) > 10, ALL_WITHIN_S, "the middle")
    site.indexer = restarted(site)

    wait_until(lambda: len(indexed()) >= len(contents), ALL_WITHIN_S, "all of them")
    assert indexed() == contents


def test_nothing_is_left_on_the_queues(site: Site) -> None:
    """Given all of the above, I expect empty queues."""
    wait_until(lambda: all(site.counts(queue)[:2] == (0, 0) for queue in QUEUES), description="empty queues")


def test_no_traceback_is_logged_for_an_expected_error(site: Site) -> None:
    """Given an outage and a kill, I expect tracebacks of the message alone that could not be indexed."""
    tracebacks = [line for line in site.indexer.log().splitlines() if "Traceback" in line]

    assert ["ValidationError" in line for line in tracebacks] == [True]


def test_the_status_refers_to_rabbitmqs_own_tools(site: Site) -> None:
    """Given queues on RabbitMQ, I expect `ltm status` to say where to look, without the password."""
    environment = {**site.running.environment, "BROKER_URL": MACHINES_RABBITMQ}

    output = CliRunner().invoke(build_app(), ["status"], env=environment).output

    assert "the workers' queues are on amqp://guest:***@127.0.0.1:5672: see RabbitMQ's own tools" in output
