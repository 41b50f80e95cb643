"""The proxy's way to the server of the model: what becomes of failures that no test on real ports waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
import pytest
from fastapi import Request
from keepsake_client.errors import KeepsakeError, Unavailable
from starlette.types import Message

from services.gateway.proxy.errors import UpstreamTimeout, UpstreamUnavailable, error_response
from services.gateway.proxy.upstream import Upstream

Answer = Callable[[httpx.Request], httpx.Response]


def send(answer: Answer, base_url: str = "http://model:1/v1/", query: bytes = b"") -> httpx.Response | None:
    """Pass one request on to a server that answers so."""
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": query, "headers": []}

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def inside() -> httpx.Response | None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
            upstream = Upstream(base_url, None, http)
            return await upstream.send(Request(scope, receive), "/models", None, own_key=False)

    return asyncio.run(inside())


@pytest.mark.parametrize(
    ("failure", "error", "status"),
    [
        (httpx.PoolTimeout("secret"), Unavailable, 503),
        (httpx.ConnectTimeout("secret"), UpstreamTimeout, 504),
        (httpx.ReadTimeout("secret"), UpstreamTimeout, 504),
        (httpx.WriteTimeout("secret"), UpstreamTimeout, 504),
        (httpx.ConnectError("secret"), UpstreamUnavailable, 502),
        (httpx.ReadError("secret"), UpstreamUnavailable, 502),
        (httpx.ProxyError("secret"), UpstreamUnavailable, 502),
        (httpx.UnsupportedProtocol("secret"), UpstreamUnavailable, 502),
    ],
)
def test_a_failure_has_a_status_and_no_details(failure: Exception, error: type[KeepsakeError], status: int) -> None:
    """Given a failure of the connection, I expect an error with its status, without its words."""

    def fail(_: httpx.Request) -> httpx.Response:
        raise failure

    with pytest.raises(error) as raised:
        send(fail)

    assert error_response(raised.value).status_code == status
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("base_url", ["http://model:1/v1", "http://model:1/v1/"])
@pytest.mark.parametrize(("query", "sent"), [(b"", ""), (b"api-version=1&x=%20", "?api-version=1&x=%20")])
def test_the_url_of_a_request(base_url: str, query: bytes, sent: str) -> None:
    """Given a base URL with or without a slash at its end, I expect the path behind it, and the query as it came."""
    urls: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        urls.append(str(request.url))
        return httpx.Response(200)

    send(answer, base_url, query)

    assert urls == [f"http://model:1/v1/models{sent}"]
