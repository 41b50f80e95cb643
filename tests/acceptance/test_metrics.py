"""Metrics of the whole stack, as `LTM_METRICS_PORT=… ltm up` serves them."""

from __future__ import annotations

import json
import re

import httpx
import redis

from services.stack.processes import SERVICES
from tests.acceptance.conftest import Up
from tests.support import free_ports, wait_until


def sample(text: str, name: str) -> float:
    """The sum of a metric, whose labels may be given, over its other labels."""
    found = re.findall(rf"^{re.escape(name)}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, found))


def test_every_process_serves_its_metrics_and_the_gateway_those_of_the_stack(up: Up) -> None:
    """Given `ltm up` with LTM_METRICS_PORT, I expect each process on a port of its own, and what happens in each."""
    first = free_ports(len(SERVICES))
    stack = up("--ephemeral", LTM_METRICS_PORT=str(first), LTM_INTERACTIVE_PROCESSES="2")
    ports = {name: first + number for number, name in enumerate(SERVICES)}

    def page(name: str) -> str:
        return httpx.get(f"http://127.0.0.1:{ports[name]}/metrics", timeout=60).text

    assert f"http://127.0.0.1:{first}/metrics (long-term-memory-worker) to {first + 6} (gateway)" in stack.printed()
    for name in SERVICES:
        assert f'keepsake_process_info{{process="{name}",' in page(name)

    with redis.Redis.from_url(stack.redis_url) as client:
        said = {"user_id": "hostile-user-id", "content": "My cat is called Tofu", "message_id": "m1"}
        client.lpush("user_input_queue", json.dumps(said))
    for name, metric, number in (
        ("memory", 'keepsake_service_messages_total{outcome="stored"}', 2),  # the message, and the reply to it
        ("chat-ai", 'keepsake_service_messages_total{outcome="replied"}', 1),
        ("chat-ai", 'keepsake_replies_total{outcome="ok"}', 1),
        ("long-term-memory-worker", 'keepsake_requests_total{outcome="ok",type="context"}', 1),
        ("long-term-memory-indexer", 'keepsake_messages_total{outcome="ok"}', 1),
    ):
        wait_until(lambda n=name, m=metric, k=number: sample(page(n), m) >= k, description=f"{metric} of {name}")  # type: ignore[misc]

    of_stack = httpx.get(f"{stack.ready['gateway_url']}/metrics").text
    assert sample(of_stack, "keepsake_up") == 1
    assert sample(of_stack, "keepsake_process_up") == len(SERVICES)
    assert sample(page("gateway"), 'keepsake_http_requests_total{door="metrics",status="200"}') == 1
    assert [name for name in SERVICES if "hostile-user-id" in page(name)] == []
