"""A confirmed Redis subscription, for commands that follow a conversation."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from keepsake_client.errors import Unavailable
from redis.client import PubSub

from services.cli.options import redis_failure

SUBSCRIBE_TIMEOUT_S = 5.0


class Subscription:
    """The JSON objects published on channels since it was made, in order."""

    def __init__(self, pubsub: PubSub) -> None:
        self._pubsub = pubsub

    def next(self, until: float) -> tuple[str, dict[str, Any]] | None:
        """The next object with its channel, or None at `until`, a time of `time.monotonic`."""
        while (left := until - time.monotonic()) > 0:
            message = self._pubsub.get_message(ignore_subscribe_messages=True, timeout=left)
            if message is None:
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
    try:
        with client.pubsub() as pubsub:  # type: ignore[no-untyped-call]  # redis-py's lacks annotations
            pubsub.subscribe(*channels)
            until = time.monotonic() + SUBSCRIBE_TIMEOUT_S
            confirmed = 0
            while confirmed < len(channels):
                if time.monotonic() > until:
                    raise Unavailable("Redis does not confirm a subscription")
                confirmed += pubsub.get_message(timeout=0.1) is not None
            yield Subscription(pubsub)
    except (redis.RedisError, OSError) as error:
        raise Unavailable(f"Redis {redis_failure(error)}") from error
