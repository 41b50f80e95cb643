"""The header `traceparent` of the gateway: what its routes see, and the span of an HTTP request."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import fakeredis
import httpx
import pytest
from fastapi import FastAPI
from keepsake_client import AsyncClient

from services.gateway.app import Gateway, OpenDoor, create_app
from services.runtime.opentelemetry_spans import OpenTelemetrySpans
from services.runtime.settings import load_settings
from services.runtime.tracing import NO_SPANS, Spans, current_traceparent
from tests.otlp import collecting
from tests.support import wait_until

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-1af7651916cd43dd8448eb211c80319c-c7ad6b7169203331-01"


def door(app: FastAPI, _: Gateway) -> None:
    """Routes that say which traceparent they see."""

    @app.get("/v1/users/{user_id}/seen")
    async def seen(user_id: str, query: str = "") -> str | None:
        await asyncio.sleep(0)
        return current_traceparent()

    @app.get("/v1/blocking")
    def blocking() -> str | None:
        return current_traceparent()

    @app.get("/v1/broken")
    async def broken() -> None:
        raise ZeroDivisionError("the user's own words")


def get(path: str, headers: list[tuple[str, Any]] | None = None, spans: Spans = NO_SPANS) -> Any:
    """The JSON of a response of the gateway, or its status."""

    async def story() -> Any:
        ltm = AsyncClient(fakeredis.FakeAsyncRedis(), enabled=False)
        gateway = Gateway(load_settings(), ltm, cast(Any, None), OpenDoor(), spans=spans)
        transport = httpx.ASGITransport(create_app(gateway, [door]), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            response = await client.get(path, headers=headers)
            return response.json() if response.status_code == 200 else response.status_code

    return asyncio.run(story())


@pytest.mark.parametrize("path", ["/v1/users/anna/seen", "/v1/blocking"])
def test_a_route_sees_the_requests_traceparent(path: str) -> None:
    """Given a request with the header, I expect the code of its route to run under it, in a thread as in the loop."""
    assert get(path, [("traceparent", PARENT)]) == PARENT


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("traceparent", "nonsense")],
        [("traceparent", PARENT), ("traceparent", OTHER)],
        [("traceparent", "é".encode())],
    ],
)
def test_a_header_that_is_none_or_wrong_is_ignored(headers: list[tuple[str, Any]]) -> None:
    """Given no traceparent, a malformed one, or two, I expect the request to be served without one."""
    assert get("/v1/blocking", headers) is None


def test_an_http_request_is_a_span_without_its_path_and_query(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given requests, one of which fails, I expect spans with the routes' templates, and nothing of user or query."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        spans = OpenTelemetrySpans("gateway", ["otlp"], fakeredis.FakeRedis())
        inside = get("/v1/users/anna-4711/seen?query=mochi", [("traceparent", PARENT)], spans)
        assert get("/v1/broken", spans=spans) == 500
        assert get("/nowhere", spans=spans) == 404
        wait_until(lambda: len(collector.spans) == 3, description="three spans")
        spans.close()

    first, broken, nowhere = collector.spans
    assert inside == f"00-{first.trace_id}-{first.span_id}-01"
    assert (first.name, first.parent_id) == ("GET /v1/users/{user_id}/seen", PARENT.split("-")[2])
    assert first.attributes == {"http.request.method": "GET", "http.response.status_code": 200}
    assert (broken.name, broken.error, nowhere.name, nowhere.error) == ("GET /v1/broken", True, "GET", False)
    sent = b"".join(collector.bodies)
    assert [word for word in (b"anna", b"mochi", b"own words", b"nowhere") if word in sent] == []
