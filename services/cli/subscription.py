"""A confirmed Redis subscription, for commands that follow a conversation."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from keepsake_client.errors import Unavailable
from keepsake_client.protocol import COUNTERS
from keepsake_client.subscription import HalfOpen, SubscriptionMonitor

from services.cli.options import redis_failure
from services.runtime.counters import PendingCounts
from services.runtime.subscription import next_message

SUBSCRIBE_TIMEOUT_S = 5.0


class Subscription:
    """The JSON objects published on channels since it was opened, in order; a half-open connection is replaced.

    Args:
        client: connects to the pipeline's Redis.
        channels: their names.
        monitor: its intervals.
    """

    def __init__(
        self, client: redis.Redis, channels: Sequence[str], monitor: SubscriptionMonitor | None = None
    ) -> None:
        self._client = client
        self._pubsub = client.pubsub()  # type: ignore[no-untyped-call]  # redis-py's lacks annotations
        self._channels = channels
        self._monitor = monitor or SubscriptionMonitor()
        self._counts = PendingCounts(COUNTERS)
        self._read_at = time.monotonic()

    def open(self) -> None:
        """Subscribe, and wait until Redis has confirmed it.

        Raises:
            Unavailable: it does not.
            redis.RedisError: it does not answer at all.
        """
        self._pubsub.reset()
        self._pubsub.subscribe(*self._channels)
        self._monitor.restart()
        until = time.monotonic() + SUBSCRIBE_TIMEOUT_S
        confirmed = 0
        while confirmed < len(self._channels):
            if time.monotonic() > until:
                raise Unavailable("Redis does not confirm a subscription")
            confirmed += next_message(self._pubsub, self._monitor, 0.1) is not None

    def close(self) -> None:
        """Unsubscribe."""
        self._pubsub.close()

    def next(self, until: float) -> tuple[str, dict[str, Any]] | None:
        """The next object with its channel, or None at `until`, a time of `time.monotonic`."""
        if time.monotonic() - self._read_at >= self._monitor.ping_interval_s:  # the user took time to type
            self._monitor.restart(confirmed=True)
            self._pubsub.ping()
        try:
            return self._next(until)
        finally:
            self._read_at = time.monotonic()

    def _next(self, until: float) -> tuple[str, dict[str, Any]] | None:
        while (left := until - time.monotonic()) > 0:
            try:
                message = next_message(self._pubsub, self._monitor, min(left, self._monitor.ping_interval_s))
            except HalfOpen:
                self._client.connection_pool.disconnect(inuse_connections=False)
                self.open()
                self._counts.count("subscriptions_replaced")
                self._counts.flush(self._client)
                continue
            if message is None or message["type"] != "message":
                continue
            try:
                payload = json.loads(message["data"])
            except ValueError:
                continue  # other publishers may send anything
            if isinstance(payload, dict):
                return message["channel"].decode(), payload
        return None


@contextmanager
def subscribed(client: redis.Redis, *channels: str) -> Iterator[Subscription]:
    """A subscription that Redis has confirmed: nothing published from then on is missed.

    Raises:
        Unavailable: Redis does not answer, at first or later within the block.
    """
    subscription = Subscription(client, channels)
    try:
        subscription.open()
        yield subscription
    except (redis.RedisError, OSError) as error:
        raise Unavailable(f"Redis {redis_failure(error)}") from error
    finally:
        subscription.close()
