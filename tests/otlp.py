"""A collector that takes OpenTelemetry's spans over OTLP/HTTP and keeps them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Received:
    """One span, as the collector got it; times in nanoseconds, ids in hexadecimal."""

    service: str
    pid: int
    trace_id: str
    span_id: str
    parent_id: str
    name: str
    start: int
    end: int
    error: bool
    attributes: dict[str, Any]


class Collector:
    """The spans received so far, and the bodies that they came in.

    Attributes:
        gate: while it is not set, every export waits.
        status: answered to each export.
    """

    def __init__(self) -> None:
        self.spans: list[Received] = []
        self.bodies: list[bytes] = []
        self.gate = threading.Event()
        self.gate.set()
        self.status = 200
        self.url = ""

    def take(self, body: bytes) -> None:
        """Decode and keep the spans of one export."""
        self.bodies.append(body)
        request = ExportTraceServiceRequest.FromString(body)
        for of_process in request.resource_spans:
            process = _values(of_process.resource.attributes)
            for scope in of_process.scope_spans:
                self.spans += [_received(span, process) for span in scope.spans]

    def tree(self, trace_id: str) -> set[str]:
        """Each span of a trace by its name and those of its ancestors, as a path; the root's parent is `…`."""
        of_trace = {span.span_id: span for span in self.spans if span.trace_id == trace_id}

        def path(span: Received) -> str:
            parent = of_trace.get(span.parent_id)
            above = path(parent) if parent else "…" if span.parent_id else ""
            return f"{above}/{span.name}"

        return {path(span) for span in of_trace.values()}

    def named(self, name: str) -> list[Received]:
        """The spans of a name, in the order of their arrival."""
        return [span for span in self.spans if span.name == name]


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


def _received(span: Any, process: dict[str, Any]) -> Received:
    return Received(
        process["service.name"],
        process["process.pid"],
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.name,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        span.status.code == span.status.STATUS_CODE_ERROR,
        _values(span.attributes),
    )


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.gate.wait()
            if collector.status == 200:
                collector.take(body)
            self.send_response(collector.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Write nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_port}"
        serving = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        serving.start()
        try:
            yield collector
        finally:
            collector.gate.set()
            server.shutdown()
            serving.join()
