"""LLMServer: an OpenAI-compatible HTTP server that answers as it is told: well, late, wrongly, or never.

`python -m bench.harness.llm_server [--port N]` serves the rule-based model of `bench.harness.rule_model` until it is
interrupted. For `ltm up`: LTM_LLM_PROVIDER=openai, LTM_LLM_BASE_URL=http://127.0.0.1:N/v1, LTM_LLM_API_KEY=any.
"""

from __future__ import annotations

import argparse
import json
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Protocol, Self

from bench.harness import rule_model
from services.long_term_memory.extraction.tokens import estimate_text

_JSON = "application/json"


@dataclass(frozen=True)
class Request:
    """A request that the server got."""

    path: str
    authorization: str | None
    body: dict[str, Any]

    @property
    def prompt(self) -> list[dict[str, str]]:
        """Its messages."""
        return list(self.body.get("messages", []))

    @property
    def prompt_tokens(self) -> int:
        """Their tokens and those of the schema, estimated."""
        texts = [str(message["content"]) for message in self.prompt]
        return sum(map(estimate_text, [*texts, json.dumps(self.body.get("response_format", ""))]))


class Behaviour(Protocol):
    """What the server does with a request."""

    def serve(self, exchange: Exchange) -> None:
        """Answer the request, or do not."""
        ...


@dataclass(frozen=True)
class Reply:
    """A chat completion.

    Args:
        content: its text, or what makes it of the messages.
        counts: whether it says its usage.
        late_s: for how long it waits first.
    """

    content: str | Callable[[list[dict[str, str]]], str] | None
    finish_reason: str | None = "stop"
    refusal: str | None = None
    counts: bool = True
    late_s: float = 0.0

    def serve(self, exchange: Exchange) -> None:
        """Send it."""
        exchange.server.stopping.wait(self.late_s)
        request = exchange.request
        content = self.content(request.prompt) if callable(self.content) else self.content
        tokens = estimate_text(content or self.refusal or "")
        exchange.server.count_tokens(request.prompt_tokens, tokens)
        counts = (request.prompt_tokens, tokens, request.prompt_tokens + tokens)
        usage = dict(zip(("prompt_tokens", "completion_tokens", "total_tokens"), counts, strict=True))
        message = {"role": "assistant", "content": content, "refusal": self.refusal}
        completion = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": request.body.get("model"),
            "choices": [{"index": 0, "finish_reason": self.finish_reason, "message": message}],
            **({"usage": usage} if self.counts else {}),
        }
        exchange.send(200, json.dumps(completion).encode())


#: The rule-based model: it reads the real prompt and answers it.
RULES = Reply(rule_model.reply)


@dataclass(frozen=True)
class Status:
    """An error response."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    error: Mapping[str, Any] = field(default_factory=lambda: {"message": "no", "type": "test"})

    def serve(self, exchange: Exchange) -> None:
        """Send it."""
        exchange.send(self.status, json.dumps({"error": self.error}).encode(), headers=self.headers)


@dataclass(frozen=True)
class Raw:
    """A response of any bytes."""

    data: bytes
    content_type: str = _JSON
    status: int = 200

    def serve(self, exchange: Exchange) -> None:
        """Send it."""
        exchange.send(self.status, self.data, self.content_type)


@dataclass(frozen=True)
class Choosy:
    """A server that refuses some parameters with 400, and answers as `then` without them.

    Args:
        formats: types of `response_format`.
        sampling: whether it is `temperature`, `top_p` and `max_tokens` too.
        status: of the refusals.
    """

    formats: frozenset[str] = frozenset()
    sampling: bool = False
    status: int = 400
    then: Behaviour = RULES

    def serve(self, exchange: Exchange) -> None:
        """Refuse, or answer."""
        body = exchange.request.body
        refused: list[str] = [name for name in ("temperature", "top_p", "max_tokens") if self.sampling and name in body]
        if (body.get("response_format") or {}).get("type") in self.formats:
            refused = ["response_format"]
        if refused:
            error = {"message": f"Unsupported parameter: '{refused[0]}'", "param": refused[0], "type": "invalid"}
            Status(self.status, error=error).serve(exchange)
        else:
            self.then.serve(exchange)


class Hang:
    """A server that accepts and never answers."""

    def serve(self, exchange: Exchange) -> None:
        """Wait until the server stops."""
        exchange.server.stopping.wait()


@dataclass(frozen=True)
class Drip:
    """A response that comes byte by byte and never ends: no time-out between two bytes notices."""

    every_s: float = 0.02
    in_headers: bool = False

    def serve(self, exchange: Exchange) -> None:
        """Send bytes until the server stops or the client is gone."""
        exchange.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
        exchange.write(b"X-Slow: " if self.in_headers else b"Content-Length: 1000000\r\n\r\n")
        while not exchange.server.stopping.wait(self.every_s):
            if not exchange.write(b" " if not self.in_headers else b"x"):
                return


@dataclass(frozen=True)
class Cut:
    """A connection that is closed before the answer, or within it."""

    within: bool = False

    def serve(self, exchange: Exchange) -> None:
        """Send a part at most."""
        if self.within:
            exchange.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"id":')


class LLMServer(ThreadingHTTPServer):
    """The server, in a thread; a context manager.

    Args:
        behaviour: for requests that no other was set for.
        port: 0 for any that is free.
    """

    daemon_threads = False  # the end waits for the threads of the requests, which `stopping` ends
    request_queue_size = 64

    def __init__(self, behaviour: Behaviour = RULES, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.behaviour = behaviour
        self.requests: list[Request] = []
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.stopping = threading.Event()
        self._next: deque[Behaviour] = deque()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=[0.01], name="llm-server", daemon=True)

    @property
    def url(self) -> str:
        """The base URL, for LTM_LLM_BASE_URL."""
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def calls(self) -> int:
        """How many requests have come."""
        return len(self.requests)

    def then(self, *behaviours: Behaviour) -> None:
        """Set what the next requests get, one each, before the behaviour of the others."""
        with self._lock:
            self._next.extend(behaviours)

    def count_tokens(self, prompt: int, completion: int) -> None:
        """Add to the tokens that were paid for."""
        with self._lock:
            self.prompt_tokens += prompt
            self.completion_tokens += completion

    def take(self, request: Request) -> Behaviour:
        """Note a request, and what it is to get."""
        with self._lock:
            self.requests.append(request)
            return self._next.popleft() if self._next else self.behaviour

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stopping.set()
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that give up are what it is for."""


@dataclass(frozen=True)
class Exchange:
    """A request with the connection that it came on."""

    server: LLMServer
    request: Request
    handler: BaseHTTPRequestHandler

    def send(self, status: int, data: bytes, content_type: str = _JSON, headers: Mapping[str, str] = {}) -> None:
        """Send a response."""
        with suppress(OSError):  # the client has given up
            self.handler.send_response(status)
            for name, value in {"Content-Type": content_type, "Content-Length": str(len(data)), **headers}.items():
                self.handler.send_header(name, value)
            self.handler.end_headers()
            self.handler.wfile.write(data)

    def write(self, data: bytes) -> bool:
        """Send bytes as they are; False where the client is gone."""
        try:
            self.handler.wfile.write(data)
        except OSError:
            return False
        return True


class _Handler(BaseHTTPRequestHandler):
    server: LLMServer
    protocol_version = "HTTP/1.0"  # a connection a call: none stays open at the end

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        request = Request(self.path, self.headers.get("Authorization"), body)
        self.server.take(request).serve(Exchange(self.server, request, self))

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def main() -> None:
    """Serve the rule-based model until an interrupt, and say what it was asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=0, help="0 for any that is free")
    with LLMServer(port=parser.parse_args().port) as server:
        print(server.url, flush=True)
        with suppress(KeyboardInterrupt):
            server.stopping.wait()
        print(f"{server.calls} calls, {server.prompt_tokens} prompt and {server.completion_tokens} completion tokens")


if __name__ == "__main__":
    main()
