"""Traces end to end: one trace over gateway, services, adapters, a worker of two processes, and the chat."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from keepsake_client import Client
from keepsake_client.protocol import COUNTERS

from tests.integration.worker_process import Servers, servers
from tests.otlp import Collector, collecting
from tests.support import free_port, wait_until

LONG_MS = 60_000
INTERACTIVE, INDEX = "interactive", "index"
TURN, ASKED, AGAIN, BY_HTTP = ("0" * 31 + digit for digit in "1234")
STAGES = ("/list", "/adapter", "/queue", "/work")
USER, SECRET = "anna-4711", "My cat is called Mochi"


def parent(trace_id: str, flags: str = "01") -> str:
    return f"00-{trace_id}-b7ad6b7169203331-{flags}"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


@pytest.fixture(scope="module")
def site(collector: Collector) -> Iterator[Servers]:
    """The adapters, a worker of two processes, the services of memory and chat, and the gateway, all of which trace."""
    with servers() as running:
        running.environment |= {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "LTM_SEARCH_TIMEOUT_MS": str(LONG_MS),
            "LTM_GATEWAY_PORT": str(free_port()),
        }
        started = [
            running.adapters(),
            running.worker("long-term-memory-worker", INTERACTIVE, INDEX, processes=2),
            running.service("memory", "services.memory"),
            running.service("chat-ai", "services.chat_ai"),
            running.service("gateway", "services.gateway"),
        ]
        for process in started:
            process.ready()
        yield running


def asks(site: Servers, trace_id: str, flags: str = "01") -> Client:
    """A client under a span of this trace."""
    return Client(site.valkey.url, traceparent=lambda: parent(trace_id, flags))


def test_a_turn_is_one_trace(site: Servers, collector: Collector) -> None:
    """Given a user's message with a traceparent, I expect one trace, to the indexed reply."""
    said = {"user_id": USER, "content": SECRET, "task_id": "t1", "traceparent": parent(TURN)}
    site.client.lpush("user_input_queue", json.dumps(said))

    reply, context = "…/memory.input/chat.reply", "…/memory.input/chat.reply/ltm.context"
    expected = {
        "…/memory.input",
        *(f"…/memory.input/ltm.index{stage}" for stage in ("", "/stream", "/queue", "/work")),
        *(f"{reply}{stage}" for stage in ("", "/ask", "/reply")),
        *(f"{context}{stage}" for stage in ("", *STAGES)),
        *(f"{context}/work/{part}" for part in ("embed", "database", "rank", "context")),
        *(f"{reply}/ltm.index{stage}" for stage in ("", "/stream", "/queue", "/work")),
    }
    wait_until(lambda: collector.tree(TURN) >= expected, description="the spans of the turn")
    assert collector.tree(TURN) == expected
    services = {span.service for span in collector.spans if span.trace_id == TURN}
    assert services == {"keepsake-memory", "keepsake-chat-ai", "keepsake-long-term-memory-worker"}
    assert [word for word in (USER, SECRET) if word.encode() in b"".join(collector.bodies)] == []


def test_a_search_by_http_is_one_trace(site: Servers, collector: Collector) -> None:
    """Given a request with the header traceparent, I expect the gateway's span under it, and the search under that."""
    answer = httpx.post(
        f"http://127.0.0.1:{site.environment['LTM_GATEWAY_PORT']}/v1/memories/search",
        json={"user_id": USER, "query": SECRET, "deadline_ms": LONG_MS},
        headers={"traceparent": parent(BY_HTTP)},
        timeout=LONG_MS / 1000,
    )

    root = "…/POST /v1/memories/search"
    expected = {
        root,
        *(f"{root}/ltm.search{stage}" for stage in ("", *STAGES)),
        *(f"{root}/ltm.search/work/{part}" for part in ("embed", "database", "rank")),
    }
    assert answer.status_code == 200, answer.text
    wait_until(lambda: collector.tree(BY_HTTP) >= expected, description="the spans of the search")
    assert collector.tree(BY_HTTP) == expected
    [span] = collector.named("POST /v1/memories/search")
    assert (span.service, span.attributes["http.response.status_code"]) == ("keepsake-gateway", 200)
    assert [word for word in (USER, SECRET) if word.encode() in b"".join(collector.bodies)] == []


def test_each_forked_process_sends_its_spans(site: Servers, collector: Collector) -> None:
    """Given searches at the same time, I expect spans of both processes of the worker, each with an id of its own."""
    with asks(site, ASKED) as client, ThreadPoolExecutor(8) as threads:

        def both_have_sent() -> bool:
            list(threads.map(lambda n: client.search(USER, f"cat {n}", deadline_ms=LONG_MS), range(16)))
            return len({span.pid for span in collector.named("ltm.search") if span.trace_id == ASKED}) == 2

        wait_until(both_have_sent, description="spans of two processes")

    ids = [span.span_id for span in collector.spans]
    assert len(set(ids)) == len(ids)


def test_a_trace_goes_on_over_restarted_adapters(site: Servers, collector: Collector) -> None:
    """Given adapters that are started again, I expect the response's traceparent and the request's span as before."""
    adapters = site.workers[0]
    assert adapters.terminate(within_s=60) == 0
    with asks(site, AGAIN) as client, ThreadPoolExecutor(1) as threads:
        asked = threads.submit(client.request, "search", USER, {"query": "cat?"}, deadline_ms=LONG_MS)
        site.adapters().ready()
        response = asked.result()

        wait_until(lambda: "…/ltm.search" in collector.tree(AGAIN), description="the span of the search")

    assert response.traceparent == parent(AGAIN)
    assert site.client.hget(COUNTERS, "spans_lost") is None


def test_a_refused_request_is_a_span_of_the_adapters(site: Servers, collector: Collector) -> None:
    """Given a request that no adapter accepts, I expect its span from the adapters, with the error's code."""
    refused = {"request_id": "r1", "user_id": USER, "type": "dance", "traceparent": parent(AGAIN)}
    site.client.lpush("ltm_requests", json.dumps(refused))

    wait_until(lambda: collector.named("ltm.request"), description="the span of the refusal")
    [span] = collector.named("ltm.request")
    assert (span.service, span.attributes["error.type"]) == ("keepsake-adapters", "unknown_type")
