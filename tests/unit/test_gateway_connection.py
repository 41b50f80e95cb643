"""The gateway's connections: what is closed where no request comes, what is not, and what is refused."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import uvicorn
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from services.gateway.connection import Connection, ConnectionLimit
from tests.support import PATIENCE_S

HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


class Impatient(Connection):
    head_within_s = 0.05
    max_connections = 1


async def slow_app(_: Scope, receive: Receive, send: Send) -> None:
    """Answers after the time that a head may take."""
    await asyncio.sleep(3 * Impatient.head_within_s)
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


@asynccontextmanager
async def serving(refused: list[str]) -> AsyncIterator[asyncio.Server]:
    """A server that keeps one connection at a time, and notes those that it refuses."""
    config = uvicorn.Config(slow_app, log_config=None)
    config.load()
    state = ServerState()
    made = partial(Impatient, on_refusal=lambda: refused.append("one"), config=config, server_state=state, app_state={})
    async with (
        await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0) as server,
        asyncio.timeout(PATIENCE_S),
    ):
        yield server


async def answers(*parts: bytes) -> bytes:
    """What is answered to these parts, of which all but the last are requests, until the connection is closed."""
    answered = b""
    async with serving([]) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
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


def test_a_connection_too_many_is_closed_and_counted() -> None:
    """Given a connection that waits for its answer, where one is kept, I expect a second closed, and the answer."""
    refused: list[str] = []

    async def second_beside_first() -> bytes:
        async with serving(refused) as server:
            address = server.sockets[0].getsockname()
            reader, writer = await asyncio.open_connection(*address)
            writer.write(HEAD + b"\r\n")
            other, other_writer = await asyncio.open_connection(*address)
            with suppress(ConnectionResetError):
                assert await other.read() == b""
            other_writer.close()
            answer = await reader.readuntil(b"\r\n\r\n")
            writer.close()
            return answer

    assert asyncio.run(second_beside_first()).startswith(b"HTTP/1.1 204")
    assert refused == ["one"]


def test_a_process_is_allowed_the_files_that_it_needs() -> None:
    """Given a process with a soft limit of 64 open files, I expect 4,096 of them, or as many as the hard limit has."""
    script = (
        "import resource as r; most = r.getrlimit(r.RLIMIT_NOFILE)[1]; r.setrlimit(r.RLIMIT_NOFILE, (64, most));"
        "from services.gateway.connection import raise_open_files_limit; raise_open_files_limit();"
        "print(r.getrlimit(r.RLIMIT_NOFILE)[0] == (4096 if most == r.RLIM_INFINITY else min(4096, most)))"
    )

    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "True\n"


def test_over_the_limit_a_request_is_refused_and_counted() -> None:
    """Given one connection and then two, where one is allowed, I expect the second request refused with 503."""
    connections, refused = [1], [0]

    def count() -> None:
        refused[0] += 1

    client = TestClient(ConnectionLimit(slow_app, 1, lambda: connections[0], count))

    assert client.get("/").status_code == 204
    connections[0] = 2
    answer = client.get("/")

    assert (answer.status_code, answer.json()["code"], answer.headers["Connection"]) == (503, "unavailable", "close")
    assert refused == [1]
    assert client.get("/healthz").status_code == 204  # or a busy gateway would be restarted
