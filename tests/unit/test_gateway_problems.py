"""Errors of the gateway as problems (RFC 9457), request ids, bounds on bodies, and health."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import structlog
from fastapi import FastAPI
from keepsake_client.errors import RequestTimeout, Unavailable
from keepsake_client.protocol import MEMBERSHIP_KEY
from keepsake_client.requests import MAX_ALSO, MAX_IDS
from pydantic import TypeAdapter, ValidationError
from redis.exceptions import ConnectionError as RedisConnectionError
from starlette.types import Message

from services.gateway.access import Caller, Unauthorized
from services.gateway.api import api
from services.gateway.api.models import DeleteBody, Events, SearchBody
from services.gateway.app import Gateway
from services.gateway.health import health
from services.gateway.request_scope import RequestMiddleware
from tests.unit.gateway_app import GatewayApp, gateway_app

SEARCH = "/v1/memories/search"
JSON = {"Content-Type": "application/json"}
SECRET = "hunter2"


def faulty(app: FastAPI, _: Gateway) -> None:
    """A door with a route that fails by a fault."""

    @app.get("/faulty")
    async def fail() -> None:
        raise ZeroDivisionError(SECRET)


@pytest.fixture(scope="module")
def app() -> Iterator[GatewayApp]:
    with gateway_app(health, api, faulty) as app:
        yield app


@pytest.fixture
def http(app: GatewayApp) -> GatewayApp:
    app.reset()
    return app


async def parts(size: int) -> AsyncIterator[bytes]:
    """A body without a Content-Length."""
    for _ in range(0, size, 65_536):
        yield b"x" * 65_536


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b'{"query": "\xff"}', 400, "invalid_request"),
        (b'{"query": "x", "filters": ' + b"[" * 100_000, 400, "invalid_request"),
        (b'{"user_id": "u1", "query": "x", "limit": ' + b"9" * 5_000 + b"}", 400, "invalid_request"),
        (b'{"user_id": "u1", "query": "x", "min_score": NaN}', 400, "invalid_request"),
        (b'{"user_id": "u1", "query": "x", "deadline_ms": 1e400}', 400, "invalid_request"),
        (b'{"user_id": "u1", "query": "x", "\\ud800": 1}', 400, "invalid_request"),
        (b'{"user_id": "u1", "query": "x", "limt": 1}', 400, "invalid_request"),
        (b'{"user_id": " ", "query": "x"}', 400, "invalid_request"),
        (b"[]", 400, "invalid_request"),
        (b"null", 400, "invalid_request"),
        (b"", 400, "invalid_request"),
        (b" " * 1_048_577, 413, "too_large"),
    ],
    ids=lambda value: repr(value)[:48],
)
def test_a_hostile_body_is_a_problem(http: GatewayApp, body: bytes, status: int, code: str) -> None:
    """Given what is no search, I expect a problem with its code, and nothing asked."""
    response = http.send("POST", SEARCH, content=body, headers=JSON)

    problem = response.json()
    assert response.headers["Content-Type"] == "application/problem+json"
    assert (response.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert problem["type"] == f"urn:keepsake:error:{code}"
    assert http.memory.requests == []


def test_a_body_without_a_length_is_bounded_too(http: GatewayApp) -> None:
    """Given a chunked body of more than a megabyte, I expect 413."""
    assert http.send("POST", SEARCH, content=parts(1_200_000), headers=JSON).status_code == 413


def test_every_field_that_is_wrong_is_named_and_no_value(http: GatewayApp) -> None:
    """Given two wrong fields with secrets in them, I expect both names, and neither value."""
    body = {"user_id": "u1", "query": {"a": SECRET}, "limit": SECRET}

    detail = http.send("POST", SEARCH, json=body).json()["detail"]

    assert "query: " in detail
    assert "limit: " in detail
    assert SECRET not in detail


def test_a_name_of_a_field_is_cut(http: GatewayApp) -> None:
    """Given a thousand unknown fields with long names, I expect a short problem."""
    body = {"user_id": "u1", "query": "x", **{f"{n}{'x' * 500}": 1 for n in range(1_000)}}

    assert len(http.send("POST", SEARCH, json=body).content) < 5_000


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/memories?user_id=%ff", 400),
        ("/v1/memories?user_id=u1&x=1", 400),
        ("/v1/memories?user_id=u1&" + "&".join(f"p{n}=1" for n in range(2_000)), 400),
        ("/v1/memories?user_id=u1&limit=many", 400),
        ("/v1/memories?user_id=u1&deadline_ms=soon", 400),
        ("/v1/traces?limit=1000", 400),
        ("/v1/memories", 400),
        ("/v1/nothing", 404),
        ("/v1/memories/", 404),
    ],
)
def test_a_hostile_query_is_a_problem(http: GatewayApp, path: str, status: int) -> None:
    """Given a query that cannot be read, or a path that is none, I expect a problem."""
    response = http.send("GET", path)

    assert (response.status_code, response.json()["status"]) == (status, status)
    assert http.memory.requests == []


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_body_that_is_not_said_to_be_json_is_415(http: GatewayApp, content_type: str) -> None:
    """Given JSON as a page of another site may send it without being asked, I expect it refused."""
    headers = {"Content-Type": content_type} if content_type else {}

    response = http.send("POST", SEARCH, content=b'{"user_id": "u1", "query": "x"}', headers=headers)

    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("method", ["OPTIONS", "PUT", "HEAD"])
def test_another_method_is_405_with_those_that_there_are(http: GatewayApp, method: str) -> None:
    """Given a method that a path does not have, I expect 405 with all that it has."""
    response = http.send(method, "/v1/memories")

    assert (response.status_code, response.headers["Allow"]) == (405, "GET, POST")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        ("not_found: none", 404, "not_found"),
        ("expired: late", 504, "expired"),
        ("too_large: 9", 413, "too_large"),
        ("unavailable: PostgreSQL does not answer", 503, "unavailable"),
        ("internal: KeyError", 500, "internal"),
        (RequestTimeout("no response; asked ltm_requests on Redis 10.0.0.7:6379/0"), 504, "expired"),
        (Unavailable("Redis does not answer: connecting to 10.0.0.7:6379"), 503, "unavailable"),
    ],
    ids=str,
)
def test_an_error_of_the_wire_keeps_its_code(http: GatewayApp, error: Any, status: int, code: str) -> None:
    """Given a request that fails on the wire, I expect its code and status, and no address of a server."""
    http.memory.fails(error)

    response = http.send("GET", "/v1/profile?user_id=u1")

    assert (response.status_code, response.json()["code"]) == (status, code)
    assert "10.0.0.7" not in response.text
    assert "KeyError" not in response.text


def test_a_fault_is_counted_and_told_to_the_log_alone(http: GatewayApp) -> None:
    """Given a fault, I expect 500 with the request's id and nothing of the fault, a traceback, and a count."""
    with structlog.testing.capture_logs() as logged:
        response = http.send("GET", "/faulty", headers={"X-Request-ID": "mine-1"})

    assert (response.status_code, response.json()["code"], response.json()["request_id"]) == (500, "internal", "mine-1")
    assert response.headers["X-Request-ID"] == "mine-1"
    assert SECRET not in response.text
    fault = next(line for line in logged if line["event"] == "request_failed")
    assert (fault["exc_info"], fault["request_id"]) == (True, "mine-1")
    assert http.counted() == {b"gateway_failed": b"1"}


@pytest.mark.parametrize("path", [SEARCH, "/healthz", "/v1/nothing"])
def test_no_cache_keeps_an_answer(http: GatewayApp, path: str) -> None:
    """Given any answer, I expect it kept by no cache on the way: the next caller may be another one."""
    assert http.send("GET", path).headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, 'a"b', "<script>"])
def test_an_id_that_is_none_is_replaced(http: GatewayApp, given: str) -> None:
    """Given an X-Request-ID that is no plain token, I expect another one."""
    answered = http.send("GET", "/v1/nothing", headers={"X-Request-ID": given}).headers["X-Request-ID"]

    assert answered != given
    assert len(answered) == 32


def test_a_request_without_a_valid_key_is_401(http: GatewayApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given no valid key, I expect 401 with the scheme that is asked for, for every route but health."""

    def refuse(_: Any) -> Caller:
        raise Unauthorized("a key is needed")

    monkeypatch.setattr(http.keys, "caller", refuse)

    response = http.send("POST", SEARCH, json={"query": 1})

    assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert http.send("GET", "/healthz").status_code == 204


def test_a_request_that_is_cancelled_is_no_error() -> None:
    """Given a server that stops and cancels a request, such as a stream, I expect its end and no exception to log."""

    async def story() -> None:
        begun = asyncio.Event()

        async def endless(scope: Any, receive: Any, send: Any) -> None:
            begun.set()
            await asyncio.get_running_loop().create_future()

        unused: Any = None
        scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
        request = asyncio.ensure_future(RequestMiddleware(endless, unused, unused)(scope, unused, unused))
        await begun.wait()
        request.cancel()
        await request

    asyncio.run(story())


async def stalls() -> Message:
    """The next part of a body, which never comes."""
    never: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
    return await never


async def trickles() -> Message:
    """The next part of a body: a byte, in less time than the body may stall."""
    await asyncio.sleep(0.006)
    return {"type": "http.request", "body": b" ", "more_body": True}


@pytest.mark.parametrize("goes_on", [stalls, trickles])
def test_a_body_that_comes_too_slowly_is_given_up(http: GatewayApp, goes_on: Callable[[], Awaitable[Message]]) -> None:
    """Given a client that sends half of its body, and then nothing or a byte now and then, I expect 408."""
    sent: list[Message] = []
    bodies: list[Message] = [{"type": "http.request", "body": b'{"user_id"', "more_body": True}]
    ended: Message = {"type": "http.request", "body": b"", "more_body": False}
    parts = [goes_on] * 20

    async def receive() -> Message:
        if bodies:
            return bodies.pop()
        return await parts.pop()() if parts else ended

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": SEARCH, "query_string": b"", "headers": headers}

    http.run(http.impatient(0.01)({**scope, "raw_path": SEARCH.encode(), "root_path": ""}, receive, send))

    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"])["code"] == "request_timeout"


def test_it_is_ready_while_an_adapter_lives_and_it_is_subscribed(
    http: GatewayApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given no adapter, then one, then a Redis that does not answer, then a client that is not subscribed, I expect it
    ready with the adapter alone."""
    assert http.send("GET", "/readyz").status_code == 503

    async def fail() -> None:
        raise RedisConnectionError("no answer")

    async def ready() -> tuple[int, int, int]:
        seconds, _ = await http.redis.time()
        await http.redis.zadd(MEMBERSHIP_KEY, {"adapter": seconds})
        async with http.memory:
            await http.memory._attempted.wait()
            begun = await http.fetch("GET", "/readyz")
            with monkeypatch.context() as patched:
                patched.setattr(http.redis, "time", fail)
                unanswered = await http.fetch("GET", "/readyz")
        ended = await http.fetch("HEAD", "/readyz")
        return begun.status_code, unanswered.status_code, ended.status_code

    assert http.run(ready()) == (204, 503, 503)
    assert http.send("HEAD", "/healthz").status_code == 204


@pytest.mark.parametrize(
    ("method", "path", "body", "remedy"),
    [
        ("POST", SEARCH, b"\x1f\x8b\x08\x00", "send plain JSON in UTF-8"),
        ("POST", SEARCH, b"[" * 100_000, "nested"),
        ("GET", "/", b"", "/openapi.json"),
        ("GET", "/v1/memories/", b"", "slash"),
        ("PUT", "/v1/memories", b"", "Allow"),
    ],
)
def test_an_error_of_http_itself_names_its_remedy(
    http: GatewayApp, method: str, path: str, body: bytes, remedy: str
) -> None:
    """Given a body that cannot be read, or a path or method that there is not, I expect to be told what there is."""
    response = http.send(method, path, content=body, headers={"Content-Type": "application/json"})

    assert remedy in response.json()["detail"]


def test_a_field_has_the_name_that_it_has_here(http: GatewayApp) -> None:
    """Given an error that the pipeline found in fields, I expect their names without that of the wire's object."""
    http.memory.fails("invalid_request: data.cursor: is no cursor; data.ids: x")
    response = http.send("GET", "/v1/memories?user_id=u1")

    assert response.json()["detail"] == "cursor: is no cursor; ids: x"


@pytest.mark.parametrize(
    ("kind", "body", "looked_at"),
    [
        (Events, [{}] * 1_000, 0),
        (SearchBody, {"query": "x", "also": [0.5] * 1_000}, MAX_ALSO + 1),
        (DeleteBody, {"ids": [0.5] * 3_000}, MAX_IDS + 1),
    ],
)
def test_of_a_list_that_is_too_long_no_more_is_looked_at(kind: Any, body: Any, looked_at: int) -> None:
    """Given a list with more items than it may have, each wrong, I expect no error for each: a body has room for half a
    million, whose errors hold up every other request for seconds."""
    with pytest.raises(ValidationError) as found:
        TypeAdapter(kind).validate_python(body)

    of_items = [error for error in found.value.errors() if error["type"] != "too_long"]
    assert len(of_items) <= looked_at + 1  # one more may be about the whole object
