"""Which adapters live: each signs the membership every second, and one of them holds the lease."""

from __future__ import annotations

import os
import secrets
import socket
import time
from typing import Any

import redis

MEMBERSHIP_KEY = "ltm:adapters"
LEASE = "ltm:channel-reader"
#: What an adapter held goes to the others when it has not signed for this long.
FAILED_AFTER_S = 10.0
#: The dead stay on the membership for a while: one that was only frozen may still take something before it signs again.
EVICT_AFTER_S = 600.0
LEASE_S = 3.0


def adapter_name() -> str:
    """A name that no other adapter has or had."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


class Membership:
    """A sorted set of the adapters' names by their last signs of life, on Redis's clock."""

    def __init__(self, client: redis.Redis, name: str) -> None:
        self._client: Any = client  # redis-py's types of replies are those of every protocol at once
        self.name = name
        self._signed = time.monotonic()

    def heartbeat(self) -> bool:
        """I live; whether the others may have thought otherwise."""
        last, self._signed = self._signed, time.monotonic()
        self._client.zadd(MEMBERSHIP_KEY, {self.name: self._now()})
        return self._signed - last > FAILED_AFTER_S

    def live(self) -> set[str]:
        """The names of those that live."""
        return {
            name.decode() for name in self._client.zrangebyscore(MEMBERSHIP_KEY, self._now() - FAILED_AFTER_S, "+inf")
        }

    def failed(self) -> dict[str, float]:
        """The names of those that died, each with its last sign of life in seconds since 1970."""
        found = self._client.zrangebyscore(MEMBERSHIP_KEY, "-inf", f"({self._now() - FAILED_AFTER_S}", withscores=True)
        return {name.decode(): signed for name, signed in found}

    def evict(self, name: str) -> None:
        """Forget a dead one, if that was long ago; what it held must have been taken over before."""
        if (signed := self._client.zscore(MEMBERSHIP_KEY, name)) is not None and signed < self._now() - EVICT_AFTER_S:
            self._client.zrem(MEMBERSHIP_KEY, name)

    def leave(self) -> None:
        """I stop, and hold nothing."""
        self._client.zrem(MEMBERSHIP_KEY, self.name)

    def _now(self) -> float:
        seconds, microseconds = self._client.time()
        return float(seconds + microseconds / 1_000_000)


class Lease:
    """Held by one adapter at a time: the one that writes foreign messages to the log and keeps house."""

    def __init__(self, client: redis.Redis, name: str) -> None:
        self._client: Any = client
        self._name = name.encode()
        self._until = 0.0

    def held(self) -> bool:
        """Whether it is ours just now; it ends by itself where it is not renewed."""
        return time.monotonic() < self._until

    def renew(self) -> None:
        """Take it if nobody has it, or keep it."""
        asked = time.monotonic()
        ours = self._client.set(LEASE, self._name, nx=True, px=int(LEASE_S * 1000)) or self._if_ours(keep=True)
        self._until = asked + LEASE_S if ours else 0.0

    def release(self) -> None:
        """Leave it to the others at once."""
        self._until = 0.0
        self._if_ours(keep=False)

    def _if_ours(self, *, keep: bool) -> bool:
        with self._client.pipeline() as transaction:
            transaction.watch(LEASE)
            if transaction.get(LEASE) != self._name:
                return False
            transaction.multi()
            if keep:
                transaction.pexpire(LEASE, int(LEASE_S * 1000))
            else:
                transaction.delete(LEASE)
            try:
                transaction.execute()
            except redis.WatchError:
                return False
        return True
