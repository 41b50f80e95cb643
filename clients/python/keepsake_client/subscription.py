"""Monitoring of a subscription: a ping on its connection tells a quiet channel from a half-open connection."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from redis.asyncio.client import PubSub
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

#: A subscription that received nothing for this long is pinged.
PING_INTERVAL_S = 5.0
#: One that received nothing for this long, not even the answer to a ping, is replaced.
MAX_SILENCE_S = 10.0


class HalfOpen(RedisConnectionError):
    """A subscription received nothing for too long: its connection is open and carries nothing."""


class SubscriptionMonitor:
    """Monitor of one subscription: decides when it is pinged, and when its connection counts as half-open.

    Args:
        ping_interval_s: it is pinged when it received nothing for this long.
        max_silence_s: its connection is half-open when it received nothing for this long, not even a pong.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        ping_interval_s: float = PING_INTERVAL_S,
        max_silence_s: float = MAX_SILENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ping_interval_s = ping_interval_s
        self.max_silence_s = max_silence_s
        self._clock = clock
        self._received_at: float | None = None
        self.restart()

    def restart(self, *, confirmed: bool = False) -> None:
        """Begin anew, for a subscription that was just requested, or one that was not read for a while."""
        self.confirmed = confirmed
        self._confirmed_at = self._silent_since = self._pinged_at = self._clock()

    def received(self, message_type: str) -> None:
        """Note that something arrived: a confirmation, a message or a pong."""
        self._received_at = self._silent_since = self._pinged_at = self._clock()
        if message_type == "subscribe" and not self.confirmed:
            self.confirmed, self._confirmed_at = True, self._received_at

    def hears(self) -> bool:
        """Whether something arrived recently, by this subscription or the one before it."""
        return self._received_at is not None and self.silence_s() < self.max_silence_s

    def silence_s(self) -> float:
        """For how long nothing has arrived; since its beginning, if nothing ever has."""
        since = self._silent_since if self._received_at is None else self._received_at
        return self._clock() - since

    def subscribed_s(self) -> float:
        """For how long the subscription has been confirmed."""
        return self._clock() - self._confirmed_at if self.confirmed else 0.0

    def ping_due(self) -> bool:
        """Whether to send a ping now; True once for each interval.

        Raises:
            HalfOpen: nothing arrived for too long.
        """
        now = self._clock()
        if now - self._silent_since >= self.max_silence_s:
            raise HalfOpen(f"nothing received for {self.max_silence_s:g} s")
        due = now - self._pinged_at >= self.ping_interval_s
        if due:
            self._pinged_at = now
        return due

    def answered(self, error: ResponseError) -> dict[str, Any]:
        """A pong in place of the error that Redis answered: one that refuses the ping is connected.

        Raises:
            ResponseError: the subscription itself was refused.
        """
        if not self.confirmed:
            raise error
        return {"type": "pong"}


async def next_message(pubsub: PubSub, monitor: SubscriptionMonitor, timeout_s: float) -> dict[str, Any] | None:
    """What a subscription receives next, a pong included; None if nothing arrives in time. Sends the pings.

    Raises:
        HalfOpen: nothing arrived for too long.
        RedisError: the connection broke, or the subscription was refused.
    """
    try:
        message: dict[str, Any] | None = await pubsub.get_message(timeout=timeout_s)
    except ResponseError as error:  # such as MISCONF, while Redis cannot write to its disk
        message = monitor.answered(error)
    if message is not None:
        monitor.received(message["type"])
    elif monitor.ping_due():
        await pubsub.ping()
    return message
