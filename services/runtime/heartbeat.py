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

import redis
import redis.asyncio
import structlog
from keepsake_client.protocol import alive_key, process_key

from services.runtime.backoff import pause
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
        self._name = name
        self._key = alive_key(name)
        self._record = (record or ProcessRecord()).started().model_dump_json()
        self._checks = list(checks)
        self._on_sent = on_sent
        self._interval_s = interval_s
        self._clock = clock or ServerClock()
        self._stopped = threading.Event()

    def run(self) -> None:
        value = heartbeat_value()
        while not self._stopped.is_set():
            working = all(check() for check in self._checks)
            try:
                if working:
                    asked_at = self._clock.host()
                    with self._client.pipeline(transaction=False) as pipeline:
                        pipeline.time()  # first: what a slow command takes would count as a difference of the clocks
                        pipeline.set(self._key, value, ex=HEARTBEAT_TTL_S)
                        pipeline.set(process_key(self._name), self._record, ex=EXPECTED_FOR_S)
                        server, *done = pipeline.execute(raise_on_error=False)
                    if failed := next((each for each in done if isinstance(each, Exception)), None):
                        raise failed
                    if not isinstance(server, Exception):  # a user of Redis may not ask for its time
                        self._clock.observe(server, asked_at, self._clock.host())
                    self._on_sent()
            except redis.RedisError:
                # The work loops detect and log an outage of Redis themselves.
                log.debug("heartbeat_missed", key=self._key, exc_info=True)
            # A process that is starting is checked more often: `ltm up` waits for its first heartbeat.
            self._stopped.wait(self._interval_s if working else self._interval_s / 20)

    def stop(self) -> None:
        """End the heartbeats and delete the key, so that readers need not wait for it to expire."""
        self._stopped.set()
        self.join(timeout=2)
        try:
            self._client.delete(self._key)
        except redis.RedisError:
            log.debug("heartbeat_not_cleared", key=self._key)


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
    stated = (record or ProcessRecord()).started().model_dump_json()
    task = asyncio.create_task(_send(client, name, list(checks), interval_s, ended, stated, on_sent), name="heartbeat")
    try:
        yield
    finally:
        ended.set()
        await asyncio.wait([task])


async def _send(
    client: redis.asyncio.Redis,
    name: str,
    checks: Sequence[Callable[[], bool]],
    interval_s: float,
    ended: asyncio.Event,
    stated: str,
    on_sent: Callable[[], None],
) -> None:
    key, value = alive_key(name), heartbeat_value()
    while not ended.is_set():
        working = all(check() for check in checks)
        try:
            if working:
                async with client.pipeline(transaction=False) as pipeline:
                    pipeline.set(key, value, ex=HEARTBEAT_TTL_S)
                    pipeline.set(process_key(name), stated, ex=EXPECTED_FOR_S)
                    await pipeline.execute()
                on_sent()
        except (redis.RedisError, OSError):
            log.debug("heartbeat_missed", key=key, exc_info=True)
            # Where this connection was half-open, the idle ones are too; each would cost one command its time-out.
            await client.connection_pool.disconnect(inuse_connections=False)
        # A process that is starting is checked more often: `ltm up` waits for its first heartbeat.
        await pause(interval_s if working else interval_s / 20, ended)
    try:
        await client.delete(key)
    except (redis.RedisError, OSError):
        log.debug("heartbeat_not_cleared", key=key)
