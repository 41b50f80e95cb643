"""Cost of the traces: `python -m bench.latency.traces [--redis-url URL] [--times N]`.

The two commands that carry a trace record, sent to Redis with and without one, in turns: the script that publishes a
response, and the deletion of a delivery count. The difference is what LTM_TRACE_MAX_LEN=0 saves of each request and
of each indexed message.
"""

from __future__ import annotations

import argparse
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
from services.runtime.traces import NO_TRACES, Traces
from services.stack.processes import SERVICES
from tasks.middleware.deliveries import DeliveryLimit
from tasks.queues import index_message

TRACES = Traces(10_000, "bench")
CHANNEL = "bench:traces"


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
        bytes_each = (client.memory_usage(TRACES_STREAM) or 0) / client.xlen(TRACES_STREAM)
        client.delete(TRACES_STREAM)
    show("microseconds, median", rows, 2)
    show("the stream", {"bytes": {"a record": bytes_each}}, 0)


@contextmanager
def _redis(url: str | None) -> Iterator[redis.Redis]:
    if url is not None:
        with redis.Redis.from_url(url) as client:
            yield client
        return
    with running_stack(without=SERVICES) as stack, redis.Redis.from_url(stack.redis_url) as client:
        yield client


def _compared(prepare: Callable[[Traces], Callable[[], object]], times: int) -> dict[str, float]:
    without, with_trace = prepare(NO_TRACES), prepare(TRACES)
    took: list[tuple[float, float]] = []
    for _ in track(range(times), "in turns"):
        took.append((timed(without)[1] * 1000, timed(with_trace)[1] * 1000))
    off, on = (statistics.median(column) for column in zip(*took, strict=True))
    return {"without": off, "with": on, "ratio": on / off}


def _respond(client: redis.Redis, traces: Traces) -> Callable[[], object]:
    publisher = ResponsePublisher(client, CHANNEL, traces)
    request = {"request_id": f"req-{'0' * 32}", "user_id": "bench-user", "type": "search", "data": {"deadline_ms": 300}}
    stages = {"embed_ms": 12.3, "database_ms": 1.2, "rank_ms": 0.4}

    def call() -> None:
        now = time.time()
        kwargs = {"request": {**request, "pushed_at": now}, "received_at": now, "enqueued_at": now}
        message = dramatiq.MessageProxy(dramatiq.Message("interactive", "memory.search", (), kwargs, {}))
        publisher.after_process_message(_BROKER, message, result={"memories": [], "stages": stages})

    return call


def _settle(client: redis.Redis, traces: Traces) -> Callable[[], object]:
    deliveries = DeliveryLimit(client, traces)
    update = MemoryUpdateMessage(user_id="bench-user", content="hello", source="user", message_id="0" * 32)
    message = dramatiq.MessageProxy(index_message(update, time.time()))
    return lambda: deliveries.after_process_message(_BROKER, message)


_BROKER = StubBroker(middleware=[])


if __name__ == "__main__":
    main()
