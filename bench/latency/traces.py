"""Cost of the traces: `python -m bench.latency.traces [--redis-url URL] [--times N]`.

The two commands that carry a trace record, sent to Redis with and without one, in turns: the script that publishes a
response, and the deletion of a delivery count. The difference is what LTM_TRACE_MAX_LEN=0 saves of each request and
of each indexed message. The same with a traceparent that is only passed on, and with spans of OpenTelemetry that a
collector in this process takes: what they cost after the answer was published.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dramatiq
import redis
from dramatiq.brokers.stub import StubBroker
from keepsake_client.protocol import TRACES_STREAM, MemoryUpdateMessage
from structlog.testing import capture_logs

from adapters.ltm_responses import ResponsePublisher
from bench.harness.stack import running_stack
from bench.harness.statistics import timed
from bench.harness.tables import show, track
from services.runtime.opentelemetry_spans import OpenTelemetrySpans
from services.runtime.traces import NO_TRACES, Traces
from services.runtime.tracing import NO_SPANS, Spans
from services.stack.processes import SERVICES
from tasks.middleware.deliveries import DeliveryLimit
from tasks.queues import index_message
from tests.otlp import collecting

TRACES = Traces(10_000, "bench")
CHANNEL = "bench:traces"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis-url", help="of a Redis without a stack; the stream of traces is deleted")
    parser.add_argument("--times", type=int, default=5_000)
    given = parser.parse_args()
    with _redis(given.redis_url) as client, capture_logs():
        rows = {
            "a response is published": _compared(lambda traces: _respond(client, traces), given.times),
            "an indexed message is settled": _compared(lambda traces: _settle(client, traces), given.times),
        }
        with _spans(client) as spans:
            with_traceparent = {
                "a response, traceparent passed on": _in_turns(
                    _respond(client, TRACES), _respond(client, TRACES, PARENT), given.times
                ),
                "a response, spans made": _in_turns(
                    _respond(client, TRACES), _respond(client, TRACES, PARENT, spans), given.times
                ),
                "an indexed message, spans made": _in_turns(
                    _settle(client, TRACES), _settle(client, TRACES, spans), given.times
                ),
            }
        bytes_each = (client.memory_usage(TRACES_STREAM) or 0) / client.xlen(TRACES_STREAM)
        client.delete(TRACES_STREAM)
    show("microseconds, median", rows, 2)
    show("microseconds, median, OpenTelemetry", with_traceparent, 2)
    show("the stream", {"bytes": {"a record": bytes_each}}, 0)


@contextmanager
def _redis(url: str | None) -> Iterator[redis.Redis]:
    if url is not None:
        with redis.Redis.from_url(url) as client:
            yield client
        return
    with running_stack(without=SERVICES) as stack, redis.Redis.from_url(stack.redis_url) as client:
        yield client


@contextmanager
def _spans(client: redis.Redis) -> Iterator[OpenTelemetrySpans]:
    with collecting() as collector:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.url
        spans = OpenTelemetrySpans("bench", ["otlp"], client)
        yield spans
        spans.close()


def _compared(prepare: Callable[[Traces], Callable[[], object]], times: int) -> dict[str, float]:
    return _in_turns(prepare(NO_TRACES), prepare(TRACES), times)


def _in_turns(without: Callable[[], object], with_trace: Callable[[], object], times: int) -> dict[str, float]:
    took: list[tuple[float, float]] = []
    for _ in track(range(times), "in turns"):
        took.append((timed(without)[1] * 1000, timed(with_trace)[1] * 1000))
    off, on = (statistics.median(column) for column in zip(*took, strict=True))
    return {"without": off, "with": on, "ratio": on / off}


def _respond(
    client: redis.Redis, traces: Traces, traceparent: str | None = None, spans: Spans = NO_SPANS
) -> Callable[[], object]:
    publisher = ResponsePublisher(client, CHANNEL, traces, spans=spans)
    passed_on = {} if traceparent is None else {"traceparent": traceparent}
    request = {
        "request_id": f"req-{'0' * 32}",
        "user_id": "bench-user",
        "type": "search",
        "data": {"deadline_ms": 300},
        **passed_on,
    }
    stages = {"embed_ms": 12.3, "database_ms": 1.2, "rank_ms": 0.4}

    def call() -> None:
        now = time.time()
        kwargs = {"request": {**request, "pushed_at": now}, "received_at": now, "enqueued_at": now}
        message = dramatiq.MessageProxy(dramatiq.Message("interactive", "memory.search", (), kwargs, {}))
        publisher.after_process_message(_BROKER, message, result={"memories": [], "stages": stages})

    return call


def _settle(client: redis.Redis, traces: Traces, spans: Spans = NO_SPANS) -> Callable[[], object]:
    deliveries = DeliveryLimit(client, traces, spans)
    update = MemoryUpdateMessage(user_id="bench-user", content="hello", source="user", message_id="0" * 32)
    message = dramatiq.MessageProxy(index_message(update, time.time()))
    return lambda: deliveries.after_process_message(_BROKER, message)


_BROKER = StubBroker(middleware=[])


if __name__ == "__main__":
    main()
