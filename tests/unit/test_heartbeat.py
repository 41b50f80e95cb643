"""Heartbeats: a key that lives while a process's work loops turn, by thread and by asyncio."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import fakeredis
import pytest
from keepsake_client.protocol import alive_key, instances_key, process_key
from structlog.testing import capture_logs

from services.runtime.heartbeat import (
    HEARTBEAT_INTERVAL_S,
    HEARTBEAT_TTL_S,
    STUCK_AFTER_S,
    HeartbeatThread,
    Liveness,
    send_heartbeats,
)
from services.runtime.process_record import EXPECTED_FOR_S, ProcessRecord, read_records
from tests.support import SkippingLoop, eventually, wait_until

KEY = alive_key("memory")


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """Formats no traceback of a missed heartbeat, which takes a second."""
    with capture_logs():
        yield


@pytest.fixture
def server() -> fakeredis.FakeServer:
    return fakeredis.FakeServer()


@pytest.fixture
def reader(server: fakeredis.FakeServer) -> fakeredis.FakeRedis:
    return fakeredis.FakeRedis(server=server)


@contextmanager
def beating(server: fakeredis.FakeServer, *checks: Callable[[], bool]) -> Iterator[HeartbeatThread]:
    """A thread that sends heartbeats a hundred times a second."""
    thread = HeartbeatThread(fakeredis.FakeRedis(server=server), "memory", checks, interval_s=0.01)
    thread.start()
    yield thread
    thread.stop()
    assert not thread.is_alive()


def test_a_loop_is_alive_until_it_has_not_turned_for_a_while() -> None:
    """Given a loop that turned once, I expect it to be alive for less than `STUCK_AFTER_S`, and again after a mark."""
    now = 1_000.0
    liveness = Liveness(clock=lambda: now)
    assert liveness.alive()

    now += STUCK_AFTER_S - 1
    assert liveness.alive()
    now += 1
    assert not liveness.alive()

    liveness.mark()
    assert liveness.alive()


def test_a_heartbeat_outlives_the_interval() -> None:
    """Given the times, I expect a key that survives a few late heartbeats."""
    assert HEARTBEAT_INTERVAL_S * 3 <= HEARTBEAT_TTL_S


def test_the_key_names_the_process_and_expires(server: fakeredis.FakeServer, reader: fakeredis.FakeRedis) -> None:
    """Given a working process, I expect `host:pid:parent pid` under its key, with the time to live."""
    with beating(server):
        wait_until(lambda: reader.exists(KEY), description="a heartbeat")

        assert reader.get(KEY) == f"{socket.gethostname()}:{os.getpid()}:{os.getppid()}".encode()
        assert reader.ttl(KEY) == HEARTBEAT_TTL_S


def test_a_record_of_the_process_outlives_its_heartbeat(
    server: fakeredis.FakeServer, reader: fakeredis.FakeRedis
) -> None:
    """Given processes that stop, I expect what they stated about themselves for a day more; memory uses no broker."""

    async def story() -> None:
        client = fakeredis.FakeAsyncRedis(server=server)
        async with send_heartbeats(client, "memory", [lambda: True], interval_s=0.01):
            await eventually(lambda: reader.exists(KEY), description="a heartbeat")
        await client.aclose()

    client = fakeredis.FakeRedis(server=server)
    adapters = HeartbeatThread(client, "adapters", [], interval_s=0.01, record=ProcessRecord(broker="amqp://rabbit/"))
    adapters.start()
    wait_until(lambda: reader.exists("ltm:alive:adapters"), description="a heartbeat")
    adapters.stop()
    asyncio.run(story())

    assert not reader.exists(KEY, "ltm:alive:adapters")
    records = read_records(reader, ["adapters", "memory", "chat-ai"])
    assert {name: record.broker for name, record in records.items()} == {"adapters": "amqp://rabbit/", "memory": None}
    assert {record.version for record in records.values()} == {version("keepsake-ltm")}
    assert all(record.started_at for record in records.values())
    assert EXPECTED_FOR_S - 60 < reader.ttl(process_key("memory")) <= EXPECTED_FOR_S


def test_a_stop_deletes_the_key(server: fakeredis.FakeServer, reader: fakeredis.FakeRedis) -> None:
    """Given that the process stops, I expect the key gone at once."""
    with beating(server):
        wait_until(lambda: reader.exists(KEY), description="a heartbeat")

    assert not reader.exists(KEY)


def test_there_is_no_heartbeat_unless_every_check_passes(
    server: fakeredis.FakeServer, reader: fakeredis.FakeRedis
) -> None:
    """Given one check of two that fails, I expect no heartbeat until it passes."""
    checks = iter([False, False, True])
    seen: list[int] = []

    def check() -> bool:
        seen.append(int(reader.exists(KEY)))
        return next(checks, True)

    with beating(server, lambda: True, check):
        wait_until(lambda: reader.exists(KEY), description="a heartbeat")
    assert seen[:3] == [0, 0, 0]


def test_heartbeats_resume_after_an_outage(server: fakeredis.FakeServer, reader: fakeredis.FakeRedis) -> None:
    """Given a Redis that is away for several heartbeats, I expect them again when it is back."""
    calls = 0

    def check() -> bool:
        nonlocal calls
        calls += 1
        return True

    server.connected = False
    with beating(server, check):
        wait_until(lambda: calls > 2, description="attempts")
        server.connected = True
        wait_until(lambda: reader.exists(KEY), description="a heartbeat")


def test_a_stop_while_redis_is_away_raises_nothing(server: fakeredis.FakeServer) -> None:
    """Given a Redis that is away when the process stops, I expect a stop without an error."""
    with beating(server):
        server.connected = False


def test_asyncio_sends_the_same_heartbeats(server: fakeredis.FakeServer, reader: fakeredis.FakeRedis) -> None:
    """Given an asyncio process, I expect the same key within the block, and none after it."""

    async def story() -> None:
        client = fakeredis.FakeAsyncRedis(server=server)
        async with send_heartbeats(client, "memory", [lambda: True], interval_s=0.01):
            await eventually(lambda: reader.exists(KEY), description="a heartbeat")
            assert reader.get(KEY) == f"{socket.gethostname()}:{os.getpid()}:{os.getppid()}".encode()
            assert reader.ttl(KEY) == HEARTBEAT_TTL_S
        assert not reader.exists(KEY)
        await client.aclose()

    asyncio.run(story())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_process_is_an_instance_of_its_name(
    server: fakeredis.FakeServer, reader: fakeredis.FakeRedis, asynchronous: bool
) -> None:
    """Given another process of the name that ended two hours ago, and one that works on, I expect this one beside the
    latter, at Redis's time, until it stops."""
    key, own = instances_key("memory"), f"{socket.gethostname()}:{os.getpid()}".encode()
    now = time.time()
    reader.zadd(key, {"ended:1": now - 7_200, "other:1": now})

    def names() -> list[Any]:
        found: Any = reader.zrange(key, 0, -1)
        return sorted(found)

    async def story() -> None:
        client = fakeredis.FakeAsyncRedis(server=server)
        async with send_heartbeats(client, "memory", [lambda: True], interval_s=0.01):
            await eventually(lambda: names() == sorted([own, b"other:1"]), description="the instance")
        await client.aclose()

    if asynchronous:
        asyncio.run(story())
    else:
        with beating(server):
            wait_until(lambda: names() == sorted([own, b"other:1"]), description="the instance")
            score: Any = reader.zscore(key, own)
            assert score == pytest.approx(now, abs=60)

    assert names() == [b"other:1"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_heartbeat_counts_without_a_place_among_the_instances(
    server: fakeredis.FakeServer, reader: fakeredis.FakeRedis, asynchronous: bool
) -> None:
    """Given a Redis that refuses the place, as by access rules of an earlier release, I expect heartbeats all the same,
    and the stop to remove the key."""
    reader.set(instances_key("memory"), "of another type")
    sent: list[None] = []

    async def story() -> None:
        client = fakeredis.FakeAsyncRedis(server=server)
        async with send_heartbeats(
            client, "memory", [lambda: True], interval_s=0.01, on_sent=lambda: sent.append(None)
        ):
            await eventually(lambda: len(sent) >= 3, description="heartbeats that were sent")
        await client.aclose()

    if asynchronous:
        asyncio.run(story())
    else:
        client = fakeredis.FakeRedis(server=server)
        thread = HeartbeatThread(client, "memory", [], on_sent=lambda: sent.append(None), interval_s=0.01)
        thread.start()
        wait_until(lambda: len(sent) >= 3, description="heartbeats that were sent")
        thread.stop()

    assert not reader.exists(KEY)


def test_asyncio_checks_more_often_until_the_process_works(
    server: fakeredis.FakeServer, reader: fakeredis.FakeRedis
) -> None:
    """Given a process that begins to work after its third check, I expect its heartbeat long before the interval."""
    checks = iter([False, False, True])
    seen: list[int] = []

    def check() -> bool:
        seen.append(int(reader.exists(KEY)))
        return next(checks, True)

    async def story() -> None:
        client = fakeredis.FakeAsyncRedis(server=server)
        async with send_heartbeats(client, "memory", [lambda: True, check], interval_s=1.0):
            await eventually(lambda: reader.exists(KEY), description="a heartbeat")
            assert asyncio.get_running_loop().time() < 0.9
        await client.aclose()

    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        runner.run(story())
    assert seen[:3] == [0, 0, 0]


def test_asyncio_resumes_after_an_outage(server: fakeredis.FakeServer, reader: fakeredis.FakeRedis) -> None:
    """Given a Redis that is away at first and at the end, I expect heartbeats in between, and no error."""
    checked: list[bool] = []

    def works() -> bool:
        checked.append(True)
        return True

    async def story() -> None:
        client = fakeredis.FakeAsyncRedis(server=server)
        server.connected = False
        async with send_heartbeats(client, "memory", [works], interval_s=0.01):
            await eventually(lambda: len(checked) > 1, description="a missed heartbeat")
            server.connected = True
            await eventually(lambda: reader.exists(KEY), description="a heartbeat")
            server.connected = False

    asyncio.run(story())
