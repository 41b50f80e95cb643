"""Connections to Redis by URL: those to one server, and those to the master that Redis Sentinel names."""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio

from keepsake_client.keepalive import keepalive_options
from keepsake_client.sentinel_url import is_sentinel_url, parse_sentinel_url


def connect(url: str, **options: Any) -> redis.Redis:
    """A client of the Redis at `url`, which connects lazily.

    Args:
        options: of the connections, as redis-py's; those of the URL win.

    Raises:
        InvalidURL: it is meant for Sentinel, and wrong.
        ValueError: it is another one that redis-py cannot read.
    """
    options = {**keepalive_options(url), **options}
    if is_sentinel_url(url):
        from keepsake_client.sentinel import sentinel_pool  # noqa: PLC0415 - 4 ms of each start with another URL

        return redis.Redis.from_pool(sentinel_pool(parse_sentinel_url(url), **options))
    return redis.Redis.from_url(url, **options)


def connect_async(url: str, *, waits: bool = False, **options: Any) -> redis.asyncio.Redis:
    """`connect` for asyncio.

    Args:
        waits: where all `max_connections` of the pool are in use, wait `timeout` seconds for one.
    """
    options = {**keepalive_options(url), **options}
    if is_sentinel_url(url):
        from keepsake_client.sentinel import async_sentinel_pool  # noqa: PLC0415 - as above

        return redis.asyncio.Redis.from_pool(async_sentinel_pool(parse_sentinel_url(url), waits=waits, **options))
    if waits:
        return redis.asyncio.Redis.from_pool(redis.asyncio.BlockingConnectionPool.from_url(url, **options))
    return redis.asyncio.Redis.from_url(url, **options)


def address(client: redis.Redis | redis.asyncio.Redis) -> str:
    """`host:port/database` of a client, or a socket's path in place of the first two; never a password.

    Behind Sentinel, it is the master's, as far as one is known, with the name of the service.
    """
    pool: Any = client.connection_pool
    options = pool.connection_kwargs
    database = options.get("db") or 0
    if service := getattr(pool, "service_name", None):
        host, port = pool.master_address or ("master", "unknown")
        return f"{host}:{port}/{database} ({service} of Redis Sentinel)"
    place = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
    return f"{place}/{database}"
