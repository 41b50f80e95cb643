"""Whether a server or process of the stack really answers, and how much waits in the queues and the log."""

from __future__ import annotations

from collections.abc import Callable

import redis

from services import contract
from services.stack.processes import POSTGRES, REDIS

NAMESPACE = "dramatiq"
QUEUES = (contract.INTERACTIVE_QUEUE, contract.WRITES_QUEUE, contract.INDEX_QUEUE)


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
            sign = self._client.get(contract.alive_key(name))
        except (redis.RedisError, OSError):
            return False
        if not isinstance(sign, bytes):
            return False
        return pid is None or str(pid) in sign.decode().split(":")[-2:]


def queue_depths(client: redis.Redis) -> dict[str, dict[str, int]]:
    """How many messages of each Dramatiq queue wait, are worked on, are delayed and are dead.

    Raises:
        redis.RedisError: the broker's Redis is away.
    """
    depths = {}
    for queue in QUEUES:
        key = f"{NAMESPACE}:{queue}"
        with client.pipeline(transaction=False) as pipeline:
            pipeline.llen(key)
            pipeline.hlen(f"{key}.msgs")  # waiting and fetched ones, until they are done
            pipeline.hlen(f"{key}.DQ.msgs")
            pipeline.zcard(f"{key}.XQ")
            waiting, undone, delayed, dead = pipeline.execute()
        depths[queue] = {"waiting": waiting, "working": max(0, undone - waiting), "delayed": delayed, "dead": dead}
    return depths


def log_backlog(client: redis.Redis, log: str) -> int:
    """How many messages of the log no adapter has read, or one has read and not yet handed over.

    Raises:
        redis.RedisError: its Redis is away.
    """
    try:
        groups = client.xinfo_groups(log)
    except redis.ResponseError:  # there is no log yet
        return 0
    for group in groups:
        if group["name"] == contract.LOG_GROUP.encode():
            return int(group["pending"] + (group.get("lag") or 0))
    return int(client.xlen(log))
