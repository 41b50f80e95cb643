"""A Redis that refuses writes for a while: what is published meanwhile is kept, and written after; on a real Valkey."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest
import redis
from keepsake_client import AsyncClient
from keepsake_client.protocol import COUNTERS, UPDATES_STREAM, conversation_key
from keepsake_client.refusals import refuses_writes
from keepsake_client.subscription import SubscriptionMonitor
from structlog.testing import capture_logs

from adapters.__main__ import Adapters, Timing
from services.chat_ai.replies import QuotingReplier
from services.chat_ai.service import ChatService
from services.memory.conversations import Conversations, Destination
from services.memory.service import MemoryService
from services.runtime.process import LoopConnection
from services.runtime.redis import connect_async
from services.runtime.settings import Settings
from services.stack.embedded_valkey import valkey_spec
from services.stack.locate import FoundStack
from services.stack.status import StatusReader
from tests.support import eventually, free_port, wait_until

#: Pings within the test: a Redis without its disk refuses them, too.
TIMING = Timing(poll_timeout_s=0.05, maintenance_interval_s=0.1, ping_interval_s=0.1, max_silence_s=5)
Refusal = Callable[[Any, Path], Callable[[], Any]]


def full(client: Any, _: Path) -> Callable[[], Any]:
    client.config_set("maxmemory", 1)
    return lambda: client.config_set("maxmemory", 0)


def without_replicas(client: Any, _: Path) -> Callable[[], Any]:
    client.config_set("min-replicas-to-write", 1)
    return lambda: client.config_set("min-replicas-to-write", 0)


def read_only(client: Any, _: Path) -> Callable[[], Any]:
    client.replicaof("127.0.0.1", free_port())
    return lambda: client.replicaof("NO", "ONE")


def without_its_disk(client: Any, data: Path) -> Callable[[], Any]:
    client.config_set("save", "3600 1")
    shutil.rmtree(data)
    client.bgsave()
    wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", description="a failed save")
    return lambda: client.config_set("stop-writes-on-bgsave-error", "no")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The directory of the server's files."""
    directory = tmp_path / "valkey"
    directory.mkdir()
    return directory


@pytest.fixture
def client(data: Path) -> Iterator[Any]:
    """A Valkey of this test alone."""
    port = free_port()
    process = subprocess.Popen(valkey_spec(data, port, ephemeral=True).argv, stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port) as client:
            wait_until(lambda: answers(client), description="Valkey to answer")
            yield client
    finally:
        process.kill()
        process.wait()


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@contextmanager
def adapters_at(client: Any) -> Iterator[Adapters]:
    port = client.connection_pool.connection_kwargs["port"]
    adapters = Adapters(Settings(redis_url=f"redis://127.0.0.1:{port}/0"), TIMING)
    for loop in adapters.loops:
        loop.start()
    try:
        yield adapters
    finally:
        adapters.stop()
        assert [loop.failures for loop in adapters.loops] == [0, 0, 0, 0]


def publish(client: Any, content: str) -> None:
    client.publish("memory_updates", json.dumps({"user_id": "u1", "content": content, "source": "user"}))


def written(client: Any) -> list[str]:
    return [json.loads(fields[b"event"])["content"] for _, fields in client.xrange(UPDATES_STREAM)]


def refused(client: Any) -> bool:
    try:
        client.set("x", "1")
    except redis.ResponseError as error:
        return refuses_writes(error)
    return False


@pytest.mark.parametrize("refusal", [full, without_replicas, read_only, without_its_disk])
def test_what_is_published_meanwhile_is_written_after(client: Any, data: Path, refusal: Refusal) -> None:
    """Given a Redis that refuses writes while ten messages are published, I expect each written once after, one line
    when it begins and one when it ends, and no traceback."""
    with capture_logs() as lines, adapters_at(client) as adapters:
        wait_until(adapters._lease.held, description="a leader")
        accept = refusal(client, data)
        wait_until(lambda: refused(client), description="the refusal")
        for number in range(10):
            publish(client, f"m{number}")
        wait_until(lambda: any(line["event"] == "dependency_down" for line in lines), description="a line about it")
        wait_until(lambda: len(adapters.updates._kept) == 10, description="all of them kept")
        heard_at = adapters.updates.monitor._received_at
        wait_until(lambda: adapters.updates.monitor._received_at != heard_at, description="an answered ping")

        accept()

        wait_until(lambda: len(written(client)) >= 10, description="all of them written")
        publish(client, "after")
        wait_until(lambda: "after" in written(client), description="a later message")
        assert written(client) == [*(f"m{number}" for number in range(10)), "after"]
    told = [line for line in lines if line["log_level"] in ("warning", "error") or line["event"] == "dependency_up"]
    assert [(line["event"], line["dependency"]) for line in told] == [
        ("dependency_down", "redis"),
        ("dependency_up", "redis"),
    ]


@pytest.mark.parametrize("refusal", [full, without_replicas, read_only, without_its_disk])
def test_the_status_says_that_redis_refuses_writes(client: Any, data: Path, refusal: Refusal) -> None:
    """Given a Redis that refuses writes, I expect `ltm status` to say so and why, until it takes them again."""
    port = client.connection_pool.connection_kwargs["port"]
    stack = FoundStack(Settings(redis_url=f"redis://127.0.0.1:{port}/0"), False, ())
    accept = refusal(client, data)
    wait_until(lambda: refused(client), description="the refusal")

    meanwhile = StatusReader(stack).report()
    accept()
    after = StatusReader(stack).report()

    redis_part, _, worker, *_ = meanwhile.parts
    assert (meanwhile.ok, redis_part.state) == (False, "refuses writes")
    assert redis_part.detail
    assert (worker.state, worker.detail) == ("down", "no heartbeat, which Redis refuses")
    assert (after.parts[0].state, after.parts[0].detail) == ("answers", None)
    assert client.dbsize() == 0


def test_one_of_several_adapters_writes_what_all_have_kept(client: Any, data: Path) -> None:
    """Given three adapters whose leader loses the lease during the refusal, I expect each message once."""
    with adapters_at(client) as first, adapters_at(client) as second, adapters_at(client) as third:
        all_adapters = (first, second, third)
        wait_until(lambda: any(each._lease.held() for each in all_adapters), description="a leader")
        wait_until(lambda: all(each.updates.monitor.hears() for each in all_adapters), description="subscriptions")
        accept = without_replicas(client, data)
        publish(client, "m0")
        wait_until(lambda: not any(each._lease.held() for each in all_adapters), description="no leader")
        for number in range(1, 10):
            publish(client, f"m{number}")
        wait_until(lambda: all(len(each.updates._kept) == 10 for each in all_adapters), description="all kept thrice")

        accept()

        wait_until(lambda: any(each._lease.held() for each in all_adapters), description="a leader")
        publish(client, "after")
        wait_until(lambda: "after" in written(client), description="a later message")
        assert written(client) == [*(f"m{number}" for number in range(10)), "after"]


@pytest.mark.parametrize("refusal", [full, without_replicas, read_only, without_its_disk])
def test_replies_of_the_ai_are_stored_after(client: Any, data: Path, refusal: Refusal) -> None:
    """Given a Redis that refuses writes while replies are published, I expect each stored once after, in order, and
    one line of the memory service's two loops when it begins and one when it ends."""
    texts = [f"reply {number}" for number in range(5)]

    async def story() -> None:
        port = client.connection_pool.connection_kwargs["port"]
        async with connect_async(f"redis://127.0.0.1:{port}/0") as connected:
            destination = Destination("memory_updates", UPDATES_STREAM, 1_000)
            service = MemoryService(
                connected,
                Conversations(connected, max_messages=100, ttl_hours=1, destination=destination),
                input_queue="user_input_queue",
                ai_channel="ai_responses",
                max_content_chars=1_000,
                monitor=SubscriptionMonitor(0.1, 5),
            )
            stop = asyncio.Event()
            inputs, replies = LoopConnection("user_input_queue", stop), LoopConnection("ai_responses", stop)
            async with asyncio.TaskGroup() as loops:
                loops.create_task(service.serve_user_inputs(inputs, stop))
                loops.create_task(service.serve_ai_responses(replies, stop))
                await eventually(lambda: inputs.working() and replies.working(), description="working loops")
                accept = refusal(client, data)
                for text in texts:
                    client.publish("ai_responses", json.dumps({"user_id": "u1", "text": text}))
                await eventually(lambda: len(service._waiting) == 4, description="the rest waiting")
                await eventually(lambda: refused(client) and not inputs.working(), description="the refusal")
                accept()
                await eventually(lambda: service.counts["stored"] == 5, description="all of them stored")
                stop.set()

    with capture_logs() as lines:
        asyncio.run(story())
    stored = [json.loads(entry)["content"] for entry in client.lrange(conversation_key("u1"), 0, -1)]
    assert stored == texts
    assert [line["event"] for line in lines] == ["dependency_down", "dependency_up"]


def test_a_reply_that_was_not_handed_to_speech_output_meanwhile_is_counted_after(client: Any, data: Path) -> None:
    """Given a reply for speech output while Redis refuses writes, I expect one line without a traceback, and the
    failure in the counters once Redis takes it."""

    async def story() -> None:
        port = client.connection_pool.connection_kwargs["port"]
        async with connect_async(f"redis://127.0.0.1:{port}/0") as connected:
            service = ChatService(
                connected,
                AsyncClient(connected, enabled=False),
                QuotingReplier(UTC),
                updates_channel="memory_updates",
                ai_channel="ai_responses",
                tts_queue="tts_requests",
                memory_limit=5,
                history_messages=0,
                prompt_max_chars=1_000,
                max_content_chars=1_000,
                zone=UTC,
                monitor=SubscriptionMonitor(0.1, 5),
            )
            stop = asyncio.Event()
            connection = LoopConnection("memory_updates", stop)
            running = asyncio.create_task(service.run(connection, stop))
            try:
                await eventually(connection.working, description="a subscription")
                accept = without_replicas(client, data)
                said = {"user_id": "u1", "content": "hello", "source": "user", "task_id": "t1"}
                client.publish("memory_updates", json.dumps(said))
                await eventually(lambda: service.counts["failed"] == 1, description="the failure")
                accept()
                await eventually(lambda: client.hget(COUNTERS, "replies_failed") == b"1", description="the counter")
            finally:
                stop.set()
                await running

    with capture_logs() as lines:
        asyncio.run(story())
    (failed,) = [line for line in lines if line["event"] == "reply_failed"]
    assert "exc_info" not in failed
    assert "NOREPLICAS" in failed["reason"]
