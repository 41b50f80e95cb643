"""Heartbeats: each process sets a key in Redis, again and again, while its work loops turn and its subscription hears.

`ltm up`, `ltm status` and compose's health checks read these keys. So they detect a process that runs and no longer
works, on whatever host it is.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import redis
import redis.asyncio
import structlog
from keepsake_client.protocol import alive_key, instances_key, process_key

from services.runtime.backoff import pause
from services.runtime.instances import KEPT_FOR_S
from services.runtime.process_record import EXPECTED_FOR_S, ProcessRecord
from services.runtime.server_clock import ServerClock

HEARTBEAT_INTERVAL_S = 1.0
#: The key expires this long after the last heartbeat.
HEARTBEAT_TTL_S = 5
#: A loop that has not turned for this long is stuck; every loop wakes at least once a second.
STUCK_AFTER_S = 10.0
#: A loop that has not turned for this long is not waiting for a server, whose time-outs are shorter: a restart helps.
HUNG_AFTER_S = 60.0

log = structlog.get_logger()


def heartbeat_value() -> str:
    """The value of the key: `host:pid:parent pid`, by which `ltm up` tells its own child from an older process.

    A worker's begins with the engine of its embedder and a colon: `int8:host:pid:parent pid`.
    """
    return f"{socket.gethostname()}:{os.getpid()}:{os.getppid()}"


class Liveness:
    """The liveness of one work loop, which marks each of its turns.

    Args:
        stuck_after_s: without a mark for this long, the loop is no longer alive.
        clock: seconds, monotonic.
    """

    def __init__(self, stuck_after_s: float = STUCK_AFTER_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._stuck_after_s = stuck_after_s
        self._clock = clock
        self._marked_at = clock()

    def mark(self) -> None:
        """Note that the loop just turned."""
        self._marked_at = self._clock()

    def alive(self) -> bool:
        """Whether the loop has turned recently."""
        return self._clock() - self._marked_at < self._stuck_after_s

    def turning(self) -> bool:
        """Whether the loop may only be slow or waiting, as while a server is away."""
        return self._clock() - self._marked_at < HUNG_AFTER_S


class _Heartbeat:
    """What a process writes with each heartbeat: its key, its record, and its place among the instances of its name.

    Args:
        clock: observes Redis's with each heartbeat.
    """

    def __init__(self, name: str, record: ProcessRecord | None, clock: ServerClock | None) -> None:
        self.key = alive_key(name)
        self._value = heartbeat_value()
        self._process_key = process_key(name)
        self._record = (record or ProcessRecord()).started().model_dump_json()
        self._instances = instances_key(name)
        self._instance = f"{socket.gethostname()}:{os.getpid()}"
        self._clock = clock or ServerClock()
        self._knows_time = False
        self._asked_at = 0.0

    def add_to(self, pipeline: Any) -> None:
        """Add its commands to a pipeline, of either kind."""
        self._asked_at = self._clock.host()
        pipeline.time()  # first: what a slow command takes would count as a difference of the clocks
        pipeline.set(self.key, self._value, ex=HEARTBEAT_TTL_S)
        pipeline.set(self._process_key, self._record, ex=EXPECTED_FOR_S)
        if self._knows_time:  # those of hosts whose clocks differ could not be compared
            now = self._clock()
            pipeline.zadd(self._instances, {self._instance: now})
            pipeline.zremrangebyscore(self._instances, "-inf", now - KEPT_FOR_S)
            pipeline.expire(self._instances, KEPT_FOR_S)

    def check(self, replies: list[Any]) -> None:
        """Observe the time that Redis answered.

        Raises:
            redis.RedisError: Redis has not taken the heartbeat. By access rules of an earlier release it may refuse the
                time and the place among the instances.
        """
        server, *taken = replies
        if failed := next((each for each in taken[:2] if isinstance(each, Exception)), None):
            raise failed
        self._knows_time = not isinstance(server, Exception)
        if self._knows_time:
            self._clock.observe(server, self._asked_at, self._clock.host())

    def end_with(self, pipeline: Any) -> None:
        """Add the commands of a stop, so that readers need not wait for anything to expire."""
        pipeline.delete(self.key)
        pipeline.zrem(self._instances, self._instance)


class HeartbeatThread(threading.Thread):
    """Sends a process's heartbeats for as long as every check passes.

    Args:
        client: a connection to Redis of its own.
        name: the process, as compose and `ltm status` call it.
        checks: whether each part of the process works.
        interval_s: the time between heartbeats.
        record: what the process states about itself.
        clock: observes Redis's with each heartbeat.
        on_sent: called after each heartbeat that Redis took.
    """

    def __init__(
        self,
        client: redis.Redis,
        name: str,
        checks: Iterable[Callable[[], bool]],
        interval_s: float = HEARTBEAT_INTERVAL_S,
        *,
        record: ProcessRecord | None = None,
        clock: ServerClock | None = None,
        on_sent: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._client = client
        self._heartbeat = _Heartbeat(name, record, clock)
        self._checks = list(checks)
        self._on_sent = on_sent
        self._interval_s = interval_s
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.is_set():
            working = all(check() for check in self._checks)
            try:
                if working:
                    with self._client.pipeline(transaction=False) as pipeline:
                        self._heartbeat.add_to(pipeline)
                        self._heartbeat.check(pipeline.execute(raise_on_error=False))
                    self._on_sent()
            except redis.RedisError:
                # The work loops detect and log an outage of Redis themselves.
                log.debug("heartbeat_missed", key=self._heartbeat.key, exc_info=True)
            # A process that is starting is checked more often: `ltm up` waits for its first heartbeat.
            self._stopped.wait(self._interval_s if working else self._interval_s / 20)

    def stop(self) -> None:
        """End the heartbeats and delete the key, so that readers need not wait for it to expire."""
        self._stopped.set()
        self.join(timeout=2)
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                self._heartbeat.end_with(pipeline)
                pipeline.execute(raise_on_error=False)
        except redis.RedisError:
            log.debug("heartbeat_not_cleared", key=self._heartbeat.key)


@asynccontextmanager
async def send_heartbeats(
    client: redis.asyncio.Redis,
    name: str,
    checks: Iterable[Callable[[], bool]],
    interval_s: float = HEARTBEAT_INTERVAL_S,
    *,
    record: ProcessRecord | None = None,
    on_sent: Callable[[], None] = lambda: None,
) -> AsyncIterator[None]:
    """`HeartbeatThread` for asyncio: sends heartbeats within the block, and deletes the key at its end.

    Args:
        record: what the process states about itself.
        on_sent: called after each heartbeat that Redis took.
    """
    ended = asyncio.Event()
    heartbeat = _Heartbeat(name, record, None)
    task = asyncio.create_task(_send(client, heartbeat, list(checks), interval_s, ended, on_sent), name="heartbeat")
    try:
        yield
    finally:
        ended.set()
        await asyncio.wait([task])


async def _send(
    client: redis.asyncio.Redis,
    heartbeat: _Heartbeat,
    checks: Sequence[Callable[[], bool]],
    interval_s: float,
    ended: asyncio.Event,
    on_sent: Callable[[], None],
) -> None:
    while not ended.is_set():
        working = all(check() for check in checks)
        try:
            if working:
                async with client.pipeline(transaction=False) as pipeline:
                    heartbeat.add_to(pipeline)
                    heartbeat.check(await pipeline.execute(raise_on_error=False))
                on_sent()
        except (redis.RedisError, OSError):
            log.debug("heartbeat_missed", key=heartbeat.key, exc_info=True)
            # Where this connection was half-open, the idle ones are too; each would cost one command its time-out.
            await client.connection_pool.disconnect(inuse_connections=False)
        # A process that is starting is checked more often: `ltm up` waits for its first heartbeat.
        await pause(interval_s if working else interval_s / 20, ended)
    try:
        async with client.pipeline(transaction=False) as pipeline:
            heartbeat.end_with(pipeline)
            await pipeline.execute(raise_on_error=False)
    except (redis.RedisError, OSError):
        log.debug("heartbeat_not_cleared", key=heartbeat.key)
