"""The public client on a real Valkey; the test is the long-term memory that responds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from keepsake_client import AsyncClient, Client, KeepsakeError, RequestTimeout, Unavailable
from keepsake_client.protocol import parse_update

from tests.integration.responder import responding
from tests.support import AdvancedLoop, eventually, wait_until
from tests.swallowing_proxy import SwallowingProxy

LONG_MS = 60_000


@pytest.fixture
def valkey(valkey_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey_url) as client:
        client.flushall()
        yield client


def port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


def test_threads_get_their_own_responses(valkey: redis.Redis, valkey_url: str) -> None:
    """Given a hundred searches from ten threads, I expect each to get its user's memories, over one subscription."""
    users = [f"user {number}" for number in range(100)]
    with responding(valkey_url), Client(valkey_url) as client, ThreadPoolExecutor(10) as threads:
        found = list(threads.map(lambda user: client.search(user, "pet?", deadline_ms=LONG_MS), users))
        subscriptions: Any = valkey.pubsub_numsub("ltm_responses")

    assert [memories[0].content for memories in found] == [f"{user} has a cat" for user in users]
    assert subscriptions == [(b"ltm_responses", 1)]


def test_more_requests_than_connections_wait_for_one(valkey: redis.Redis, valkey_url: str) -> None:
    """Given 300 searches at once, I expect each to be answered over the client's 32 connections."""

    async def story() -> None:
        async with AsyncClient(valkey_url) as client:
            await asyncio.gather(*(client.search(f"user {n}", "pet?", deadline_ms=LONG_MS) for n in range(300)))
            assert client.counts == {"ok": 300}

    with responding(valkey_url):
        asyncio.run(story())


def test_a_client_serves_one_event_loop_after_another(valkey: redis.Redis, valkey_url: str) -> None:
    """Given a client that is opened and closed by two `asyncio.run`, I expect responses in each."""
    client = AsyncClient(valkey_url)

    async def story() -> None:
        async with client:
            await client.remember("u1", "I have a cat")
            assert await client.search("u1", "pet?", deadline_ms=LONG_MS)

    with responding(valkey_url):
        asyncio.run(story())
        asyncio.run(story())


def test_a_half_open_connection_is_noticed_and_replaced(valkey: redis.Redis, valkey_url: str) -> None:
    """Given a network that swallows all traffic without closing a connection, I expect a pending request to fail long
    before its deadline, others at once; and once new connections get through, every request to succeed, for no
    connection from before is used again."""

    def later() -> bool:
        """A second passes."""
        runner.get_loop().ahead += 1  # type: ignore[attr-defined]
        return True

    async def story() -> None:
        async with SwallowingProxy(port_of(valkey_url)) as proxy:
            url = f"redis://127.0.0.1:{proxy.port}/0"
            async with AsyncClient(url, ping_interval_s=0.1) as client:

                async def ask(deadline_ms: int = LONG_MS) -> bool:
                    return (await client.profile_get("u1", deadline_ms=deadline_ms)).success

                assert all(await asyncio.gather(*(ask() for _ in range(10))))  # fills the pool of connections
                proxy.swallow()
                pending = asyncio.create_task(ask(deadline_ms=600_000))
                await eventually(lambda: later() and pending.done(), description="the end of the request")
                with pytest.raises(Unavailable):
                    await pending
                for _ in range(10):
                    with pytest.raises(Unavailable):
                        await ask()

                proxy.forward()

                async def responds() -> bool:
                    later()  # what began to connect before waits for its time-out
                    try:
                        return await ask()
                    except Unavailable:
                        return False

                await eventually(responds, description="a response over a new connection")
                assert all(await asyncio.gather(*(ask() for _ in range(20))))

    with responding(valkey_url), asyncio.Runner(loop_factory=AdvancedLoop) as runner:
        runner.run(story())


def test_requests_that_no_adapter_takes_do_not_pile_up(valkey: redis.Redis, valkey_url: str) -> None:
    """Given a list that nothing reads, I expect each request to leave it at its deadline, and others' to stay."""
    valkey.lpush("ltm_requests", "of another client")
    with Client(valkey_url) as client, ThreadPoolExecutor(5) as threads:
        errors = list(threads.map(lambda _: outcome(client), range(20)))

    assert errors == [RequestTimeout] * 20
    assert valkey.lrange("ltm_requests", 0, -1) == [b"of another client"]


def outcome(client: Client) -> type[KeepsakeError] | None:
    try:
        client.profile_get("u1", deadline_ms=50)
    except KeepsakeError as error:
        return type(error)
    return None


def test_remember_is_one_transaction(valkey: redis.Redis, valkey_url: str) -> None:
    """Given a message, I expect XADD with a length limit and PUBLISH between MULTI and EXEC, of the same event."""
    with (
        valkey.monitor() as monitor,  # type: ignore[no-untyped-call]  # redis-py left it out
        redis.Redis.from_url(valkey_url) as other,
        Client(valkey_url, stream_max_len=1_000) as client,
    ):
        message_id = client.remember("u1", "tea", session="s1")
        other.echo("the end")
        commands: list[str] = []
        while "the end" not in (command := monitor.next_command()["command"]):
            commands.append(command)

    (began,) = (number for number, command in enumerate(commands) if command == "MULTI")
    (ended,) = (number for number, command in enumerate(commands) if command == "EXEC")
    xadd, publish = (command for command in commands[began + 1 : ended])
    assert xadd.startswith("XADD memory_updates:log MAXLEN ~ 1000 * event {")
    assert publish.startswith("PUBLISH memory_updates {")
    entries: Any = valkey.xrange("memory_updates:log")
    [(_, fields)] = entries
    event = json.loads(fields[b"event"])
    assert (event["message_id"], event["logged"], event["meta"]) == (message_id, True, {"session_id": "s1"})
    assert parse_update(json.dumps(event).encode(), 100).content == "tea"


def test_without_the_right_to_xadd_remember_publishes_alone(valkey: redis.Redis, valkey_url: str) -> None:
    """Given a user whose ACL lacks XADD, I expect one event on the channel without `logged`, none in the stream."""
    rules = [">secret", "-@all", "+@connection", "+multi", "+exec", "+publish", "&*", "~*"]
    admin: Any = valkey  # redis-py has no types for ACL SETUSER
    admin.execute_command("ACL", "SETUSER", "narrow", "reset", "on", *rules)
    url = f"redis://narrow:secret@127.0.0.1:{port_of(valkey_url)}/0"

    async def remember() -> str:
        client = AsyncClient(url)
        try:
            return await client.remember("u1", "tea")
        finally:
            await client.close()

    with valkey.pubsub(ignore_subscribe_messages=True) as pubsub:  # type: ignore[no-untyped-call]
        pubsub.subscribe("memory_updates")
        pubsub.get_message(timeout=60)
        message_id = asyncio.run(remember())
        valkey.publish("memory_updates", json.dumps("the end"))
        events: list[Any] = []
        while "the end" not in events:
            message: Any = wait_until(lambda: pubsub.get_message(timeout=0.1), description="an event")
            events.append(json.loads(message["data"]))
    admin.execute_command("ACL", "DELUSER", "narrow")

    assert [(event["message_id"], "logged" in event) for event in events[:-1]] == [(message_id, False)]
    assert not valkey.exists("memory_updates:log")


def test_a_full_redis_refuses_to_remember(valkey: redis.Redis, valkey_url: str) -> None:
    """Given a Redis over its memory limit, I expect an exception, and nothing in the stream."""
    with Client(valkey_url) as client:
        valkey.config_set("maxmemory", "1")
        try:
            with pytest.raises(Unavailable, match="it is full"):
                client.remember("u1", "tea")
        finally:
            valkey.config_set("maxmemory", "0")
        assert client.remember("u1", "tea", message_id="m1") == "m1"

    assert valkey.xlen("memory_updates:log") == 1
