"""Connections to Redis: the one way in which a process of Keepsake makes them."""

from __future__ import annotations

import redis
import redis.asyncio
from keepsake_client import connections
from keepsake_client.errors import CREDENTIALS_REFUSED
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.retry import Retry

#: Attempts of `connect_persistent`, besides the first; with a time-out of 2 s they end within 12 s.
RETRIES = 4


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
    retry = Retry(ExponentialBackoff(cap=1.0, base=0.1), RETRIES)
    return connections.connect(url, retry=retry, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)


def connect_async(url: str, timeout_s: float = 3.0) -> redis.asyncio.Redis:
    """`connect` for asyncio."""
    return connections.connect_async(
        url, retry=AsyncRetry(NoBackoff(), 0), socket_timeout=timeout_s, socket_connect_timeout=timeout_s
    )
