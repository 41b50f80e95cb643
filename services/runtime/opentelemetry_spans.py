"""Spans made by OpenTelemetry's SDK; imported only where the environment asks for them.

The provider is this module's own, not OpenTelemetry's global one: libraries that find that one make spans by
themselves, with the paths and queries of requests and the messages of errors, which hold user ids and contents.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import redis
from keepsake_client.protocol import COUNTERS, REQUEST_TYPES, clean
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import (
    OTEL_BSP_MAX_QUEUE_SIZE,
    OTEL_EXPORTER_OTLP_PROTOCOL,
    OTEL_EXPORTER_OTLP_TRACES_PROTOCOL,
)
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter, SpanExportResult
from opentelemetry.trace import Span as AnySpan
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.runtime.availability import Availability
from services.runtime.counters import PendingCounts
from services.runtime.errors import InvalidSetting
from services.runtime.logging import MAX_REASON_CHARS
from services.runtime.settings import mask_url
from services.runtime.tracing import Span

EXPORTERS: Final[dict[str, type[SpanExporter]]] = {"otlp": OTLPSpanExporter, "console": ConsoleSpanExporter}
PROTOCOL: Final = "http/protobuf"
#: How long a stopping process waits for its last spans to be sent: the collector is near, or it is away.
CLOSE_WITHIN_S = 0.5
#: The SDK's own.
MAX_WAITING = 2_048
#: A stage that began earlier, by a time that came over the wire, is left out; so is one whose clock is more ahead.
MAX_STAGE_S, MAX_AHEAD_S = 7 * 24 * 3_600.0, 60.0
#: What a protocol buffer holds: times in nanoseconds, and integers.
MAX_TIME_S, MAX_INTEGER = 2**63 / 1e9, 2**63

#: Names of spans and their kinds, by the kind of what they are about. That of a request says its type.
KINDS: Final = {
    "message": ("ltm.index", SpanKind.CONSUMER),
    "request": ("ltm.request", SpanKind.SERVER),
    "reply": ("chat.reply", SpanKind.CONSUMER),
    "input": ("memory.input", SpanKind.CONSUMER),
    "http": ("http", SpanKind.SERVER),
}
#: The stage that each time of a record ends.
STAGES: Final = {
    "taken": "list",
    "queued": "adapter",
    "dispatched": "stream",
    "started": "queue",
    "answered": "work",
    "indexed": "work",
    "failed": "work",
    "searched": "ask",
    "replied": "reply",
}
#: Times that are in a record and begin nothing: an imported message was said years ago.
_NO_STAGE: Final = ("said",)
_NO_ATTRIBUTE: Final = ("times", "ms", "name", "outcome")

_PROPAGATOR = TraceContextTextMapPropagator()


class OpenTelemetrySpans:
    """The spans of one process, sampled and exported as OpenTelemetry's environment variables say.

    Args:
        process: the name of this process, for `service.name` where the environment gives none.
        exporters: their names.
        client: connects to the pipeline's Redis, for the count of spans that are lost.

    Raises:
        InvalidSetting: the environment asks for what is not supported.
    """

    enabled = True

    def __init__(self, process: str, exporters: Sequence[str], client: redis.Redis) -> None:
        protocol = os.environ.get(OTEL_EXPORTER_OTLP_TRACES_PROTOCOL) or os.environ.get(OTEL_EXPORTER_OTLP_PROTOCOL)
        if protocol not in (None, "", PROTOCOL):
            raise InvalidSetting(f"OTEL_EXPORTER_OTLP_PROTOCOL must be {PROTOCOL}")
        if not set(exporters) <= EXPORTERS.keys():
            raise InvalidSetting(f"OTEL_TRACES_EXPORTER must be one of {', '.join(EXPORTERS)}, none")
        name = OTELResourceDetector().detect().attributes.get(SERVICE_NAME) or f"keepsake-{process}"
        resource = {
            SERVICE_NAME: name,
            "host.name": socket.gethostname(),
            "process.pid": os.getpid(),
            "keepsake.process": process,
        }
        self._provider = TracerProvider(resource=Resource.create(resource), shutdown_on_exit=False)
        self._processors = [_Processor(_Exporter(name, EXPORTERS[name](), client)) for name in exporters]
        for processor in self._processors:
            self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("keepsake")

    def start(self, kind: str, traceparent: str | None) -> Span:
        """See `tracing.Spans`."""
        return _LiveSpan(self, kind, self._start(kind, traceparent, None))

    def record(self, kind: str, traceparent: str | None, facts: Mapping[str, Any]) -> None:
        """See `tracing.Spans`."""
        stages = _stages(facts)
        self.finish(kind, self._start(kind, traceparent, stages[0][1] if stages else None), facts)

    def finish(self, kind: str, span: AnySpan, facts: Mapping[str, Any]) -> None:
        """End a span with what is known of it, and make a child for each of its stages."""
        if not span.is_recording():
            return
        span.update_name(_name(kind, facts))
        span.set_attributes(dict(_attributes(facts)))
        if (outcome := facts.get("outcome", "ok")) != "ok":
            span.set_attribute("error.type", clean(str(outcome)))
            span.set_status(StatusCode.ERROR)
        ended_at = None
        for name, started_at, ended_at in _stages(facts):
            child = self._child(span, name, started_at)
            if name == "work":
                self._laps(child, started_at, facts.get("ms") or {})
            child.end(_ns(ended_at))
        span.end(None if ended_at is None else _ns(ended_at))

    def close(self) -> None:
        """See `tracing.Spans`."""
        # The SDK waits for half a minute, and for an exporter that tries again for longer.
        closing = threading.Thread(target=self._provider.shutdown, name="spans-closing", daemon=True)
        closing.start()
        closing.join(CLOSE_WITHIN_S)
        for processor in self._processors:
            processor.report()

    def _start(self, kind: str, traceparent: str | None, started_at: float | None) -> AnySpan:
        parent = _PROPAGATOR.extract({} if traceparent is None else {"traceparent": traceparent})
        name, span_kind = KINDS[kind]
        return self._tracer.start_span(
            name, parent, kind=span_kind, start_time=None if started_at is None else _ns(started_at)
        )

    def _child(self, parent: AnySpan, name: str, started_at: float) -> AnySpan:
        return self._tracer.start_span(name, set_span_in_context(parent), start_time=_ns(started_at))

    def _laps(self, parent: AnySpan, started_at: float, ms: Mapping[str, float]) -> None:
        """The parts of a search's work, one after the other: of each, only how long it took is known."""
        for name, took_ms in ms.items():
            child = self._child(parent, name.removesuffix("_ms"), started_at)
            started_at += took_ms / 1000
            child.end(_ns(started_at))


class _LiveSpan(Span):
    def __init__(self, spans: OpenTelemetrySpans, kind: str, span: AnySpan) -> None:
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, set_span_in_context(span))
        super().__init__(carrier.get("traceparent"))
        self._spans = spans
        self._kind = kind
        self._span = span

    def end(self) -> None:
        self._spans.finish(self._kind, self._span, self.facts)


class _Exporter(SpanExporter):
    """An exporter whose outages are logged once, and whose lost spans are counted.

    The SDK's own log lines, several for each batch, only give the reason.
    """

    def __init__(self, name: str, exporter: SpanExporter, client: redis.Redis) -> None:
        self._exporter = exporter
        self._counts = PendingCounts(COUNTERS)
        self._client = client
        self._availability = Availability("tracing", exporter=name)
        self._lock = threading.Lock()
        self._waiting = 0
        self._reason = _LastLine()

    def admit(self, limit: int) -> bool:
        """Whether one more span may wait to be exported; counted as lost where it may not."""
        with self._lock:
            if self._waiting >= limit:
                self._counts.count("spans_lost")
                return False
            self._waiting += 1
            return True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            with self._lock:
                self._waiting -= len(spans)
            if result is SpanExportResult.SUCCESS:
                self._availability.up()
            else:
                self._availability.down(self._reason.masked())
                self._counts.count("spans_lost", len(spans))
            self._counts.flush(self._client)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def report(self) -> None:
        """Count what still waits as lost, and let the SDK log by itself again."""
        self._reason.remove()
        if self._waiting:
            self._counts.count("spans_lost", self._waiting)
        self._counts.flush(self._client)
        self._client.close()


class _Processor(BatchSpanProcessor):
    """The SDK's batches, with a count of what finds no room in its queue."""

    def __init__(self, exporter: _Exporter) -> None:
        super().__init__(exporter)
        self._exporter = exporter
        size = os.environ.get(OTEL_BSP_MAX_QUEUE_SIZE, "")
        self._limit = int(size) if size.isdecimal() else MAX_WAITING

    def on_end(self, span: ReadableSpan) -> None:
        if span.context and span.context.trace_flags.sampled and self._exporter.admit(self._limit):
            super().on_end(span)

    def report(self) -> None:
        """See `_Exporter.report`."""
        self._exporter.report()


class _LastLine(logging.Handler):
    """Keeps the last line that the SDK logged, in place of writing each."""

    def __init__(self) -> None:
        super().__init__()
        self.text = "the exporter reports a failure"
        self._logger = logging.getLogger("opentelemetry")
        self._logger.addHandler(self)
        self._logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()

    def masked(self) -> str:
        """The line without passwords of URLs and their queries, which may be keys."""
        return re.sub(r"\?\S+", "?***", mask_url(self.text))[:MAX_REASON_CHARS]

    def remove(self) -> None:
        """Let the SDK's lines be written again."""
        self._logger.removeHandler(self)
        self._logger.propagate = True


def _name(kind: str, facts: Mapping[str, Any]) -> str:
    if kind == "request" and facts.get("type") in REQUEST_TYPES:
        return f"ltm.{facts['type']}"
    return str(facts.get("name") or KINDS[kind][0])


def _attributes(facts: Mapping[str, Any]) -> Iterator[tuple[str, str | int | float]]:
    """Attributes of what is known; names with a dot are OpenTelemetry's own."""
    for name, value in facts.items():
        fits = isinstance(value, str | float) or (isinstance(value, int) and abs(value) < MAX_INTEGER)
        if name not in _NO_ATTRIBUTE and fits:
            # A lone surrogate, which an id may hold, would cost the whole batch.
            yield name if "." in name else f"keepsake.{name}", clean(value)


def _stages(facts: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """The stages of a record, each with its start and end in seconds since 1970.

    The last time is this process's own. One that is later than the next is by a clock that is ahead: it counts as the
    next.
    """
    kept: list[tuple[str, float]] = []
    for name, at in reversed((facts.get("times") or {}).items()):
        if name in _NO_STAGE or not isinstance(at, int | float) or not 0 < at < MAX_TIME_S:
            continue
        after = kept[0][1] if kept else at
        if after - MAX_STAGE_S < at < after + MAX_AHEAD_S:
            kept.insert(0, (name, min(at, after)))
    return [(STAGES[end], began, ended) for (_, began), (end, ended) in pairwise(kept)]


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
