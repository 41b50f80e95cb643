"""Membership of the adapters: each sends a heartbeat every second."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable
from typing import Any

import redis
from keepsake_client.protocol import ADAPTER_FAILED_AFTER_S, MEMBERSHIP_KEY

#: A failed adapter stays a member for a while: one that was only frozen may claim something before its next heartbeat.
EVICT_AFTER_S = 600.0


def adapter_name() -> str:
    """A name that no other adapter has or had."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


class Membership:
    """Membership of one adapter, and its view of the others: a sorted set of names by last heartbeat, on Redis's clock.

    Args:
        client: connects to the pipeline's Redis.
        name: of this adapter.
        failed_after_s: an adapter has failed when its last heartbeat is older than this.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        client: redis.Redis,
        name: str,
        failed_after_s: float = ADAPTER_FAILED_AFTER_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client: Any = client  # redis-py's types of replies are those of every protocol at once
        self.name = name
        self._failed_after_s = failed_after_s
        self._clock = clock
        self._last_heartbeat = clock()

    def heartbeat(self) -> bool:
        """Send a heartbeat.

        Returns:
            Whether the last one is so long ago that the others may have claimed what this adapter held.
        """
        last, self._last_heartbeat = self._last_heartbeat, self._clock()
        self._client.zadd(MEMBERSHIP_KEY, {self.name: self._now()})
        return self._last_heartbeat - last > self._failed_after_s

    def live(self) -> set[str]:
        """The names of the live adapters."""
        return {name for name, (_, is_live) in self._members().items() if is_live}

    def failed(self) -> dict[str, float]:
        """The names of the failed adapters, each with its last heartbeat in seconds since 1970."""
        return {name: last_heartbeat for name, (last_heartbeat, is_live) in self._members().items() if not is_live}

    def evict(self, name: str) -> None:
        """Remove an adapter that failed long ago; what it held must have been claimed before."""
        last_heartbeat = self._client.zscore(MEMBERSHIP_KEY, name)
        if last_heartbeat is not None and last_heartbeat < self._now() - EVICT_AFTER_S:
            self._client.zrem(MEMBERSHIP_KEY, name)

    def leave(self) -> None:
        """Remove this adapter, which stops and holds nothing."""
        self._client.zrem(MEMBERSHIP_KEY, self.name)

    def _members(self) -> dict[str, tuple[float, bool]]:
        """The names of all, each with its last heartbeat and whether it is live."""
        now = self._now()
        found = self._client.zrangebyscore(MEMBERSHIP_KEY, "-inf", "+inf", withscores=True)
        # One of the future is from before Redis's clock was set back: a live adapter has sent another one since.
        return {name.decode(): (last, abs(now - last) <= self._failed_after_s) for name, last in found}

    def _now(self) -> float:
        seconds, microseconds = self._client.time()
        return float(seconds + microseconds / 1_000_000)
