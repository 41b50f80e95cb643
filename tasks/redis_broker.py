"""The broker: RabbitMQ's, or Dramatiq's Redis broker with a consumer that wakes on arrival instead of polling.

Dramatiq's own consumer sleeps between looks at its queue, up to a second: an idle search then takes 270 ms at the
median and 880 ms at p99 before it even starts. Ours blocks in Redis until the queue holds something (2.6 ms and 5 ms).
It needs Redis 6.2 for BLMOVE. tests/integration/test_broker.py pins what it relies on inside Dramatiq.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import dramatiq
import redis
import structlog
from dramatiq.brokers.redis import RedisBroker, _RedisConsumer
from dramatiq.brokers.redis import _scripts as dispatch_scripts
from dramatiq.common import current_millis
from dramatiq.errors import ConnectionClosed, DecodeError
from dramatiq.middleware import Middleware

from services.runtime.availability import Availability
from services.runtime.logging import redact
from services.runtime.redis import connect
from tasks.dead_letters import write_reason

#: A worker that has not been heard of for this long is dead, and its messages go back to their queues. Every fetch
#: looks for dead ones (4 us); by default one in a thousand does, and messages come back after minutes.
HEARTBEAT_TIMEOUT_MS = 5_000
MAINTENANCE_EVERY_FETCH = 1_000_000
SOCKET_TIMEOUT_S = 5.0
#: How often an idle consumer compares what Redis thinks it holds with what it holds.
RECONCILE_INTERVAL_S = 5.0
#: Redis checks its blocked clients' time-outs only ten times a second, so shorter waits are slept here.
SHORTEST_BLOCK_MS = 200

log = structlog.get_logger()


def build_broker(url: str, middleware: Sequence[Middleware]) -> dramatiq.Broker:
    """The broker at `url` with exactly these middleware, in this order."""
    if url.startswith("amqp"):
        from tasks.rabbitmq_broker import TellingRabbitmqBroker  # noqa: PLC0415 - brings its client, which few have a use for

        return TellingRabbitmqBroker(url=url, middleware=list(middleware), confirm_delivery=True)
    return WakingRedisBroker(
        client=connect(url, SOCKET_TIMEOUT_S),
        middleware=list(middleware),
        heartbeat_timeout=HEARTBEAT_TIMEOUT_MS,
        maintenance_chance=MAINTENANCE_EVERY_FETCH,
    )


class WakingRedisBroker(RedisBroker):
    """A Redis broker whose consumers wake on arrival."""

    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)  # type: ignore[no-untyped-call]
        # By queue: Dramatiq makes a new consumer after a connection error while workers still run what the old one
        # delivered, so what is held outlives the consumer.
        self.held: defaultdict[str, set[str]] = defaultdict(set)
        self.availability = Availability("broker")
        self._when_full = RedisBroker(**{**parameters, "middleware": []})
        self._when_full.broker_id = self.broker_id
        self._when_full.scripts["dispatch"] = self.client.register_script(
            b"#!lua flags=allow-oom\n" + dispatch_scripts["dispatch"]
        )

    @property
    def consumer_class(self) -> type[_RedisConsumer]:
        return WakingConsumer

    def close(self) -> None:
        self.client.close()

    def _dispatch(self, command: str) -> Callable[..., Any]:
        run: Callable[..., Any] = super()._dispatch(command)  # type: ignore[no-untyped-call]

        def run_when_full_too(queue_name: str, *arguments: Any) -> Any:
            try:
                return run(queue_name, *arguments)
            except redis.OutOfMemoryError:
                if command == "enqueue":
                    raise
                # Taking and settling messages is what frees memory. Redis 7 and Valkey can be told so; 6.2 refuses.
                self._when_full.namespace = self.namespace
                return getattr(self._when_full, f"do_{command}")(queue_name, *arguments)

        return run_when_full_too


class WakingConsumer(_RedisConsumer):
    """Consumes one queue, blocked in Redis while it is empty.

    The blocking look is `BLMOVE queue queue LEFT LEFT`: it waits for the list of message ids to hold something and
    leaves it as it was, so producers stay as they are and whoever fetches first gets the message.
    """

    def __init__(self, broker: WakingRedisBroker, queue_name: str, prefetch: int, timeout: int) -> None:
        super().__init__(broker, queue_name, prefetch, timeout)  # type: ignore[no-untyped-call]
        self._held = broker.held[queue_name]
        self._acks = f"{broker.namespace}:__acks__.{broker.broker_id}.{queue_name}"
        self._ids = f"{broker.namespace}:{queue_name}"
        self._slot_free = threading.Event()
        self._etas: dict[str, int] = {}
        self._reconcile_at = time.monotonic() + RECONCILE_INTERVAL_S
        if queue_name.endswith(".DQ"):
            # Delayed messages live in the thread that restarts with us: the old consumer's are nobody's any more.
            self._held.clear()

    @property
    def outstanding_message_count(self) -> int:
        return len(self._held) + len(self.message_cache)

    def __next__(self) -> dramatiq.MessageProxy | None:
        try:
            while True:
                if self.message_cache:
                    if message := self._deliver(self.message_cache.pop(0)):
                        return message
                elif (room := self.prefetch - self.outstanding_message_count) <= 0:
                    self._slot_free.wait(self.timeout / 1000)
                    self._slot_free.clear()
                    return None
                else:
                    self.message_cache = self.broker.do_fetch(self.queue_name, room)
                    self.broker.availability.up()
                    if not self.message_cache and not self._look():
                        self._reconcile_now_and_then()
                        return None
        except redis.RedisError as error:
            raise self._lost(error) from None

    def ack(self, message: dramatiq.MessageProxy) -> None:
        self._settle(self.broker.do_ack, message)

    def nack(self, message: dramatiq.MessageProxy) -> None:
        def bury(queue: str, redis_id: str) -> None:
            # A full Redis has no room for the reason, which is in the log too.
            with suppress(redis.OutOfMemoryError):
                write_reason(self.broker.client, self._acks, f"{self._ids}.msgs", message)
            self.broker.do_nack(queue, redis_id)

        self._settle(bury, message)

    def requeue(self, messages: Iterable[dramatiq.MessageProxy]) -> None:
        try:
            super().requeue(messages := list(messages))  # type: ignore[no-untyped-call]
        except redis.RedisError as error:
            raise self._lost(error) from None
        for message in messages:
            self._forget(message)

    def close(self) -> None:
        """Give back what was fetched and not yet delivered."""
        cached, self.message_cache = self.message_cache, []
        self.requeue(dramatiq.MessageProxy(message) for data in cached if (message := _decoded(data)))

    def _deliver(self, data: bytes | None) -> dramatiq.MessageProxy | None:
        message = _decoded(data)
        if message is None:
            # Its id came with no data to read it from; reconciling finds it among the acks and puts it aside.
            self._reconcile_at = 0.0
            log.error("undecodable_message", queue=self.queue_name)
            return None
        redis_id = message.options["redis_message_id"]
        self._held.add(redis_id)
        if eta := message.options.get("eta"):
            self._etas[redis_id] = eta
        return dramatiq.MessageProxy(message)

    def _settle(self, command: Any, message: dramatiq.MessageProxy) -> None:
        try:
            command(self.queue_name, message.options["redis_message_id"])
        except redis.RedisError as error:
            # Dramatiq will try again until Redis is back, or has memory again, so the message stays held.
            raise self._lost(error) from None
        self._forget(message)

    def _lost(self, error: redis.RedisError) -> ConnectionClosed:
        # Whatever Redis says no with (loading, read-only, out of memory), Dramatiq is to try again, as it does after
        # a lost connection alone.
        self.broker.availability.down(redact(error))
        return ConnectionClosed(error)

    def _forget(self, message: dramatiq.MessageProxy) -> None:
        redis_id = message.options["redis_message_id"]
        self._held.discard(redis_id)
        self._etas.pop(redis_id, None)
        self._slot_free.set()

    def _look(self) -> bool:
        """Wait until the queue holds a message, a delayed one is due or the time is up; whether to fetch again."""
        wait_ms = float(self.timeout)
        if self._etas:
            wait_ms = max(0.0, min(wait_ms, min(self._etas.values()) - current_millis()))
        if wait_ms < SHORTEST_BLOCK_MS:
            time.sleep(wait_ms / 1000)
            return False
        try:
            return self.broker.client.blmove(self._ids, self._ids, wait_ms / 1000, "LEFT", "LEFT") is not None
        except redis.OutOfMemoryError:
            # It would write nothing, but Redis cannot know: until there is memory again, this polls.
            time.sleep(SHORTEST_BLOCK_MS / 1000)
            return False

    def _reconcile_now_and_then(self) -> None:
        """Put back what Redis thinks this process holds and it does not.

        A fetch whose reply was lost on the wire, or the rest of a batch behind a lost connection, would otherwise wait
        until the process ends.
        """
        if time.monotonic() < self._reconcile_at:
            return
        self._reconcile_at = time.monotonic() + RECONCILE_INTERVAL_S
        for redis_id in {raw.decode() for raw in self.broker.client.smembers(self._acks)} - self._held:
            if _decoded(self.broker.client.hget(f"{self._ids}.msgs", redis_id)):
                self.broker.do_requeue(self.queue_name, redis_id)
                log.warning("stranded_message_requeued", queue=self.queue_name, redis_message_id=redis_id)
            else:
                self.broker.do_nack(self.queue_name, redis_id)
                log.error("undecodable_message_dead_lettered", queue=self.queue_name, redis_message_id=redis_id)


def _decoded(data: bytes | None) -> dramatiq.Message[Any] | None:
    if data is None:
        return None
    try:
        message: dramatiq.Message[Any] = dramatiq.Message.decode(data)
    except (DecodeError, TypeError, KeyError, AttributeError):
        return None
    return message if isinstance(message.options, dict) and "redis_message_id" in message.options else None
