"""A message that ends its worker process must not come back for ever."""

from __future__ import annotations

import threading
from typing import Any

import dramatiq
import redis
import structlog
from dramatiq.middleware import Middleware, MiddlewareError

from services.runtime.queues import INDEX_QUEUE, WRITES_QUEUE

MAX_DELIVERIES = 3
#: Longer than a message that killed its worker takes to come back, even where nobody restarts the worker for a while.
REMEMBERED_S = 24 * 3_600

log = structlog.get_logger()


class TooManyDeliveries(MiddlewareError):
    """The message was handed to a worker several times, and no worker lived to the end of it."""


class DeliveryLimit(Middleware):
    """Counts how often a message begins to run and never comes to an end, and fails it past `MAX_DELIVERIES`.

    On the queues alone whose messages come back: a search that comes again is past its deadline anyway, and each
    count is a round trip. What comes back after a worker's death is run with no other such message beside it, or one
    that is innocent would be counted each time its neighbour kills their process.

    Args:
        client: connects to the pipeline's Redis.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._alone = threading.Lock()
        self._suspects: set[str] = set()

    def before_process_message(self, broker: dramatiq.Broker, message: dramatiq.MessageProxy) -> None:
        if message.queue_name not in (INDEX_QUEUE, WRITES_QUEUE):
            return
        key = _key(message)
        try:
            if self._count(key) > 1:
                # A worker has died under it, or under its neighbour. While it waits it does not run.
                self._client.incr(key, -1)
                self._alone.acquire()
                self._suspects.add(key)
                count = self._count(key)
                if count > MAX_DELIVERIES:
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
            self._alone.release()
        try:
            self._client.delete(key)
        except redis.RedisError as error:
            # It is forgotten by itself.
            log.info("delivery_not_forgotten", message_id=message.message_id, reason=type(error).__name__)

    def _count(self, key: str) -> int:
        with self._client.pipeline() as pipeline:
            pipeline.incr(key)
            pipeline.expire(key, REMEMBERED_S)
            return int(pipeline.execute()[0])


def _key(message: dramatiq.MessageProxy) -> str:
    # Redis gives every try an id of its own; RabbitMQ has none.
    delivery = message.options.get("redis_message_id") or f"{message.message_id}:{message.options.get('retries', 0)}"
    return f"ltm:deliveries:{delivery}"
