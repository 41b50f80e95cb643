"""Signs of life: a key in Redis that each process keeps alive while its work loops turn.

`ltm up`, `ltm status` and compose's health checks read these keys, so they know of a process that runs but no longer
works, on whatever host it is.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable

import redis
import structlog
from keepsake_client.protocol import alive_key

HEARTBEAT_INTERVAL_S = 1.0
HEARTBEAT_TTL_S = 5
#: A loop that has not turned for this long is stuck; every loop wakes at least once a second.
STUCK_AFTER_S = 10.0

log = structlog.get_logger()


def heartbeat_value() -> str:
    """What the key holds: `host:pid:parent pid`. `ltm up` tells its own child from an older one by it."""
    return f"{socket.gethostname()}:{os.getpid()}:{os.getppid()}"


class Liveness:
    """A mark that one work loop makes each time it turns."""

    def __init__(self) -> None:
        self._turned = time.monotonic()

    def mark(self) -> None:
        """The loop turned just now."""
        self._turned = time.monotonic()

    def beating(self) -> bool:
        """Whether the loop has turned lately."""
        return time.monotonic() - self._turned < STUCK_AFTER_S


class HeartbeatThread(threading.Thread):
    """Keeps a process's key alive for as long as every check passes."""

    def __init__(self, client: redis.Redis, name: str, checks: Iterable[Callable[[], bool]]) -> None:
        super().__init__(name="heart", daemon=True)
        self._client = client
        self._key = alive_key(name)
        self._checks = list(checks)
        self._stopped = threading.Event()

    def run(self) -> None:
        sign = heartbeat_value()
        while not self._stopped.is_set():
            try:
                if all(check() for check in self._checks):
                    self._client.set(self._key, sign, ex=HEARTBEAT_TTL_S)
            except redis.RedisError:
                # The loops notice and report a lost Redis themselves; without one there is nobody to tell.
                log.debug("heartbeat_missed", key=self._key, exc_info=True)
            self._stopped.wait(HEARTBEAT_INTERVAL_S)

    def stop(self) -> None:
        """Stop beating and say so at once."""
        self._stopped.set()
        self.join(timeout=2)
        try:
            self._client.delete(self._key)
        except redis.RedisError:
            log.debug("heartbeat_not_cleared", key=self._key)
