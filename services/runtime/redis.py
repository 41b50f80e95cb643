"""Connections to Redis: the one way in which a process of Keepsake makes them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import redis
import redis.asyncio
from keepsake_client import connections
from keepsake_client.errors import CREDENTIALS_REFUSED
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.retry import Retry

#: How long `connect_persistent` begins attempts: Sentinel takes 6 to 9 s to name another master as deploy/sentinel.conf
#: sets it. With a time-out of 2 s, the last attempt at a Redis that does not answer ends within about 12 s.
RETRY_S = 10.0

T = TypeVar("T")
_ONCE = Retry(NoBackoff(), 0)


def words(error: Exception, variable: str = "REDIS_URL") -> str:
    """An error of Redis in words for people; `variable` is the setting that names it."""
    if isinstance(error, redis.AuthenticationError):
        return CREDENTIALS_REFUSED.replace("REDIS_URL", variable)
    return str(error)


def connect(url: str, timeout_s: float = 5.0) -> redis.Redis:
    """A client that raises at once when Redis is away, and connects lazily; behind Sentinel, it follows the master.

    redis-py itself would retry ten times, for seconds, and log nothing. The callers that retry have a backoff and a log
    line of their own; the others must not block.

    Args:
        timeout_s: of each connection attempt and of each answer. A blocking command must be shorter.
    """
    return connections.connect(
        url, retry=Retry(NoBackoff(), 0), socket_timeout=timeout_s, socket_connect_timeout=timeout_s
    )


def connect_persistent(url: str, timeout_s: float = 2.0) -> redis.Redis:
    """A client that tries a failed command again, on a new connection: for commands that may be executed twice."""
    return connections.connect(url, retry=_TimedRetry(), socket_timeout=timeout_s, socket_connect_timeout=timeout_s)


class _TimedRetry(Retry):
    """Retries for `RETRY_S`, whether a connection cannot be made as it is taken from the pool or a command fails.

    redis-py retries both, and within a command also its connection. The innermost of them leave it to the outermost;
    counted retries would multiply there, and end before a failover does where a connection is taken from the pool.
    """

    def __init__(self) -> None:
        super().__init__(ExponentialBackoff(cap=1.0, base=0.1), -1)
        self._nested = False  # each connection has a copy of its own

    def call_with_retry(
        self,
        do: Callable[[], T],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> T:
        if self._nested:
            return _ONCE.call_with_retry(do, fail, is_retryable, with_failure_count)
        ends_at = time.monotonic() + RETRY_S

        def attempt() -> T:
            self._nested = True
            try:
                return do()
            finally:
                self._nested = False

        def failed(error: Exception, failures: int) -> None:
            fail(error, failures) if with_failure_count else fail(error)
            if time.monotonic() >= ends_at:
                raise error

        return super().call_with_retry(attempt, failed, is_retryable, with_failure_count=True)


def connect_async(url: str, timeout_s: float = 3.0) -> redis.asyncio.Redis:
    """`connect` for asyncio."""
    return connections.connect_async(
        url, retry=AsyncRetry(NoBackoff(), 0), socket_timeout=timeout_s, socket_connect_timeout=timeout_s
    )
