"""Dead letters and rejects as the gateway sees them, on a real Valkey."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from keepsake_client.protocol import process_key

from services.runtime.errors import StackError
from services.runtime.failed_messages import FailedMessages
from services.runtime.process_record import ProcessRecord
from services.runtime.queues import QueueKeys
from services.runtime.rejected import add_reject
from services.runtime.settings import load_settings


@pytest.fixture
def url(valkey_url: str) -> str:
    return valkey_url.removesuffix("/0") + "/6"


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        yield client
        client.flushdb()


@pytest.fixture
def failed(client: Any, url: str) -> FailedMessages:
    return FailedMessages(load_settings(redis_url=url))


def dies(client: Any, queue: str, letter_id: str, at_ms: int, body: str | None = None) -> None:
    """Put a dead letter where Dramatiq puts it."""
    options = {"error": "internal: ValueError", "traceback": "Traceback …", "retries": 3}
    message = {"actor_name": "memory.index", "args": [], "kwargs": {"update": {"content": "tea"}}, "options": options}
    keys = QueueKeys(queue)
    client.zadd(keys.dead_ids, {letter_id: at_ms})
    client.hset(keys.dead_messages, letter_id, json.dumps(message) if body is None else body)


def test_the_newest_dead_letters_are_listed(client: Any, failed: FailedMessages) -> None:
    """Given dead letters of two queues, I expect the last ones of both, newest first, each with payload, error and
    traceback."""
    for number, queue in enumerate(("index", "writes", "index")):
        dies(client, queue, f"m{number}", 1_000 * number)

    letters = asyncio.run(failed.dead_letters(2))

    assert [(letter.id, letter.queue, letter.died_at) for letter in letters] == [
        ("m2", "index", 2),
        ("m1", "writes", 1),
    ]
    assert letters[0].payload == {"args": [], "update": {"content": "tea"}}
    assert (letters[0].error, letters[0].traceback, letters[0].tries) == ("internal: ValueError", "Traceback …", 3)


def test_one_dead_letter_is_replayed_and_one_dropped(client: Any, failed: FailedMessages) -> None:
    """Given three dead letters, I expect one on its queue again, without its past, one gone and the third as it was;
    each of them once."""
    for name in ("again", "gone", "left"):
        dies(client, "index", name, 1)

    assert [asyncio.run(failed.replay("again")), asyncio.run(failed.replay("again"))] == [True, False]
    assert [asyncio.run(failed.drop("gone")), asyncio.run(failed.drop("gone"))] == [True, False]

    assert [letter.id for letter in asyncio.run(failed.dead_letters())] == ["left"]
    keys = QueueKeys("index")
    [waiting] = client.lrange(keys.ids, 0, -1)
    message = json.loads(client.hget(keys.messages, waiting))
    assert (message["kwargs"], message["options"]) == (
        {"update": {"content": "tea"}},
        {"redis_message_id": waiting.decode()},
    )


def test_all_of_a_queue_are_replayed_oldest_first(client: Any, failed: FailedMessages) -> None:
    """Given dead letters of two queues, one of them unreadable, I expect one queue's on it again in order."""
    for number in (2, 1, 3):
        dies(client, "index", f"m{number}", number, json.dumps(_numbered(number)))
    dies(client, "index", "broken", 4, "no JSON")
    dies(client, "writes", "other", 1)

    assert asyncio.run(failed.replay_all("index")) == 3

    keys = QueueKeys("index")
    bodies = client.hmget(keys.messages, client.lrange(keys.ids, 0, -1))
    assert [json.loads(body)["kwargs"]["number"] for body in bodies] == [1, 2, 3]
    assert {letter.id for letter in asyncio.run(failed.dead_letters())} == {"broken", "other"}


def _numbered(number: int) -> dict[str, Any]:
    return {"actor_name": "memory.index", "args": [], "kwargs": {"number": number}, "options": {}}


def test_what_is_no_message_can_be_dropped_alone(client: Any, failed: FailedMessages) -> None:
    """Given a dead letter that no worker can read, I expect no replay, and a drop."""
    dies(client, "writes", "broken", 1, "no JSON")

    assert [asyncio.run(failed.replay("broken")), asyncio.run(failed.drop("broken"))] == [False, True]


@pytest.mark.parametrize(
    ("broker", "stated", "words"),
    [
        ("amqp://guest:secret@127.0.0.1:1/", None, r"guest:\*\*\*@127.0.0.1:1/: ConnectionRefusedError: "),
        (None, "amqp://rabbit:5672/", "amqp://rabbit:5672/: set BROKER_URL as for the processes"),
    ],
    ids=["RabbitMQ", "RabbitMQ, which the gateway does not know"],
)
def test_queues_that_are_elsewhere_are_told(
    client: Any, url: str, broker: str | None, stated: str | None, words: str
) -> None:
    """Given queues on RabbitMQ, I expect an error that says where to look, without a password."""
    if stated:
        client.set(process_key("long-term-memory-adapters"), ProcessRecord(broker=stated).model_dump_json())
    failed = FailedMessages(load_settings(redis_url=url, broker_url=broker))

    for call in (failed.dead_letters(), failed.replay("x"), failed.drop("x")):
        with pytest.raises(StackError, match=words):
            asyncio.run(call)


def test_the_newest_rejects_are_listed(client: Any, failed: FailedMessages) -> None:
    """Given rejects, one of bytes that are no UTF-8, I expect the last ones, newest first, with place and reason."""
    for number in range(3):
        add_reject(client, "memory_updates", f"invalid_request: {number}", b"\xff{")

    rejects = asyncio.run(failed.rejects(2))

    assert [(one.reason, one.at, one.message) for one in rejects] == [
        ("invalid_request: 2", "memory_updates", "\ufffd{"),
        ("invalid_request: 1", "memory_updates", "\ufffd{"),
    ]
    assert rejects[0].rejected_at >= rejects[1].rejected_at > 1_700_000_000
