"""The lease that makes one adapter the leader."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import redis
from redis.exceptions import LockError
from redis.lock import Lock

#: Its value is the name of the adapter that holds the lease.
LEASE_KEY = "ltm:channel-reader"
LEASE_S = 3.0


class Lease:
    """A lease that one adapter holds at a time: the leader, which writes the stream and does the maintenance.

    Args:
        client: connects to the pipeline's Redis.
        name: of this adapter; it is the lock's token.
        clock: seconds, monotonic.
        key: its value is the name of the adapter that holds the lease.
        seconds: how long it is held unless it is renewed.
    """

    def __init__(
        self,
        client: redis.Redis,
        name: str,
        clock: Callable[[], float] = time.monotonic,
        *,
        key: str = LEASE_KEY,
        seconds: float = LEASE_S,
    ) -> None:
        self._client = client
        self._key = key
        self._lock = Lock(client, key, timeout=seconds, blocking=False)
        self._token = name
        self._clock = clock
        self._seconds = seconds
        self._held_until = 0.0

    def held(self) -> bool:
        """Whether this adapter holds the lease at this moment; a lease that is not renewed ends by itself."""
        return self._clock() < self._held_until

    def taken(self) -> bool:
        """Whether any adapter holds the lease, as Redis knows it."""
        return bool(self._lock.locked())

    def renew(self) -> None:
        """Acquire the lease if it is free, or extend it."""
        # Counted from before the request, so that it ends here before it ends in Redis.
        asked_at = self._clock()
        held = self._lock.acquire(token=self._token) or self._extend()
        self._held_until = asked_at + self._seconds if held else 0.0
        if not held:
            # A failed adapter's lasts longer where the clock of Redis was set back, or is behind after a failover.
            with suppress(redis.ResponseError):  # Redis 6.2 has no LT: there it lasts until that clock has caught up
                self._client.pexpire(self._key, round(self._seconds * 1000), lt=True)

    def release(self) -> None:
        """Leave the lease to the other adapters at once."""
        self._held_until = 0.0
        self._lock.local.token = self._token  # the lock keeps it by thread, and another one renews
        with suppress(LockError):  # another adapter holds it
            self._lock.release()

    def _extend(self) -> bool:
        # The lock forgets the token of an acquisition whose reply was lost. The lease is this adapter's all the same.
        self._lock.local.token = self._token
        try:
            return self._lock.reacquire()
        except LockError:
            return False
