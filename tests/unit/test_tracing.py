"""Tracing: when it is on, which spans a record becomes, and that no collector and no message can harm the process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
import fakeredis
import pytest
from keepsake_client.errors import Unavailable
from keepsake_client.protocol import COUNTERS, MemoryUpdateMessage, parse_request
from structlog.testing import capture_logs

from adapters.ltm_responses import ResponsePublisher
from services.runtime import tracing
from services.runtime.opentelemetry_spans import OpenTelemetrySpans
from services.runtime.settings import load_settings
from services.runtime.tracing import NO_SPANS, Spans, current_traceparent, open_spans, within
from tasks.middleware.deliveries import DeliveryLimit
from tasks.queues import index_message, request_message
from tests.otlp import Collector, collecting
from tests.support import wait_until

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
NOT_SAMPLED = f"00-{TRACE}-b7ad6b7169203331-00"
SECRET = "the user's own words"
NOW = 1_712_345_678.0
FACTS: dict[str, Any] = {"request_id": "r1", "type": "search", "times": {"taken": NOW, "answered": NOW + 1}}
#: Imports what the processes of the stack do, and says what of tracing that took; redis-py imports metrics by itself.
IMPORTS = """
import sys
import adapters.__main__, tasks.composition, services.memory.__main__, services.chat_ai.__main__
from services.runtime.settings import load_settings
from services.runtime.tracing import open_spans
open_spans(load_settings(), "worker")
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk.trace", "opentelemetry.exporter"))])
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of OpenTelemetry's but those of the test, and batches that are sent at once."""
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED", "OTEL_SERVICE_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.url)
        yield running


@pytest.fixture
def redis() -> Any:
    return fakeredis.FakeRedis()


@contextmanager
def opened(redis: Any) -> Iterator[OpenTelemetrySpans]:
    """The spans of a process, which are closed whatever happens."""
    spans = OpenTelemetrySpans("some-worker", ["otlp"], redis)
    try:
        yield spans
    finally:
        spans.close()


def lost(redis: Any) -> int:
    return int(redis.hget(COUNTERS, "spans_lost") or 0)


def arrived(collector: Collector, number: int) -> None:
    wait_until(lambda: len(collector.spans) >= number, description=f"{number} spans")
    assert len(collector.spans) == number


# On and off


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}, ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://localhost:4318/v1/traces"}, ["otlp"]),
        ({"OTEL_TRACES_EXPORTER": "console, OTLP"}, ["console", "otlp"]),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}, []),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "True"}, []),
    ],
)
def test_the_environment_says_whether_spans_are_made(environment: dict[str, str], expected: list[str]) -> None:
    """Given variables of OpenTelemetry's, I expect the exporters that its specification says."""
    assert tracing._exporters(environment) == expected


def test_nothing_of_opentelemetry_is_imported_where_it_is_off() -> None:
    """Given no such variable, I expect adapters, workers and services to import no spans and exporters."""
    found = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, check=True, text=True, env={})

    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin", "OTEL_TRACES_EXPORTER must be one of otlp, console, none"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1000000", "ValueError"),
        (
            "OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER",
            "x",
            "RuntimeError: Requested component 'x' not found",
        ),
    ],
)
def test_what_is_asked_for_and_not_supported_is_said_once(
    variable: str, value: str, reason: str, collector: Collector, monkeypatch: pytest.MonkeyPatch, redis: Any
) -> None:
    """Given an unsupported exporter or protocol, I expect one warning, one count, and a process that goes on."""
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(tracing, "connect", lambda *_: redis)

    with capture_logs() as lines:
        spans = open_spans(load_settings(), "worker")

    assert spans is NO_SPANS
    [line] = lines
    assert (line["event"], line["reason"].partition(" in entry point")[0]) == ("tracing_off", reason)
    assert redis.hget(COUNTERS, "tracing_off") == b"1"


def test_a_missing_extra_is_said_once(collector: Collector, monkeypatch: pytest.MonkeyPatch, redis: Any) -> None:
    """Given an endpoint and no OpenTelemetry, I expect one warning that names the extra, and a process that goes on."""
    monkeypatch.setitem(sys.modules, "services.runtime.opentelemetry_spans", None)
    monkeypatch.setattr(tracing, "connect", lambda *_: redis)

    with capture_logs() as lines:
        spans = open_spans(load_settings(), "worker")

    assert spans is NO_SPANS
    assert [line["reason"] for line in lines] == ["the extra keepsake-ltm[tracing] is not installed"]
    assert redis.hget(COUNTERS, "tracing_off") == b"1"


def test_without_spans_a_traceparent_is_passed_on_as_it_came() -> None:
    """Given no tracing, I expect code that runs within a span to pass on the traceparent that came."""
    with within(NO_SPANS, "reply", PARENT):
        inside = current_traceparent()

    assert (inside, current_traceparent()) == (PARENT, None)


# Spans of records


def handle(spans: Spans, redis: Any, message: dramatiq.Message[Any], error: Exception | None = None) -> None:
    """What the middleware of a worker does around an actor."""
    proxy = dramatiq.MessageProxy(message.copy(options={"redis_message_id": "x"}))
    proxy.failed = error is not None
    stages = {"embed_ms": 12.0, "database_ms": 3.0, "rank_ms": 1.0}
    result = {"memories": [], "stages": stages} if "request" in message.kwargs else None
    for middleware in (DeliveryLimit(redis, spans=spans), ResponsePublisher(redis, "ltm_responses", spans=spans)):
        middleware.before_process_message(None, proxy)  # type: ignore[arg-type]  # it needs no broker
        middleware.after_process_message(None, proxy, result=result, exception=error)  # type: ignore[arg-type]


def search(**more: Any) -> dramatiq.Message[Any]:
    fields = {"request_id": "r1", "type": "search", "user_id": "anna", "data": {"query": SECRET}, **more}
    return request_message(parse_request(json.dumps(fields).encode(), 1_000), time.time())


def test_a_request_becomes_spans_by_stage(collector: Collector, redis: Any) -> None:
    """Given a search with a traceparent, I expect a span for it, and one for each stage, all in the asker's trace."""
    with opened(redis) as spans:
        handle(spans, redis, search(traceparent=PARENT))
        arrived(collector, 7)

    root = "…/ltm.search"
    stages = {f"{root}/adapter", f"{root}/queue", f"{root}/work"}
    assert collector.tree(TRACE) == {root, *stages, *(f"{root}/work/{part}" for part in ("embed", "database", "rank"))}
    [span] = collector.named("ltm.search")
    assert (span.parent_id, span.error, span.service) == ("b7ad6b7169203331", False, "keepsake-some-worker")
    assert span.attributes == {"keepsake.request_id": "r1", "keepsake.type": "search", "keepsake.memories": 0}


def test_a_message_becomes_spans_by_stage(collector: Collector, redis: Any) -> None:
    """Given an indexed message, I expect spans from the moment it was logged; it may have been said years ago."""
    update = MemoryUpdateMessage(
        user_id="anna", content=SECRET, source="user", timestamp=5, message_id="m1", traceparent=PARENT
    )
    with opened(redis) as spans:
        handle(spans, redis, index_message(update, arrived_at=time.time() - 1))
        arrived(collector, 4)
        handle(spans, redis, index_message(update, arrived_at=None), Unavailable("no database"))
        wait_until(lambda: len(collector.named("ltm.index")) == 2, description="the second message")

    root = "…/ltm.index"
    assert collector.tree(TRACE) == {root, f"{root}/stream", f"{root}/queue", f"{root}/work"}
    first, failed = collector.named("ltm.index")
    assert (first.attributes, first.error) == ({"keepsake.message_id": "m1"}, False)
    assert (failed.attributes["error.type"], failed.error) == ("unavailable", True)


def test_an_import_is_a_request_and_no_message(collector: Collector, redis: Any) -> None:
    """Given a user_import, which the indexers' queue has, too, I expect the spans of a request alone."""
    fields = {"request_id": "r1", "type": "user_import", "user_id": "anna", "data": {"records": []}}
    with opened(redis) as spans:
        handle(spans, redis, request_message(parse_request(json.dumps(fields).encode(), 1_000), time.time()))
        handle(spans, redis, search())
        wait_until(lambda: collector.named("ltm.search"), description="the search")

    assert len(collector.named("ltm.user_import")) == 1
    assert collector.named("ltm.index") == []


def test_no_span_holds_a_user_or_contents(collector: Collector, redis: Any) -> None:
    """Given a search and a message, I expect neither the user's id nor what was said in what the collector gets."""
    update = MemoryUpdateMessage(user_id="anna-4711", content=SECRET, source="user", message_id="m1")
    with opened(redis) as spans:
        handle(spans, redis, search(user_id="anna-4711"))
        handle(spans, redis, index_message(update, time.time()))
        wait_until(lambda: collector.named("ltm.index"), description="the message")

    sent = b"".join(collector.bodies)
    assert b"anna-4711" not in sent
    assert SECRET.encode() not in sent


def test_what_is_not_sampled_makes_no_span_and_keeps_its_flag(collector: Collector, redis: Any) -> None:
    """Given a traceparent that is not sampled, I expect nothing sent, and the same trace passed on, not sampled."""
    with opened(redis) as spans:
        handle(spans, redis, search(traceparent=NOT_SAMPLED))
        with within(spans, "reply", NOT_SAMPLED) as span:
            passed_on = str(span.traceparent).split("-")
        handle(spans, redis, search(traceparent=PARENT))
        arrived(collector, 7)

    assert (passed_on[1], passed_on[3]) == (TRACE, "00")


def test_code_runs_within_a_span_of_the_same_trace(collector: Collector, redis: Any) -> None:
    """Given code under a span, I expect its traceparent to name that span, and an error to be the span's outcome."""
    with opened(redis) as spans:
        inside: list[str | None] = []

        def fail() -> None:
            with within(spans, "reply", PARENT):
                inside.append(current_traceparent())
                raise Unavailable("no database")

        with pytest.raises(Unavailable):
            fail()
        arrived(collector, 1)

    [span] = collector.spans
    assert inside == [f"00-{TRACE}-{span.span_id}-01"]
    assert (span.name, span.error, span.attributes["error.type"]) == ("chat.reply", True, "unavailable")


def test_a_process_may_have_a_name_of_the_operators(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, redis: Any
) -> None:
    """Given OTEL_SERVICE_NAME, I expect it in place of the process's own name."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "my-bot")
    with opened(redis) as spans:
        spans.record("request", None, FACTS)
        arrived(collector, 2)

    assert {span.service for span in collector.spans} == {"my-bot"}


@pytest.mark.parametrize(
    "times",
    [
        {"pushed": 0.0},
        {"pushed": -1e300},
        {"pushed": 1e300},
        {"pushed": float("nan")},
        {"pushed": float("inf")},
        {"pushed": 10**400},
        {"pushed": "yesterday"},
        {"pushed": NOW + 3_600},
        {"pushed": None, "taken": NOW + 3_600},
    ],
)
def test_a_time_that_cannot_be_begins_no_stage(times: dict[str, Any], collector: Collector, redis: Any) -> None:
    """Given a time of another program that is absurd, I expect spans of the times that make sense, none negative."""
    facts = {"request_id": "r1", "times": {**times, "queued": NOW, "answered": NOW + 1}}
    with opened(redis) as spans:
        spans.record("request", PARENT, facts)
        wait_until(lambda: collector.named("ltm.request"), description="the request")

    [root] = collector.named("ltm.request")
    assert (root.start, root.end) == (round(NOW * 1e9), round((NOW + 1) * 1e9))
    assert all(span.start <= span.end for span in collector.spans)


def test_a_clock_that_is_ahead_shortens_its_stage(collector: Collector, redis: Any) -> None:
    """Given an asker whose clock is half a second ahead, I expect all stages, the one that it began without length."""
    times = {"pushed": NOW + 0.5, "taken": NOW, "answered": NOW + 1}
    with opened(redis) as spans:
        spans.record("request", PARENT, {**FACTS, "times": times})
        arrived(collector, 3)

    [waited] = collector.named("list")
    assert waited.start == waited.end == round(NOW * 1e9)


@pytest.mark.parametrize(
    "facts",
    [
        {"request_id": "\ud800 a lone surrogate"},
        {"request_id": "\0"},
        {"deadline_ms": 10**30, "tries": -(10**400)},
        {"request_id": {"not": "a text"}, "type": ["search"]},
        {"times": None, "ms": None},
        {"times": {}, "outcome": "\udfff"},
    ],
)
def test_hostile_ids_cost_no_other_span(facts: dict[str, Any], collector: Collector, redis: Any) -> None:
    """Given ids that no protocol buffer holds, I expect their spans, and those of the others in the batch."""
    with opened(redis) as spans:
        spans.record("request", PARENT, {**FACTS, **facts})
        spans.record("request", PARENT, {**FACTS, "request_id": "r2"})
        wait_until(lambda: len(collector.named("ltm.search")) + len(collector.named("ltm.request")) == 2)

    assert lost(redis) == 0


# Collectors that fail


def test_a_collector_that_is_away_is_logged_once(monkeypatch: pytest.MonkeyPatch, redis: Any) -> None:
    """Given an endpoint that refuses connections, I expect one line with the reason, and every lost span counted."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:password@127.0.0.1:1/?key=secret")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.1")
    with capture_logs() as lines, opened(redis) as spans:
        for number in (2, 4):
            spans.record("request", PARENT, FACTS)
            wait_until(lambda number=number: lost(redis) == number, description="the count")  # type: ignore[misc]

    [line] = lines
    assert (line["event"], line["dependency"]) == ("dependency_down", "tracing")
    assert "password" not in str(line)
    assert "secret" not in str(line)


def test_a_collector_that_comes_back_gets_spans_again(collector: Collector, redis: Any) -> None:
    """Given a collector that refuses an export and then takes one, I expect each change logged once."""
    collector.status = 404
    with capture_logs() as lines, opened(redis) as spans:
        spans.record("request", PARENT, FACTS)
        wait_until(lambda: lost(redis) == 2, description="the count")
        collector.status = 200
        spans.record("request", PARENT, FACTS)
        arrived(collector, 2)
        wait_until(lambda: len(lines) == 2, description="the second line")

    assert [line["event"] for line in lines] == ["dependency_down", "dependency_up"]
    assert "404" in lines[0]["reason"]


@pytest.fixture
def stuck(collector: Collector) -> Callable[[], None]:
    """Makes every export wait; called again, lets them go on."""

    def toggle() -> None:
        (collector.gate.clear if collector.gate.is_set() else collector.gate.set)()

    return toggle


def test_spans_that_find_no_room_are_counted(
    collector: Collector, stuck: Callable[[], None], monkeypatch: pytest.MonkeyPatch, redis: Any
) -> None:
    """Given a collector that hangs and a queue for 8 spans, I expect the rest counted, and no line for each."""
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    stuck()
    with capture_logs() as lines, opened(redis) as spans:
        for _ in range(10):
            spans.record("request", PARENT, FACTS)
        stuck()
        arrived(collector, 8)
        wait_until(lambda: lost(redis) == 12, description="the count")

    assert lines == []


def test_a_process_stops_while_its_collector_hangs(collector: Collector, stuck: Callable[[], None], redis: Any) -> None:
    """Given a collector that never answers, I expect the process to end without it, and its spans counted as lost."""
    stuck()
    with opened(redis) as spans:
        spans.record("request", PARENT, FACTS)

    assert lost(redis) == 2
    assert collector.spans == []
