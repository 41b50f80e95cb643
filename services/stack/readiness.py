"""Readiness: whether each server and process of the stack works, and how many messages of the stream wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import redis
from keepsake_client import protocol

from services.runtime.process_record import ProcessRecord, read_records
from services.runtime.redis import connect
from services.stack.processes import POSTGRES, REDIS, SERVICES


class Readiness:
    """Readiness checks by process name.

    Args:
        client: a connection to the pipeline's Redis, with a time-out of a second or two.
        database: whether PostgreSQL answers.
    """

    def __init__(self, client: redis.Redis, database: Callable[[], bool]) -> None:
        self._client = client
        self._database = database

    def answers(self, name: str, pid: int | None = None) -> bool:
        """Whether a server answers, or a service has a heartbeat; with a pid, of that process or a child of it."""
        if name == POSTGRES:
            return self._database()
        try:
            if name == REDIS:
                return bool(self._client.ping())
            heartbeat = self._client.get(protocol.alive_key(name))
        except (redis.RedisError, OSError):
            return False
        if not isinstance(heartbeat, bytes):
            return False
        return pid is None or str(pid) in heartbeat.decode().split(":")[-2:]

    def engine(self, name: str) -> str | None:
        """The engine of a worker's embedder, as its record says; None for another process or embedder."""
        try:
            return read_records(self._client, [name]).get(name, ProcessRecord()).engine
        except (redis.RedisError, OSError):
            return None


def redis_answers(url: str, timeout_s: float = 2.0) -> bool:
    """Whether a Redis answers, and has loaded what it keeps."""
    try:
        return bool(connect(url, timeout_s).ping())
    except (redis.RedisError, OSError):
        return False


def stack_serves(client: redis.Redis) -> bool:
    """Whether any process of a stack has a heartbeat in this Redis; False where it does not answer."""
    try:
        return bool(client.exists(*map(protocol.alive_key, SERVICES)))
    except (redis.RedisError, OSError):
        return False


class StreamState(NamedTuple):
    """How far the adapters are with the stream.

    Args:
        backlog: messages that have not been dispatched: unread ones, and prefetched ones.
        read_to: the id of the last entry that was read; none before the first adapter.
    """

    backlog: int
    read_to: bytes = b""


def stream_state(client: redis.Redis, stream: str) -> StreamState:
    """The state of the stream.

    Raises:
        redis.RedisError: Redis is away, or permits it not.
    """
    try:
        groups = client.xinfo_groups(stream)
    except redis.ResponseError as error:
        if "no such key" not in str(error):
            raise  # such as a missing permission
        return StreamState(0)  # there is no stream yet
    for group in groups:
        if group["name"] == protocol.STREAM_GROUP.encode():
            return StreamState(int(group["pending"] + (group.get("lag") or 0)), group["last-delivered-id"])
    return StreamState(int(client.xlen(stream)))


def stream_backlog(client: redis.Redis, stream: str) -> int:
    """The number of messages in the stream that have not been dispatched; see `stream_state`."""
    return stream_state(client, stream).backlog
