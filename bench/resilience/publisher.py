"""The publisher of the fault run and the fuzzer: it sends commands to Redis through any outage."""

from __future__ import annotations

import threading
import time
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

SOCKET_TIMEOUT_S = 3.0
RETRY_AFTER_S = 0.05


class Publisher:
    """Sends a command again and again until Redis acknowledges it.

    A command whose reply was lost with its connection may have been carried out, so it is not sent again: a retry would
    make a duplicate that is not the stack's. Its outcome is reported as unknown instead.

    Args:
        url: of the Redis.
        stop: once set, commands are given up.
    """

    def __init__(self, url: str, stop: threading.Event) -> None:
        # redis-py's connections lack annotations. A client would hide whether a command was sent at all.
        self._connection: Any = redis.ConnectionPool.from_url(
            url, retry=Retry(NoBackoff(), 0), socket_timeout=SOCKET_TIMEOUT_S
        ).make_connection()
        self._stop = stop

    def send(self, *command: str | bytes) -> bool | None:
        """Send one command: True once it is acknowledged, False if it was given up, None if its outcome is unknown."""
        while not self._stop.is_set():
            try:
                self._connection.connect()
            except (redis.RedisError, OSError):
                self._connection.disconnect()
                time.sleep(RETRY_AFTER_S)
                continue
            try:
                self._connection.send_command(*command)
                self._connection.read_response()
            except redis.ResponseError as error:
                if not isinstance(error, redis.exceptions.OutOfMemoryError):
                    raise
                time.sleep(RETRY_AFTER_S)
            except redis.BusyLoadingError:
                time.sleep(RETRY_AFTER_S)
            except (redis.RedisError, OSError):
                self._connection.disconnect()
                return None
            else:
                return True
        return False
