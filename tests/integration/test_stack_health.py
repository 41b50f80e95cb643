"""The health of a stack as the gateway reads it, on a real Valkey."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import redis
from keepsake_client.protocol import alive_key, instances_key, process_key

from services.runtime.extraction_figures import ExtractionFigures, SetAsideMessage, publish_figures, read_figures
from services.runtime.process_record import Dependency, ProcessRecord
from services.runtime.redis import connect_async
from services.runtime.settings import load_settings
from services.runtime.stack_health import Health, read_health
from tests.support import free_port

WORKER, WRITER, GATEWAY = "long-term-memory-worker", "long-term-memory-writer", "gateway"
POSTGRES = Dependency(name="PostgreSQL", version="18.1", detail="postgresql://keepsake:***@db/keepsake")


@pytest.fixture
def url(valkey_url: str) -> str:
    return valkey_url.removesuffix("/0") + "/7"


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        yield client
        client.flushdb()


def health_of(url: str, **settings: Any) -> dict[str, Health]:
    async def read() -> list[Health]:
        async with connect_async(url) as connected:
            return await read_health(load_settings(redis_url=url, **settings), connected)

    return {health.name: health for health in asyncio.run(read())}


def states(client: Any, name: str, *, alive: bool = True, **fields: Any) -> None:
    """Have a process state what it uses."""
    client.set(process_key(name), ProcessRecord(**fields).started().model_dump_json())
    if alive:
        client.set(alive_key(name), "host:1:1")


def test_servers_and_processes_have_their_versions(client: Any, url: str) -> None:
    """Given processes that work, that have ended and that were left out, I expect the state of each, with Keepsake's
    version and since when it runs; one that never ran is not there. The pipeline's Redis tells its own."""
    states(client, WORKER, uses=[POSTGRES])
    states(client, WRITER, alive=False, uses=[POSTGRES])
    states(client, GATEWAY, alive=False, left_out=True)

    found = health_of(url)

    assert [(name, health.state) for name, health in found.items()] == [
        ("Valkey", "ok"),
        (WORKER, "ok"),
        (WRITER, "down"),
        (GATEWAY, "left out"),
        ("PostgreSQL", "ok"),
    ]
    assert found["Valkey"].version
    assert found[WORKER].version
    for name in ("Valkey", WORKER):
        assert (found[name].since or 0) <= time.time()
    assert found[WRITER].detail == "no heartbeat"
    assert (found["PostgreSQL"].version, found["PostgreSQL"].used_by) == ("18.1", [WORKER, WRITER])
    assert found["PostgreSQL"].detail == POSTGRES.detail


def test_processes_of_one_name_are_told_by_host(client: Any, url: str) -> None:
    """Given two gateways and a third whose host was lost, I expect their hosts beside the address."""
    states(client, GATEWAY, alive=False, address="http://0.0.0.0:18380")
    last = client.time()[0] + 4  # as of a clock that is ahead: it counts the longer
    client.zadd(instances_key(GATEWAY), {"a:1": last, "b:1": last, "lost:1": last - 60})

    gateway = health_of(url)[GATEWAY]

    assert gateway.state == "ok"
    assert re.fullmatch(r"http://0\.0\.0\.0:18380; 1 on a, 1 on b, none on lost for \d+ s", gateway.detail or "")


def test_what_no_process_reaches_is_unknown(client: Any, url: str) -> None:
    """Given a database whose only process has ended, I expect it neither ok nor down."""
    states(client, WRITER, alive=False, uses=[POSTGRES])

    assert health_of(url)["PostgreSQL"].state == "unknown"


def test_the_llm_is_down_while_it_refuses(client: Any, url: str) -> None:
    """Given an extractor that works, and figures that say that the provider refuses, I expect the LLM down, and why."""
    states(client, "long-term-memory-extractor", uses=[Dependency(name="LLM", detail="openai gpt")])
    since = datetime(2030, 1, 1, tzinfo=UTC)
    figures = ExtractionFigures(at=since, state="stopped", since=since, reason="401 Unauthorized")
    publish_figures(client, figures)

    llm = health_of(url)["LLM"]

    assert (llm.state, llm.detail, llm.since) == ("down", "openai gpt: 401 Unauthorized", since.timestamp())


def test_rabbitmq_is_asked_itself(client: Any, url: str) -> None:
    """Given processes that work while they wait for RabbitMQ, I expect it ok exactly where it takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"amqp://127.0.0.1:{server.getsockname()[1]}/"
        states(client, WORKER, uses=[Dependency(name="RabbitMQ", version="4.1", detail=address)])
        assert health_of(url)["RabbitMQ"].state == "ok"
    assert health_of(url)["RabbitMQ"].state == "down"


def test_a_redis_that_is_away_is_down(client: Any, url: str) -> None:
    """Given no Redis, I expect it down, and nothing guessed of the rest; and so of a second one for the queues."""
    away = f"redis://:secret@127.0.0.1:{free_port()}/0"

    assert [(health.name, health.state) for health in health_of(away).values()] == [("Redis", "down")]
    queues = health_of(url, broker_url=away)["Redis of the queues"]
    assert queues.state == "down"
    assert "secret" not in str(queues)


def test_figures_of_any_user_are_read_for_a_minute(client: Any, url: str) -> None:
    """Given figures that name a user whose id no UTF-8 holds, I expect them back, and gone a minute after the extractor
    has ended; of a later release, and of none, I expect nothing."""

    async def read() -> ExtractionFigures | None:
        async with connect_async(url) as connected:
            return await read_figures(connected)

    assert asyncio.run(read()) is None
    aside = SetAsideMessage(user="\ud800", memory_id="m1", said_at=1, reason="no JSON")
    figures = ExtractionFigures(at=datetime.now(UTC), state="working", set_aside=1, newest_set_aside=[aside])

    publish_figures(client, figures)

    assert asyncio.run(read()) == figures
    assert 0 < client.ttl("ltm:extraction") <= 60
    client.set("ltm:extraction", '{"state": "dreaming"}')
    assert asyncio.run(read()) is None
