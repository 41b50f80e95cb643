"""Dramatiq's Redis broker with a consumer that wakes on arrival instead of polling.

Dramatiq's own consumer sleeps between looks at its queue, up to a second: an idle search then takes 270 ms at the
median and 880 ms at p99 before it even starts. This one blocks in Redis until the queue holds a message (2.6 ms and
5 ms). It needs Redis 6.2 for BLMOVE. tests/integration/test_broker.py pins what it relies on inside Dramatiq.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import dramatiq
import dramatiq.worker
import redis
import structlog
from dramatiq.brokers.redis import RedisBroker, _RedisConsumer
from dramatiq.brokers.redis import _scripts as dispatch_scripts
from dramatiq.common import current_millis, q_name
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import Middleware

from services.runtime import dead_letters
from services.runtime.availability import Availability
from services.runtime.logging import redact
from services.runtime.metrics import NO_METRICS, Metrics
from services.runtime.queues import INTERACTIVE_QUEUE, QueueKeys
from services.runtime.redis import connect
from tasks.dead_letters import add_reason
from tasks.decoding import decode

#: A worker without a heartbeat for this long has failed, and its messages go back to their queues. Every fetch looks
#: for failed workers (4 us); by default one in a thousand does, and messages come back after minutes.
HEARTBEAT_TIMEOUT_MS = 5_000
MAINTENANCE_EVERY_FETCH = 1_000_000
SOCKET_TIMEOUT_S = 5.0
#: How often an idle consumer compares the messages that Redis counts as held by it with those that it holds.
RECONCILE_INTERVAL_S = 5.0
#: Between two looks of a process whose threads are all busy at what waits on the interactive queue: one that waits for
#: messages takes them at once. Without that, one in twenty of 20 searches a second waited for more than 10 ms.
LEFT_ALONE_S = 0.004
#: The same while those that run take long.
MAX_LEFT_ALONE_S = 0.1
#: Redis checks its blocked clients' time-outs only ten times a second, so shorter waits are slept here.
MIN_BLOCK_MS = 200
#: In Dramatiq's script, the time of a heartbeat by the clock of the worker's host: one that is 5 s behind the others'
#: would count as failed. Redis's clock takes its place.
_HOST_TIME = b"local timestamp = ARGV[2]"
_REDIS_TIME = (
    b'local time = redis.pcall("time")\n'
    b"local timestamp = ARGV[2]\n"  # for a user of Redis who may not ask for its time
    b'if not time.err then timestamp = string.format("%.0f", time[1] * 1000 + math.floor(time[2] / 1000)) end'
)

log = structlog.get_logger()


def build_redis_broker(url: str, middleware: Sequence[Middleware], metrics: Metrics = NO_METRICS) -> WakingRedisBroker:
    """The broker on the Redis at `url`."""
    return WakingRedisBroker(
        metrics=metrics,
        client=connect(url, SOCKET_TIMEOUT_S),
        middleware=list(middleware),
        heartbeat_timeout=HEARTBEAT_TIMEOUT_MS,
        maintenance_chance=MAINTENANCE_EVERY_FETCH,
    )


class WakingRedisBroker(RedisBroker):
    """A Redis broker whose consumers wake on arrival.

    Args:
        reconcile_interval_s: how often an idle consumer compares the messages that it holds with Redis.
        metrics: of this process.
        parameters: those of Dramatiq's broker.
    """

    def __init__(
        self,
        *,
        reconcile_interval_s: float = RECONCILE_INTERVAL_S,
        metrics: Metrics = NO_METRICS,
        **parameters: Any,
    ) -> None:
        super().__init__(**parameters)  # type: ignore[no-untyped-call]
        self.reconcile_interval_s = reconcile_interval_s
        # Ids of the held messages by queue: Dramatiq makes a new consumer after a connection error while workers still
        # run what the old one delivered, so they outlive the consumer.
        self.held: defaultdict[str, set[str]] = defaultdict(set)
        self.availability = Availability("broker", metrics=metrics)
        timed = dispatch_scripts["dispatch"].replace(_HOST_TIME, _REDIS_TIME)
        self.scripts["dispatch"] = self.client.register_script(timed)
        self._when_full = RedisBroker(**{**parameters, "middleware": []})
        self._when_full.broker_id = self.broker_id
        self._when_full.scripts["dispatch"] = self.client.register_script(b"#!lua flags=allow-oom\n" + timed)

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
                # Fetching and acknowledging messages is what frees memory. The flag `allow-oom` of Redis 7 and Valkey
                # lets the script run all the same; 6.2 refuses.
                self._when_full.namespace = self.namespace
                return getattr(self._when_full, f"do_{command}")(queue_name, *arguments)

        return run_when_full_too


class WakingConsumer(_RedisConsumer):
    """Consumes one queue, blocked in Redis while it is empty.

    The blocking look is `BLMOVE queue queue LEFT LEFT`: it waits for the list of message ids to have an element and
    leaves it as it was. Nothing changes for producers, and the consumer that fetches first gets the message.
    """

    def __init__(self, broker: WakingRedisBroker, queue_name: str, prefetch: int, timeout: int) -> None:
        super().__init__(broker, queue_name, prefetch, timeout)  # type: ignore[no-untyped-call]
        self._held = broker.held[queue_name]
        self._keys = QueueKeys(queue_name, broker.namespace)
        # Dramatiq prefetches twice as many messages as there are threads: while less than half of that is free, every
        # thread has one and there is another one for the next. A fetch for each that ends would be a round trip each.
        # Not of delayed messages, which wait for their time; nor where the environment says how many to prefetch.
        halves = queue_name == q_name(queue_name) and not dramatiq.worker.QUEUE_PREFETCH
        self._fetch_at_least = max(1, prefetch // 2) if halves else 1
        # On the interactive queue, where a message must not wait beside an idle process; 0 on the others.
        self._threads = max(1, prefetch // 2) if halves and queue_name == INTERACTIVE_QUEUE else 0
        self._left_alone_s = LEFT_ALONE_S
        self._seen_waiting = False
        self._slot_free = threading.Event()
        self._drained = False
        self._etas: dict[str, int] = {}
        self._reconcile_at = time.monotonic() + broker.reconcile_interval_s
        if queue_name != q_name(queue_name):
            # A queue of delayed messages. Dramatiq keeps them in the consumer's thread, so those of the consumer before
            # this one are lost with its thread, and `_reconcile` requeues them.
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
                elif self._threads:
                    if not self._fetch_for_threads():
                        return None
                elif (free := self.prefetch - self.outstanding_message_count) < self._fetch_at_least:
                    self._slot_free.wait(self.timeout / 1000)
                    self._slot_free.clear()
                    return None
                elif self._drained and not self._wait_for_message():
                    self._drained = False  # even without messages, a fetch is this consumer's heartbeat
                    self._reconcile_when_due()
                    return None
                else:
                    self.message_cache = self.broker.do_fetch(self.queue_name, free)
                    self._drained = len(self.message_cache) < free
                    self.broker.availability.up()
        except redis.RedisError as error:
            raise self._report_down(error) from None

    def _fetch_for_threads(self) -> bool:
        """Fetch for the threads that are free, as far as this queue's messages occupy them; whether to go on at once.

        While none is, messages are left alone until they have waited from one look to the next: another process that
        had a free one would have taken them.
        """
        free = self._threads - self.outstanding_message_count
        if free <= 0:
            freed = self._slot_free.wait(self._left_alone_s)
            self._slot_free.clear()
            free = self.prefetch - self.outstanding_message_count
            if freed or not self._left_waiting(free):
                self._left_alone_s = LEFT_ALONE_S if freed or self._seen_waiting else 2 * self._left_alone_s
                self._left_alone_s = min(self._left_alone_s, MAX_LEFT_ALONE_S)
                return False
        elif self._drained and not self._wait_for_message():
            self._drained = False  # even without messages, a fetch is this consumer's heartbeat
            self._reconcile_when_due()
            return False
        self.message_cache = self.broker.do_fetch(self.queue_name, free)
        self._drained = len(self.message_cache) < free
        self.broker.availability.up()
        return bool(self.message_cache)

    def _left_waiting(self, free: int) -> bool:
        """Whether messages wait that may be fetched although no thread is free: those that waited at the last look."""
        waited, self._seen_waiting = self._seen_waiting, False
        if free > 0:
            # Takes none of them: only a list that is not there has no answer. Access rules permit a worker no LLEN.
            # Redis 6.2 answers as if there were none, and what waits is fetched when a thread is free.
            self._seen_waiting = self.broker.client.lpop(self._keys.ids, 0) is not None
            self.broker.availability.up()
        if waited and self._seen_waiting:
            return True
        self._reconcile_when_due()
        return False

    def _reconcile_when_due(self) -> None:
        if time.monotonic() >= self._reconcile_at:
            self._reconcile()

    def ack(self, message: dramatiq.MessageProxy) -> None:
        self._finish(self.broker.do_ack, message)

    def nack(self, message: dramatiq.MessageProxy) -> None:
        self._finish(lambda _, redis_id: self._dead_letter(message, redis_id), message)

    def requeue(self, messages: Iterable[dramatiq.MessageProxy]) -> None:
        try:
            super().requeue(messages := list(messages))  # type: ignore[no-untyped-call]
        except redis.RedisError as error:
            raise self._report_down(error) from None
        for message in messages:
            self._forget(message)

    def close(self) -> None:
        """Requeue the messages that were fetched and not yet delivered."""
        cached, self.message_cache = self.message_cache, []
        self.requeue(dramatiq.MessageProxy(message) for data in cached if (message := self._decoded(data)))

    def _deliver(self, data: bytes | None) -> dramatiq.MessageProxy | None:
        message = self._decoded(data)
        if message is None:
            # The id cannot be read from it; `_reconcile` finds it among the acks and makes it a dead letter.
            self._reconcile_at = 0.0
            log.error("undecodable_message", queue=self.queue_name)
            return None
        redis_id = message.options["redis_message_id"]
        self._held.add(redis_id)
        if eta := message.options.get("eta"):
            self._etas[redis_id] = eta
        return dramatiq.MessageProxy(message)

    def _dead_letter(self, message: dramatiq.MessageProxy, redis_id: str) -> None:
        add_reason(message)
        # A full Redis has no memory for the reason, which is in the log too.
        with suppress(redis.OutOfMemoryError):
            dead_letters.record(self.broker.client, self._keys, self.broker.broker_id, redis_id, message.encode())
        self.broker.do_nack(self.queue_name, redis_id)

    def _finish(self, command: Callable[[str, str], None], message: dramatiq.MessageProxy) -> None:
        try:
            command(self.queue_name, message.options["redis_message_id"])
        except redis.RedisError as error:
            # Dramatiq tries again until Redis is up, or has memory again, so the message stays held.
            raise self._report_down(error) from None
        self._forget(message)

    def _report_down(self, error: redis.RedisError) -> ConnectionClosed:
        # Dramatiq tries again after a lost connection alone. It is to do so whatever Redis refuses with: loading,
        # read-only, out of memory.
        self.broker.availability.down(redact(error))
        return ConnectionClosed(error)

    def _forget(self, message: dramatiq.MessageProxy) -> None:
        redis_id = message.options["redis_message_id"]
        self._held.discard(redis_id)
        self._etas.pop(redis_id, None)
        self._slot_free.set()

    def _wait_for_message(self) -> bool:
        """Block until the queue holds a message, a delayed one is due or the time is up; whether to fetch again."""
        wait_ms = float(self.timeout)
        if self._etas:
            wait_ms = max(0.0, min(wait_ms, min(self._etas.values()) - current_millis()))
        if wait_ms < MIN_BLOCK_MS:
            time.sleep(wait_ms / 1000)
            return False
        try:
            return self.broker.client.blmove(self._keys.ids, self._keys.ids, wait_ms / 1000, "LEFT", "LEFT") is not None
        except redis.OutOfMemoryError:
            # It would write nothing, but Redis cannot know: until there is memory again, this polls.
            time.sleep(MIN_BLOCK_MS / 1000)
            return False

    def _reconcile(self) -> None:
        """Requeue the messages that Redis counts as held by this process and that it does not hold.

        A fetch whose reply was lost on the wire, or the rest of a batch after a lost connection, would otherwise wait
        until the process ends.
        """
        self._reconcile_at = time.monotonic() + self.broker.reconcile_interval_s
        # Before Redis is asked: what the other threads settle after that is in its answer and held no longer.
        held = set(self._held)
        acks = self.broker.client.smembers(self._keys.acks(self.broker.broker_id))
        for redis_id in {raw.decode() for raw in acks} - held:
            data = self.broker.client.hget(self._keys.messages, redis_id)
            if self._decoded(data):
                self.broker.do_requeue(self.queue_name, redis_id)
                log.warning("stranded_message_requeued", queue=self.queue_name, redis_message_id=redis_id)
                continue
            self.broker.do_nack(self.queue_name, redis_id)
            if data is not None:  # without it there is an id alone, whose message was settled elsewhere
                log.error("undecodable_message_dead_lettered", queue=self.queue_name, redis_message_id=redis_id)

    def _decoded(self, data: bytes | None) -> dramatiq.Message[Any] | None:
        message = None if data is None else decode(data, self.queue_name)
        return message if message and isinstance(message.options.get("redis_message_id"), str) else None
