"""Whether a server or process of the stack really answers, and how much waits in the queues and the log."""

from __future__ import annotations

from collections.abc import Callable

import redis
from keepsake_client import protocol

from services.stack.processes import POSTGRES, REDIS


class Readiness:
    """Asks each by name.

    Args:
        client: connects to the pipeline's Redis; it should give up within a second or two.
        database: whether PostgreSQL answers.
    """

    def __init__(self, client: redis.Redis, database: Callable[[], bool]) -> None:
        self._client = client
        self._database = database

    def answers(self, name: str, pid: int | None = None) -> bool:
        """Whether it answers; with a pid, whether it is that process (or a child of it) which does."""
        if name == POSTGRES:
            return self._database()
        try:
            if name == REDIS:
                return bool(self._client.ping())
            sign = self._client.get(protocol.alive_key(name))
        except (redis.RedisError, OSError):
            return False
        if not isinstance(sign, bytes):
            return False
        return pid is None or str(pid) in sign.decode().split(":")[-2:]


def stream_backlog(client: redis.Redis, log: str) -> int:
    """How many messages of the log no adapter has read, or one has read and not yet handed over.

    Raises:
        redis.RedisError: its Redis is away.
    """
    try:
        groups = client.xinfo_groups(log)
    except redis.ResponseError:  # there is no log yet
        return 0
    for group in groups:
        if group["name"] == protocol.STREAM_GROUP.encode():
            return int(group["pending"] + (group.get("lag") or 0))
    return int(client.xlen(log))
