"""Delivery limit: a message that kills its worker process is dead-lettered instead of delivered for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import dramatiq
import redis
import structlog
from dramatiq.middleware import Middleware, MiddlewareError
from keepsake_client.protocol import REMEMBER, read_traceparent

from services.runtime.id_matcher import replied_to
from services.runtime.queues import INDEX_QUEUE, WRITES_QUEUE
from services.runtime.traces import NO_TRACES, Traces
from services.runtime.tracing import NO_SPANS, Spans
from tasks.middleware.retries import error_text
from tasks.queues import ARRIVED_AT

MAX_DELIVERIES = 3
#: Longer than a message that killed its worker takes to be delivered again, even where the worker is restarted late.
COUNT_TTL_S = 24 * 3_600

log = structlog.get_logger()


class TooManyDeliveries(MiddlewareError):
    """The message was delivered several times, and each time its worker process died."""


class DeliveryLimit(Middleware):
    """Counts the deliveries of a message that did not come to an end, and fails it past `MAX_DELIVERIES`.

    On the queues for writes and indexing alone: a search that is delivered again is past its deadline, and each count
    is a round trip before the message and one after it. A message that is delivered again runs with no other such
    message beside it. Otherwise an innocent one would be counted each time its neighbour kills their process.

    The trace of a message to index is sent with the command that deletes its count.

    Args:
        client: connects to the pipeline's Redis.
        traces: of this process; by default none are written.
        spans: of this process; by default none are made.
        clock: the time in seconds since 1970.
    """

    def __init__(
        self,
        client: redis.Redis,
        traces: Traces = NO_TRACES,
        spans: Spans = NO_SPANS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._traces = traces
        self._spans = spans
        self._clock = clock
        self._started = threading.local()
        self._one_suspect = threading.Lock()
        self._suspects: set[str] = set()
        self._may_set = True

    def before_process_message(self, broker: dramatiq.Broker, message: dramatiq.MessageProxy) -> None:
        if message.queue_name not in (INDEX_QUEUE, WRITES_QUEUE):
            return
        self._started.at = self._clock()
        key = _key(message)
        try:
            if self._count_first(key):
                return
            # Its worker died, by this message or its neighbour. It is not counted while it waits: the process may die
            # of another suspect before it has its turn.
            self._one_suspect.acquire()
            self._suspects.add(key)
            if self._count(key) > MAX_DELIVERIES:
                raise TooManyDeliveries(f"{MAX_DELIVERIES} worker processes died while they ran it")
        except redis.RedisError as error:
            log.info("delivery_not_counted", message_id=message.message_id, reason=type(error).__name__)

    def after_process_message(
        self,
        broker: dramatiq.Broker,
        message: dramatiq.MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        if message.queue_name not in (INDEX_QUEUE, WRITES_QUEUE):
            return
        key = _key(message)
        if key in self._suspects:
            self._suspects.remove(key)
            self._one_suspect.release()
        ended = message.queue_name == INDEX_QUEUE and (exception is None or message.failed)
        recorded = ended and (self._traces.wanted or self._spans.enabled)
        update = _update_of(message) if recorded else {}
        facts = self._facts(message, update, exception) if recorded else {}
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                pipeline.delete(key)
                if recorded and self._traces.wanted:
                    self._traces.add(pipeline, self._traces.record("message", str(update.get("user_id", "")), **facts))
                deleted, *_ = pipeline.execute(raise_on_error=False)
            if isinstance(deleted, Exception):
                raise deleted
        except redis.RedisError as error:
            # The count expires.
            log.info("delivery_count_not_deleted", message_id=message.message_id, reason=type(error).__name__)
        if update:
            self._spans.record("message", read_traceparent(update.get("traceparent")), facts)

    def _facts(
        self, message: dramatiq.MessageProxy, update: dict[str, Any], exception: BaseException | None
    ) -> dict[str, Any]:
        """What is known of a message that was indexed, or failed for good, for its record and its spans."""
        times = {
            "said": update.get("timestamp"),
            "logged": update.get(ARRIVED_AT),
            "dispatched": message.message_timestamp / 1000,
            "started": getattr(self._started, "at", None),
            "indexed" if exception is None else "failed": self._clock(),
        }
        meta = update.get("meta")
        not_remembered = isinstance(meta, dict) and meta.get(REMEMBER) is False
        return {
            "message_id": update.get("message_id"),
            "task_id": update.get("task_id"),
            "reply_to": replied_to(update),
            "memories": 0 if not_remembered else None,
            "outcome": "ok" if exception is None else error_text(exception).partition(":")[0],
            "times": times,
            "tries": message.options.get("retries"),
        }

    def _count_first(self, key: str) -> bool:
        """Count a delivery if it is the message's first; whether it is."""
        if self._may_set:
            try:
                return bool(self._client.set(key, 1, nx=True, ex=COUNT_TTL_S))
            except redis.exceptions.NoPermissionError:
                self._may_set = False  # the access rules of version 0.2
        if self._client.incrby(key, 0):
            return False
        self._count(key)
        return True

    def _count(self, key: str) -> int:
        with self._client.pipeline() as pipeline:
            pipeline.incr(key)
            pipeline.expire(key, COUNT_TTL_S)
            return int(pipeline.execute()[0])


def _update_of(message: dramatiq.MessageProxy) -> dict[str, Any]:
    """The event to index; empty for a user_import, whose spans are those of a request."""
    update = message.kwargs.get("update")
    return update if isinstance(update, dict) else {}


def _key(message: dramatiq.MessageProxy) -> str:
    # The Redis broker gives every attempt an id of its own; RabbitMQ's has none.
    delivery = message.options.get("redis_message_id") or f"{message.message_id}:{message.options.get('retries', 0)}"
    return f"ltm:deliveries:{delivery}"
