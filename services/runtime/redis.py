"""Connections to Redis: the one way in which a process of Keepsake makes them."""

from __future__ import annotations

import redis
import redis.asyncio
from keepsake_client.errors import CREDENTIALS_REFUSED
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry


def words(error: Exception) -> str:
    """An error of Redis in words for people."""
    return CREDENTIALS_REFUSED if isinstance(error, redis.AuthenticationError) else str(error)


def connect(url: str, timeout_s: float = 5.0) -> redis.Redis:
    """A client that raises at once when Redis is away, and connects lazily.

    redis-py itself would retry ten times, for seconds, and log nothing. The callers that retry have a backoff and a log
    line of their own; the others must not block.

    Args:
        timeout_s: of each connection attempt and of each answer. A blocking command must be shorter.
    """
    return redis.Redis.from_url(
        url, retry=Retry(NoBackoff(), 0), socket_timeout=timeout_s, socket_connect_timeout=timeout_s
    )


def connect_async(url: str, timeout_s: float = 3.0) -> redis.asyncio.Redis:
    """`connect` for asyncio."""
    return redis.asyncio.Redis.from_url(
        url,
        retry=AsyncRetry(NoBackoff(), 0),
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
    )
