"""A subscription of a thread that notices a half-open connection; `keepsake_client.subscription` is that of asyncio."""

from __future__ import annotations

from typing import Any

import redis
from keepsake_client.subscription import SubscriptionMonitor
from redis.client import PubSub


def next_message(pubsub: PubSub, monitor: SubscriptionMonitor, timeout_s: float) -> dict[str, Any] | None:
    """What a subscription receives next, a pong included; None if nothing arrives in time. Sends the pings.

    Raises:
        HalfOpen: nothing arrived for too long.
        redis.RedisError: the connection broke, or the subscription was refused.
    """
    try:
        message: dict[str, Any] | None = pubsub.get_message(timeout=timeout_s)
    except redis.ResponseError as error:  # such as MISCONF, while Redis cannot write to its disk
        message = monitor.answered(error)
    if message is not None:
        monitor.received(message["type"])
    elif monitor.ping_due():
        pubsub.ping()
    return message
