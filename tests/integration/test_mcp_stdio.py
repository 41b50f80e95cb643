"""`ltm mcp` on stdin and stdout, as any program may write to it; a responder is the memory."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from services.gateway.access import ALL_RIGHTS, Caller
from services.gateway.mcp_server.asker import Asker
from services.gateway.mcp_server.stdio import serve_stdio
from services.runtime.logging import configure_logging
from services.runtime.settings import Settings
from tests.integration.responder import responding
from tests.support import eventually, restored_logging

LTM = str(Path(sys.executable).parent / "ltm")
HANDSHAKE = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}


def request(number: int, method: str, **params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode()


def test_stdout_is_the_protocol_whatever_arrives(valkey_url: str) -> None:
    """Given lines that are no JSON, no UTF-8 and no requests before and between requests, and the log at its most
    verbose, I expect the answers to the requests on stdout and nothing else, and an end with stdin."""
    garbage = [b"", b"GET / HTTP/1.1", b"\xff\xfe", b"{", b"[" * 10_000, b"[]", b'"x"', b'{"jsonrpc": "2.0"}']
    lines = [
        *garbage,
        request(1, "initialize", **HANDSHAKE),
        b'{"jsonrpc": "2.0", "method": "notifications/initialized"}',
        *garbage,
        request(2, "tools/call", name="search_memories", arguments={"query": "pet?"}),
        request(3, "tools/call", name="search_memories", arguments={"query": ["pet?"]}),
        request(4, "resources/list"),
    ]
    environment = {"REDIS_URL": valkey_url, "LTM_LOG_LEVEL": "debug", "PATH": "/usr/bin:/bin"}
    with (
        responding(valkey_url),
        subprocess.Popen(
            [LTM, "mcp", "--user", "anna"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as server,
    ):
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(b"\n".join(lines) + b"\n")
        server.stdin.flush()
        answers: dict[int, Any] = {}
        while set(answers) != {1, 2, 3, 4}:
            answer = json.loads(server.stdout.readline())
            assert answer["id"] not in answers
            answers[answer["id"]] = answer
        _, log = server.communicate(timeout=60)

    assert answers[1]["result"]["serverInfo"]["name"] == "keepsake"
    assert "anna has a cat" in answers[2]["result"]["content"][0]["text"]
    assert answers[3]["result"]["content"][0]["text"] == "invalid_request: query: Input should be a valid string"
    assert answers[4]["error"]["code"] == -32601
    assert (server.returncode, b"Traceback" in log) == (0, False), log.decode()


def test_every_tool_is_about_the_user_of_the_command_line(valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a server for anna, and a call that names another user besides, I expect no one but anna to be asked about,
    and an end with stdin."""
    read_end, write_end = os.pipe()
    typed, printed = TextIOWrapper(os.fdopen(read_end, "rb")), BytesIO()
    monkeypatch.setattr(sys, "stdin", typed)
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(printed))
    asker = Asker.of(Caller("stdio", ALL_RIGHTS), "anna", None)
    calls = [{"query": "pet?"}, {"query": "pet?", "user_id": "ben"}]
    lines = [
        request(1, "initialize", **HANDSHAKE),
        b'{"jsonrpc": "2.0", "method": "notifications/initialized"}',
        *(
            request(number, "tools/call", name="search_memories", arguments=arguments)
            for number, arguments in enumerate(calls, start=2)
        ),
    ]

    settings = Settings(redis_url=SecretStr(valkey_url))

    async def story() -> None:
        serving = asyncio.create_task(serve_stdio(settings, asker))
        try:
            os.write(write_end, b"\n".join(lines) + b"\n")
            await eventually(lambda: printed.getvalue().count(b"\n") == 3 or serving.done(), description="answers")
        finally:
            os.close(write_end)
        await serving

    with responding(valkey_url) as memory, restored_logging():
        configure_logging(settings, "mcp")
        asyncio.run(story())

    typed.close()
    answers = {answer["id"]: answer["result"] for answer in map(json.loads, printed.getvalue().splitlines())}
    assert "anna has a cat" in answers[2]["content"][0]["text"]
    assert "ben" not in json.dumps(answers)
    assert {asked["user_id"] for asked in memory.requests} == {"anna"}


def test_ctrl_c_ends_it_while_it_waits_for_stdin(tmp_path: Path) -> None:
    """Given a server on a terminal, which has answered and waits for the next line, I expect SIGINT to end it."""
    environment = {"REDIS_URL": "redis://127.0.0.1:1/0", "PATH": "/usr/bin:/bin"}
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(
            [LTM, "mcp", "--user", "anna"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        ) as server,
    ):
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(request(1, "initialize", **HANDSHAKE) + b"\n")
        server.stdin.flush()
        assert json.loads(server.stdout.readline())["id"] == 1
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=60) == -signal.SIGINT


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--user", "anna"], "no stack runs in"),
        ([], "--user"),
        (["--user", " "], "must not be blank"),
        (["--user", "anna", "--agent", ""], "must not be blank"),
        (["--user", "anna", "--may", "search,forget"], "there is no right 'forget'"),
    ],
)
def test_what_cannot_start_says_why_on_stderr(arguments: list[str], words: str, tmp_path: Path) -> None:
    """Given no stack, no user or a right that no tool needs, I expect words on stderr and nothing on stdout."""
    done = subprocess.run(
        [LTM, "mcp", *arguments],
        env={"PATH": "/usr/bin:/bin", "TERM": "dumb"},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode != 0, done.stdout) == (True, "")
    assert words in done.stderr
