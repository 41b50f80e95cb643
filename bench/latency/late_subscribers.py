"""Late subscribers: are responses heard by askers that push their request before they subscribe?

`python -m bench.latency.late_subscribers [--rtt 0 5 20] [--n 100] [--repeats 30,100,300,600,1200]`

Each asker pushes a request, then makes a subscription on a connection of its own and waits for the response, as the
plan's example does: with redis-py and with redis.asyncio, through a proxy that delays what it carries. It measures: the
exit code is 0 whatever it finds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import redis
import redis.asyncio

from bench.harness.stack import running_stack
from bench.harness.tables import show
from services.runtime.settings import Settings
from tests.delaying_proxy import delaying_proxy

#: What the plan's example waits.
WAIT_S = 5.0
REQUESTS, RESPONSES = "ltm_requests", "ltm_responses"
KINDS = ("search", "profile_get", "invalid")


def request(kind: str) -> tuple[str, str]:
    """A request without a deadline, and its request_id; `invalid` ones are answered by the adapter."""
    request_id = f"req-{uuid.uuid4().hex}"
    body = {"request_id": request_id, "type": kind, "user_id": "late", "data": {"query": "What do I like?", "limit": 5}}
    return request_id, json.dumps(body)


def answers(message: dict[str, Any] | None, request_id: str) -> bool:
    """Whether what a subscription received is the response to a request."""
    return (
        message is not None and message["type"] == "message" and json.loads(message["data"])["request_id"] == request_id
    )


def ask(url: str, kind: str, pooled: redis.Redis | None) -> bool:
    """Push, then subscribe, with redis-py; whether the response is heard.

    Args:
        pooled: the client that does both; None makes a client for each, as a short script does.
    """
    request_id, body = request(kind)
    pushing, listening = pooled or redis.Redis.from_url(url), pooled or redis.Redis.from_url(url)
    pushing.lpush(REQUESTS, body)
    with listening.pubsub() as pubsub:  # type: ignore[no-untyped-call]  # redis-py's lacks annotations
        pubsub.subscribe(RESPONSES)
        until = time.monotonic() + WAIT_S
        while (left := until - time.monotonic()) > 0:
            message = pubsub.get_message(timeout=left)
            if answers(message, request_id):
                return True
    return False


def ask_asyncio(url: str, kind: str) -> bool:
    """The same with redis.asyncio."""

    async def ask() -> bool:
        request_id, body = request(kind)
        async with redis.asyncio.Redis.from_url(url) as pushing, redis.asyncio.Redis.from_url(url) as listening:
            await pushing.lpush(REQUESTS, body)
            async with listening.pubsub() as pubsub:
                await pubsub.subscribe(RESPONSES)
                until = time.monotonic() + WAIT_S
                while (left := until - time.monotonic()) > 0:
                    message = await pubsub.get_message(timeout=left)
                    if answers(message, request_id):
                        return True
        return False

    return asyncio.run(ask())


def heard(url: str, n: int) -> dict[str, int]:
    """How many of `n` responses are heard, by the way in which the asker connects."""
    with redis.Redis.from_url(url) as pooled:
        ways: dict[str, Callable[[str], bool]] = {
            "redis-py, one client": lambda kind: ask(url, kind, pooled),
            "redis-py, new connections": lambda kind: ask(url, kind, None),
            "redis.asyncio, new connections": lambda kind: ask_asyncio(url, kind),
        }
        return {way: sum(asked(KINDS[number % len(KINDS)]) for number in range(n)) for way, asked in ways.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rtt", type=float, nargs="+", default=[0, 5, 20], help="round-trip times in ms")
    parser.add_argument("--n", type=int, default=100, help="requests of each way at each round-trip time")
    default = Settings.model_fields["ltm_response_repeats_ms"].default
    parser.add_argument("--repeats", default=default, help="LTM_RESPONSE_REPEATS_MS")
    given = parser.parse_args()
    table: dict[str, dict[str, float]] = {}
    with running_stack(LTM_RESPONSE_REPEATS_MS=given.repeats) as stack:
        port = urlsplit(stack.redis_url).port or 6379
        for rtt_ms in given.rtt:
            with delaying_proxy(port, rtt_ms / 1000) as url:
                for way, number in heard(url, given.n).items():
                    table.setdefault(way, {})[f"{rtt_ms:g} ms"] = number
    show(f"responses heard of {given.n}, by round-trip time; repeats after {given.repeats or 'nothing'} ms", table, 0)


if __name__ == "__main__":
    main()
