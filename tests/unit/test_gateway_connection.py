"""The gateway's connections: what is closed where no request comes, what is not, and what is refused."""

from __future__ import annotations

import asyncio

import pytest
import uvicorn
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from services.gateway.connection import AtMost, Connection
from tests.support import PATIENCE_S

HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


class Impatient(Connection):
    head_within_s = 0.05


async def slow_app(_: Scope, receive: Receive, send: Send) -> None:
    """Answers after the time that a head may take."""
    await asyncio.sleep(3 * Impatient.head_within_s)
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


async def answers(*parts: bytes) -> bytes:
    """What is answered to these parts, of which all but the last are requests, until the connection is closed."""
    config = uvicorn.Config(slow_app, http=Impatient, log_config=None)
    config.load()
    loop, answered = asyncio.get_running_loop(), b""
    server = await loop.create_server(lambda: Impatient(config, ServerState(), {}), "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        async with asyncio.timeout(PATIENCE_S):
            for request in parts[:-1]:
                writer.write(request)
                answered += await reader.readuntil(b"\r\n\r\n")
            writer.write(parts[-1])
            answered += await reader.read()
        writer.close()
    return answered


@pytest.mark.parametrize("sent", [b"", b"G", HEAD], ids=["nothing", "a byte", "half a head"])
def test_a_connection_on_which_no_request_comes_is_closed(sent: bytes) -> None:
    assert asyncio.run(answers(sent)) == b""


def test_a_request_may_take_its_time_and_half_of_the_next_may_not() -> None:
    """Given an answer that takes longer than a head may, and then half a head, I expect the answer, then the end."""
    assert asyncio.run(answers(HEAD + b"\r\n", HEAD)).startswith(b"HTTP/1.1 204")


def test_over_the_limit_a_request_is_refused_and_counted() -> None:
    """Given one connection and then two, where one is allowed, I expect the second request refused with 503."""
    connections, refused = [1], [0]

    def count() -> None:
        refused[0] += 1

    client = TestClient(AtMost(slow_app, 1, lambda: connections[0], count))

    assert client.get("/").status_code == 204
    connections[0] = 2
    answer = client.get("/")

    assert (answer.status_code, answer.json()["code"], answer.headers["Connection"]) == (503, "unavailable", "close")
    assert refused == [1]
