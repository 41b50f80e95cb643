"""RabbitMQ for the workers' queues: the same behaviour, while the wire stays on Redis.

On the machine's own RabbitMQ, whose queues of these names are deleted before and after.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.errors import BrokerConnectionError
from keepsake_client.protocol import COUNTERS, LTMRequest
from pika.exceptions import ChannelClosedByBroker
from structlog.testing import capture_logs
from typer.testing import CliRunner

from services.cli.app import build_app
from services.runtime.queues import INDEX_QUEUE, INTERACTIVE_QUEUE, WRITES_QUEUE, dead_letter_queue, delay_queue
from services.runtime.rabbitmq_dead_letters import RabbitmqDeadLetters
from tasks.broker import build_broker, dependencies
from tasks.queues import INDEX, request_message
from tasks.rabbitmq_broker import ReportingRabbitmqBroker
from tests.integration.worker_process import Servers, WorkerProcess, servers
from tests.support import free_port, wait_until
from tests.swallowing_proxy import threaded_proxy

MACHINES_RABBITMQ = "amqp://guest:guest@127.0.0.1:5672"
QUEUES = (INTERACTIVE_QUEUE, WRITES_QUEUE, INDEX_QUEUE)
ALL_WITHIN_S = 180


NAMES = [name for queue in QUEUES for name in (queue, delay_queue(queue), dead_letter_queue(queue))]


def delete(rabbitmq: RabbitmqBroker, names: Iterable[str] = NAMES) -> None:
    """Delete queues, whatever they hold, and have them declared again."""
    for name in names:
        rabbitmq.channel.queue_delete(name)
    rabbitmq.queues_pending |= rabbitmq.queues


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[RabbitmqBroker]:
    """The machine's RabbitMQ, with the workers' queues, which are empty."""
    rabbitmq = build_broker(MACHINES_RABBITMQ, [])
    assert isinstance(rabbitmq, RabbitmqBroker)
    try:
        delete(rabbitmq)
    except BrokerConnectionError as error:
        pytest.skip(f"no RabbitMQ on this machine at {MACHINES_RABBITMQ}: {error!r}")
    for queue in QUEUES:
        rabbitmq.declare_queue(queue, ensure=True)
    yield rabbitmq
    delete(rabbitmq)
    rabbitmq.close()


@pytest.fixture
def classic(rabbitmq: RabbitmqBroker) -> Iterator[RabbitmqBroker]:
    """A broker of an earlier version, on whose queues nothing else works."""
    delete(rabbitmq)
    earlier = RabbitmqBroker(url=MACHINES_RABBITMQ, confirm_delivery=True)
    yield earlier
    delete(rabbitmq)
    earlier.close()


def is_quorum(rabbitmq: RabbitmqBroker, name: str) -> bool:
    """Whether RabbitMQ accepts this declaration of a queue that exists, which it does of one like it alone."""
    arguments = {**rabbitmq._build_queue_arguments(name), "x-queue-type": "quorum"}
    try:
        rabbitmq.channel.queue_declare(name, durable=True, arguments=arguments)
    except ChannelClosedByBroker:
        del rabbitmq.channel
        return False
    return True


def test_an_empty_queue_of_an_earlier_version_is_replaced(rabbitmq: RabbitmqBroker, classic: RabbitmqBroker) -> None:
    """Given a classic queue that is empty and has no consumer, I expect a quorum queue once a broker declares it."""
    classic.declare_queue(INDEX_QUEUE, ensure=True)

    with capture_logs() as lines:
        rabbitmq.declare_queue(INDEX_QUEUE, ensure=True)

    assert is_quorum(rabbitmq, INDEX_QUEUE)
    assert {line["queue"] for line in lines if line["event"] == "queue_replaced"} == {
        INDEX_QUEUE,
        delay_queue(INDEX_QUEUE),
        dead_letter_queue(INDEX_QUEUE),
    }


def test_a_queue_of_an_earlier_version_with_messages_is_used_as_it_is(
    rabbitmq: RabbitmqBroker, classic: RabbitmqBroker
) -> None:
    """Given a classic queue with a message, I expect it kept and told, its dead letters too, so that the earlier
    version can be started again; and another message published to it."""
    message: dramatiq.Message[Any] = dramatiq.Message(INDEX.queue, INDEX.actor, (), {"update": {}}, {})
    classic.declare_queue(INDEX_QUEUE)
    classic.enqueue(message)

    with capture_logs() as lines:
        rabbitmq.enqueue(message)

    kept = [line["queue"] for line in lines if line["event"] == "queue_not_replicated"]
    assert kept == [INDEX_QUEUE, delay_queue(INDEX_QUEUE), dead_letter_queue(INDEX_QUEUE)]
    again = RabbitmqBroker(url=MACHINES_RABBITMQ, confirm_delivery=True)
    again.declare_queue(INDEX_QUEUE, ensure=True)
    again.close()
    with capture_logs():
        wait_until(lambda: rabbitmq.get_queue_message_counts(INDEX_QUEUE)[0] == 2, description="both messages")


def test_a_queue_that_an_earlier_worker_consumes_is_used_as_it_is(
    rabbitmq: RabbitmqBroker, classic: RabbitmqBroker
) -> None:
    """Given an empty classic queue with a consumer, I expect what is published now to reach that consumer."""
    consumer = classic.consume(INDEX_QUEUE, timeout=1_000)
    message: dramatiq.Message[Any] = dramatiq.Message(INDEX.queue, INDEX.actor, (), {"update": {}}, {})

    with capture_logs():
        rabbitmq.enqueue(message)

    received: Any = wait_until(lambda: next(consumer), description="the message")
    assert received.message_id == message.message_id
    consumer.ack(received)
    consumer.close()


def test_what_is_no_message_is_a_dead_letter_of_any_queue(rabbitmq: RabbitmqBroker, classic: RabbitmqBroker) -> None:
    """Given a queue of one's own making, which has no dead letters, and something on it that is no message, I expect it
    among the dead letters all the same."""
    classic.channel.queue_declare(INDEX_QUEUE, durable=True)
    classic.channel.basic_publish("", INDEX_QUEUE, b"no message")

    with capture_logs():
        consumer = rabbitmq.consume(INDEX_QUEUE, timeout=1_000)
        assert next(consumer) is None
        consumer.close()

    letters = RabbitmqDeadLetters(MACHINES_RABBITMQ, 10.0)
    assert [letter.raw for letter in letters.all(INDEX_QUEUE)] == [b"no message"]
    with capture_logs():
        assert rabbitmq.get_queue_message_counts(INDEX_QUEUE)[0] == 0


def test_dead_letters_are_replayed_once_by_two_at_the_same_time(rabbitmq: RabbitmqBroker) -> None:
    """Given dead letters that two terminals replay at once, I expect each sent once, and none lost."""
    for number in range(100):
        message = dramatiq.Message[Any](INDEX.queue, INDEX.actor, (), {"update": {"number": number}}, {})
        rabbitmq.publish_dead_letter(INDEX_QUEUE, message.encode())  # type: ignore[attr-defined]
    letters = list(RabbitmqDeadLetters(MACHINES_RABBITMQ, 10.0).all(INDEX_QUEUE))

    with ThreadPoolExecutor(2) as terminals:
        replayed = [
            terminals.submit(RabbitmqDeadLetters(MACHINES_RABBITMQ, 1.0).replay_all, letters).result for _ in range(2)
        ]
        numbers = [result() for result in replayed]

    left = len(letters) - sum(numbers)
    wait_until(
        lambda: rabbitmq.get_queue_message_counts(INDEX_QUEUE) == (sum(numbers), 0, left), description="all of them"
    )
    assert sum(numbers) + RabbitmqDeadLetters(MACHINES_RABBITMQ, 10.0).drop_all(letters) == 100
    rabbitmq.flush(INDEX_QUEUE)


def test_many_dead_letters_are_removed_in_one_pass(rabbitmq: RabbitmqBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given many dead letters, and two that are alike, I expect all replayed over one connection: one for each, which
    reads all of them, takes hours for thousands."""
    for number in (*range(50), 0):
        message = dramatiq.Message[Any](INDEX.queue, INDEX.actor, (number,), {}, {}, "an id", 1)
        rabbitmq.publish_dead_letter(INDEX_QUEUE, message.encode())  # type: ignore[attr-defined]
    letters = RabbitmqDeadLetters(MACHINES_RABBITMQ, 10.0)
    found = list(letters.all(INDEX_QUEUE))
    opened: list[int] = []
    connect = letters._channel

    def counted() -> Any:
        opened.append(1)
        return connect()

    monkeypatch.setattr(letters, "_channel", counted)

    assert letters.replay_all(found) == len(found) == 51

    assert len(opened) == 1
    wait_until(lambda: rabbitmq.get_queue_message_counts(INDEX_QUEUE) == (51, 0, 0), description="all of them")
    rabbitmq.flush(INDEX_QUEUE)


def test_its_version_is_known(rabbitmq: RabbitmqBroker) -> None:
    """Given RabbitMQ, I expect its version among the dependencies of a process, without the password; of one that does
    not answer, none; of a broker on Redis, nothing."""
    [stated] = dependencies(MACHINES_RABBITMQ)
    assert re.match(r"[0-9]+\.", stated.version or "")
    assert stated.detail == "amqp://guest:***@127.0.0.1:5672"
    [away] = dependencies(f"amqp://guest:guest@127.0.0.1:{free_port()}")
    assert away.version is None
    assert dependencies("redis://127.0.0.1:6379/0") == []


def test_a_publication_that_is_not_confirmed_ends(rabbitmq: RabbitmqBroker) -> None:
    """Given a RabbitMQ that accepts a message and says no more, I expect an error on which everything tries again
    later; and the next message published once it answers."""
    message: dramatiq.Message[Any] = dramatiq.Message(INDEX.queue, INDEX.actor, (), {"update": {}}, {})
    with threaded_proxy(5672) as proxy:
        url = MACHINES_RABBITMQ.replace("5672", str(proxy.port))
        through = ReportingRabbitmqBroker(url=url, confirm_delivery=True, publish_timeout_s=0.5)
        through.enqueue(message)
        proxy.swallow()

        with pytest.raises(BrokerConnectionError, match="PublishTimedOut"):
            through.enqueue(message)

        proxy.forward()
        through.enqueue(message)
        through.close()
    rabbitmq.flush(INDEX_QUEUE)


def test_what_an_earlier_consumer_delivered_acknowledges_no_other_message(rabbitmq: RabbitmqBroker) -> None:
    """Given a worker that finishes a message of a connection that is lost, I expect the message that has its number on
    the new connection, here the same one again, to stay on the queue."""
    message: dramatiq.Message[Any] = dramatiq.Message(INDEX.queue, INDEX.actor, (), {"update": {}}, {})
    rabbitmq.enqueue(message)
    lost = rabbitmq.consume(INDEX_QUEUE, timeout=1_000)
    earlier: Any = wait_until(lambda: next(lost), description="the message")
    lost.close()
    consumer = rabbitmq.consume(INDEX_QUEUE, timeout=1_000)
    again: Any = wait_until(lambda: next(consumer), description="the message again")
    assert again._tag == earlier._tag

    consumer.ack(earlier)
    consumer.nack(earlier)
    consumer.close()

    wait_until(lambda: rabbitmq.get_queue_message_counts(INDEX_QUEUE) == (1, 0, 0), description="the message, back")
    rabbitmq.flush(INDEX_QUEUE)


def body(**changed: Any) -> bytes:
    """A message to index, changed by hand."""
    message = dramatiq.Message[Any](INDEX.queue, INDEX.actor, (), {"update": {}}, {})
    return json.dumps({**message.asdict(), **changed}).encode()


class Site:
    """Servers, one worker for each group of queues, the adapters, and an asker on the public wire."""

    def __init__(self, running: Servers, rabbitmq: RabbitmqBroker) -> None:
        self.running = running
        self.rabbitmq = rabbitmq
        self.letters = RabbitmqDeadLetters(MACHINES_RABBITMQ, 10.0)
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

    def ltm(self, *command: str) -> str:
        """What a command of `ltm` prints."""
        # Of a port that is no management API's, so that the machine's own may have one.
        management = f"http://127.0.0.1:{free_port()}"
        environment = {
            **self.running.environment,
            "BROKER_URL": MACHINES_RABBITMQ,
            "RABBITMQ_MANAGEMENT_URL": management,
            "COLUMNS": "400",
        }
        return CliRunner().invoke(build_app(), command, env=environment).output

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


def test_what_cannot_be_indexed_is_a_dead_letter_that_says_why(site: Site) -> None:
    """Given a message that fails permanently, I expect it among the dead letters, with its error, where it was raised,
    and when; and the next one indexed."""
    bad: dramatiq.Message[Any] = dramatiq.Message(INDEX.queue, INDEX.actor, (), {"update": {}}, {})

    site.rabbitmq.enqueue(bad)
    site.running.index("after the bad one")

    letter: Any = wait_until(lambda: site.letters.get(bad.message_id), description="the dead letter")
    assert (letter.queue, letter.actor, letter.tries, letter.error) == (
        INDEX_QUEUE,
        INDEX.actor,
        1,
        "internal: ValidationError",
    )
    assert "ValidationError" in letter.traceback
    assert letter.died_at >= bad.message_timestamp // 1000
    wait_until(lambda: "after the bad one" in site.running.indexed(), ALL_WITHIN_S, "the next one")


def test_dead_letters_are_listed_replayed_and_dropped(site: Site) -> None:
    """Given dead letters, I expect `ltm dead` to show them and to leave them; a replayed one fails anew, and a dropped
    one is gone."""
    first, second = (dramatiq.Message[Any](INDEX.queue, INDEX.actor, (), {"update": {}}, {}) for _ in range(2))
    for message in (first, second):
        site.rabbitmq.enqueue(message)
    wait_until(
        lambda: site.letters.get(first.message_id) and site.letters.get(second.message_id), description="both of them"
    )

    assert {first.message_id, second.message_id} <= {line.split()[0] for line in site.ltm("dead", "list").splitlines()}
    assert "ValidationError" in site.ltm("dead", "show", first.message_id)
    died_at = site.letters.find(first.message_id).died_at
    assert site.ltm("dead", "drop", second.message_id) == "dropped 1\n"
    assert site.letters.get(second.message_id) is None

    assert site.ltm("dead", "replay", first.message_id) == "replayed 1\n"
    again: Any = wait_until(lambda: site.letters.get(first.message_id), description="its second failure")
    assert again.died_at >= died_at
    assert again.tries == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff{",
        b"[" * 100_000,
        body(actor_name=["a list"]),
        body(options=None),
        body(queue_name="of another worker"),
        body(options={"throws": "no class"}),
    ],
    ids=["bytes", "nested", "actor", "options", "queue", "throws"],
)
def test_what_is_no_message_is_a_dead_letter_that_can_be_dropped(site: Site, raw: bytes) -> None:
    """Given something on a queue that would end a thread of a worker, I expect a dead letter that can be dropped alone,
    and the next message indexed."""
    site.rabbitmq.channel.basic_publish("", INDEX_QUEUE, raw)
    following = f"after {uuid.uuid4()}"
    site.running.index(following)

    def found() -> Any:
        return next((letter for letter in site.letters.all(INDEX_QUEUE) if letter.raw == raw), None)

    letter = wait_until(found, description="the dead letter")
    assert letter.died_at > 1_700_000_000
    assert site.letters.drop(letter) is True
    assert found() is None
    wait_until(lambda: following in site.running.indexed(), ALL_WITHIN_S, "the next one")


def test_a_request_that_the_worker_does_not_know_is_answered(site: Site) -> None:
    """Given a request for an actor of a later release, I expect its answer, a count, and no dead letter."""
    request = LTMRequest(request_id="of later", type="search", user_id="u1", data={"query": "x", "deadline_ms": 60_000})
    message = request_message(request, time.time()).copy(actor_name="memory_of_later")

    site.rabbitmq.enqueue(message)

    assert site.answer("of later")["error"].startswith("worker_outdated: ")
    assert site.running.client.hget(COUNTERS, "worker_outdated") == b"1"
    assert site.counts(INTERACTIVE_QUEUE)[2] == 0


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
    """Given an outage and a kill, I expect tracebacks of messages alone that could not be run."""
    tracebacks = [line for line in site.indexer.log().splitlines() if "Traceback" in line]

    assert tracebacks
    assert all("ValidationError" in line or "DecodeError" in line for line in tracebacks)


def test_without_the_management_api_the_status_says_how_to_have_it(site: Site) -> None:
    """Given a RabbitMQ without its management API, I expect one line with the remedy, and no password."""
    output = site.ltm("status")

    assert "the queues on amqp://guest:***@127.0.0.1:5672: RabbitMQ's management API does not answer" in output
    assert "enable it (rabbitmq-plugins enable rabbitmq_management), or set RABBITMQ_MANAGEMENT_URL" in output
