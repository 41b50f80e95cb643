"""Tracing: spans of OpenTelemetry for messages, requests and replies, where its environment variables ask for them.

Everything here works without OpenTelemetry, which is imported only where it is asked for. What came to an end becomes
spans by the same facts as its record in `ltm:trace`, after its answer was published, so that no asker waits for them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Final, Protocol

import structlog
from keepsake_client.errors import KeepsakeError
from keepsake_client.protocol import COUNTERS

from services.runtime.counters import PendingCounts
from services.runtime.errors import InvalidSetting
from services.runtime.logging import redact
from services.runtime.redis import connect
from services.runtime.settings import Settings

#: How long a Redis that is away may hold up the count of what was lost, and with it a start or a stop.
_COUNT_TIMEOUT_S = 0.5

_current: ContextVar[str | None] = ContextVar("traceparent", default=None)

log = structlog.get_logger()


@dataclass
class Span:
    """A unit of work, from its start to `end`.

    Args:
        traceparent: what is asked or published within it carries this; as it came where no spans are made.
        facts: what it is about, as a record of `ltm:trace` has it; read at its end.
    """

    traceparent: str | None
    facts: dict[str, Any] = field(default_factory=dict)

    def end(self) -> None:
        """End the span."""


class Spans(Protocol):
    """The spans of one process."""

    @property
    def enabled(self) -> bool:
        """Whether any are made."""

    def start(self, kind: str, traceparent: str | None) -> Span:
        """A span of what begins now, a child of that of `traceparent`."""

    def record(self, kind: str, traceparent: str | None, facts: Mapping[str, Any]) -> None:
        """Make the spans of what has come to an end, with a child for each of its stages.

        Args:
            kind: as in a `TraceRecord`, which also has what `facts` may hold.
        """

    def close(self) -> None:
        """Send what waits, for half a second at most."""


class _NoSpans:
    enabled = False

    def start(self, kind: str, traceparent: str | None) -> Span:
        return Span(traceparent)

    def record(self, kind: str, traceparent: str | None, facts: Mapping[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


#: Makes no spans; a traceparent is passed on as it came.
NO_SPANS: Final[Spans] = _NoSpans()


def current_traceparent() -> str | None:
    """The traceparent of the span that this code runs under: a client's argument `traceparent`."""
    return _current.get()


@contextmanager
def within(spans: Spans, kind: str, traceparent: str | None) -> Iterator[Span]:
    """Run code under a span, a child of that of `traceparent`; what it raises becomes the span's outcome."""
    span = spans.start(kind, traceparent)
    token = _current.set(span.traceparent)
    try:
        yield span
    except BaseException as error:
        span.facts["outcome"] = error.code if isinstance(error, KeepsakeError) else type(error).__name__
        raise
    finally:
        _current.reset(token)
        span.end()


def open_spans(settings: Settings, process: str) -> Spans:
    """The spans that the environment asks for, by the variables that OpenTelemetry specifies; none by default.

    A process that forks opens them after the fork: they are sent by a thread. What is asked for and is not possible is
    logged and counted, and the process goes on without.
    """
    exporters = _exporters(os.environ)
    if not exporters:
        return NO_SPANS
    redis = connect(settings.redis_url.get_secret_value(), _COUNT_TIMEOUT_S)
    try:
        module = import_module("services.runtime.opentelemetry_spans")
        spans: Spans = module.OpenTelemetrySpans(process, exporters, redis)
    except (ImportError, InvalidSetting, ValueError, RuntimeError, OSError) as error:
        missing = "the extra keepsake-ltm[tracing] is not installed"
        reason = missing if isinstance(error, ImportError) else str(error) if isinstance(error, InvalidSetting) else ""
        # An error of the SDK's may quote a value, such as a key: the log shows where it was raised.
        log.warning("tracing_off", reason=reason or redact(error), exc_info=not reason)
        counts = PendingCounts(COUNTERS)
        counts.count("tracing_off")
        counts.flush(redis)
        redis.close()
        return NO_SPANS
    log.info("tracing_on", exporters=exporters)
    return spans


def _exporters(environment: Mapping[str, str]) -> list[str]:
    """The names of the exporters that the environment asks for."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    asked = environment.get("OTEL_TRACES_EXPORTER", "").split(",")
    names = [name for name in (name.strip().lower() for name in asked) if name]
    if names:
        return [name for name in names if name != "none"]
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return ["otlp"] if any(environment.get(name) for name in endpoints) else []
