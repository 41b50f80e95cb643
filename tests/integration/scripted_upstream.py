"""ScriptedUpstream: an OpenAI-compatible server that keeps each request byte for byte, and answers as it is told."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

#: Answers one request, or does not.
Script = Callable[["Handler"], None]


@dataclass(frozen=True)
class Received:
    """A request that came."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """The value of a header."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: ScriptedUpstream
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # which would hold back each body until the head is acknowledged, for 40 ms

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.received.append(Received(self.command, self.path, self.headers.items(), body))
        with suppress(OSError):  # the client has given up
            self.server.script(self)

    do_GET = do_POST = answer  # noqa: N815  # the names that http.server looks for

    def reply(self, status: int, data: bytes, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Send a response of a known length."""
        self.send_response(status)
        for name, value in [("Content-Length", str(len(data))), *headers]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def begin_stream(self) -> None:
        """Send the head of a stream of events."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def event(self, data: bytes) -> None:
        """Send one piece of the stream."""
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def reset(self) -> None:
        """Break the connection, as a server that crashes does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class ScriptedUpstream(ThreadingHTTPServer):
    """The server, in a thread; a context manager.

    Args:
        script: answers each request.
    """

    daemon_threads = True

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = script
        self.received: list[Received] = []
        #: Set when a script finds that the client has gone.
        self.client_gone = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, args=[0.01], name="upstream", daemon=True)

    @property
    def url(self) -> str:
        """Its base URL, for CHAT_BASE_URL."""
        return f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that give up are among the tests."""


def completion(text: str | None, **message: Any) -> Script:
    """Answers with a chat completion."""
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text, "refusal": None, **message},
    }
    document = {"id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    data = json.dumps(document, indent=1).encode()
    return lambda handler: handler.reply(200, data, [("Content-Type", "application/json"), ("OpenAI-Version", "1")])


def events(*texts: str) -> list[bytes]:
    """The events of a streamed completion, the last of them `[DONE]`."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, *({"content": text} for text in texts), {}]
    found = []
    for delta in deltas:
        choice = {"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}
        document = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
        found.append(b"data: " + json.dumps(document, ensure_ascii=False).encode() + b"\n\n")
    return [*found, b"data: [DONE]\n\n"]


def stream(*texts: str) -> Script:
    """Answers with a streamed completion."""

    def send(handler: Handler) -> None:
        handler.begin_stream()
        for event in events(*texts):
            handler.event(event)
        handler.event(b"")

    return send


def endless(handler: Handler) -> None:
    """Streams until the client is gone."""
    handler.begin_stream()
    try:
        while True:
            handler.event(events("word ")[1])
            threading.Event().wait(0.01)  # a stand-in for a model, which is slow
    except OSError:
        handler.server.client_gone.set()


def silent(handler: Handler) -> None:
    """Says nothing, and waits until the client is gone."""
    handler.connection.settimeout(60)
    if not handler.connection.recv(1):
        handler.server.client_gone.set()
    handler.close_connection = True


def broken_off(*pieces: bytes) -> Script:
    """Streams these pieces, and then breaks the connection."""

    def send(handler: Handler) -> None:
        handler.begin_stream()
        for piece in pieces:
            handler.event(piece)
        handler.reset()

    return send
