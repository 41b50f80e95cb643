"""What processes run on: settings and logs; for the asyncio ones, loops that outlive a lost Redis, and a clean end."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import structlog
from keepsake_client.protocol import alive_key
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from services.runtime.errors import InvalidSetting
from services.runtime.heartbeat import HEARTBEAT_INTERVAL_S, HEARTBEAT_TTL_S, Liveness, heartbeat_value
from services.runtime.logging import configure_logging, redact
from services.runtime.settings import Settings, load_settings

FIRST_WAIT_S = 0.1
MAX_WAIT_S = 5.0
#: Every wait for a message ends after this, so that a stop is noticed and the pulse goes on.
POLL_TIMEOUT_S = 1

log = structlog.get_logger()


def begin(process: str) -> Settings:
    """The settings of a process that starts, with its logs set up; a setting that is wrong ends it, in words."""
    try:
        settings = load_settings()
    except InvalidSetting as error:
        sys.exit(f"ltm: {error}")
    configure_logging(settings, process)
    return settings


def serve(process: str, run: Callable[[Settings, asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    """Run a service until SIGTERM or SIGINT sets the event it is given."""
    settings = begin(process)

    async def until_signalled() -> None:
        await run(settings, stop_on_signals())

    asyncio.run(until_signalled())


def connect(url: str) -> Redis:
    """A client that reports a lost Redis at once: the loops retry by themselves, with their own waits and logs."""
    return Redis.from_url(url, retry=Retry(NoBackoff(), 0), socket_timeout=3, socket_connect_timeout=3)


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM or SIGINT sets; to be called in the running loop."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


class LoopConnection:
    """One loop's connection to Redis: each change of its state is logged once, and waits grow while it is lost.

    Args:
        at: what the loop listens on, for the log.
        stop: ends every wait.
    """

    def __init__(self, at: str, stop: asyncio.Event) -> None:
        self._at = at
        self._stop = stop
        self._pulse = Liveness()
        self._connected = False
        self._lost = False
        self._wait = FIRST_WAIT_S

    def up(self) -> None:
        """Redis answered just now."""
        self._pulse.mark()
        self._connected = True
        self._wait = FIRST_WAIT_S
        if self._lost:
            self._lost = False
            log.info("dependency_up", at=self._at)

    async def down(self, error: Exception) -> None:
        """Redis failed just now: wait before the next try, 0.1 s at first and up to 5 s later."""
        self._pulse.mark()
        self._connected = False
        if not self._lost:
            self._lost = True
            log.warning("dependency_down", at=self._at, error=redact(error))
        wait, self._wait = self._wait, min(self._wait * 2, MAX_WAIT_S)
        await _wait(self._stop, wait)

    def working(self) -> bool:
        """Whether the loop is connected and has turned lately."""
        return self._connected and self._pulse.beating()


async def listen(
    client: Redis, channel: str, handle: Callable[[bytes], Awaitable[None]], link: LoopConnection, stop: asyncio.Event
) -> None:
    """Hand every message of a channel to `handle`, one after the other, until `stop`; reconnects by itself.

    `handle` must keep its own errors to itself, a lost Redis included.
    """
    while not stop.is_set():
        try:
            async with client.pubsub() as pubsub:
                await pubsub.subscribe(channel)
                while not stop.is_set():
                    message = await pubsub.get_message(timeout=POLL_TIMEOUT_S)
                    link.up()
                    if message is not None and message["type"] == "message":
                        await handle(message["data"])
        except (RedisError, OSError) as error:
            await link.down(error)


@asynccontextmanager
async def alive(client: Redis, name: str, checks: Iterable[Callable[[], bool]]) -> AsyncIterator[None]:
    """Keep the sign of life of a process for as long as every check passes, and take it away at the end."""
    ended = asyncio.Event()
    life = asyncio.create_task(_show_life(client, alive_key(name), list(checks), ended), name="life")
    try:
        yield
    finally:
        ended.set()
        await asyncio.wait([life])


async def give_up(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks until they have ended.

    Once is not enough: redis-py uses `asyncio.wait_for`, which before Python 3.12 swallows a cancellation that comes
    in the moment its own wait is over.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.1)


async def _show_life(client: Redis, key: str, checks: Sequence[Callable[[], bool]], ended: asyncio.Event) -> None:
    sign = heartbeat_value()
    while not ended.is_set():
        working = all(check() for check in checks)
        try:
            if working:
                await client.set(key, sign, ex=HEARTBEAT_TTL_S)
        except (RedisError, OSError):
            # The loops notice and report a lost Redis themselves; without one there is nobody to tell.
            log.debug("heartbeat_missed", key=key, exc_info=True)
        # A process that is just starting is looked at often, so that whoever waits for it waits no longer.
        await _wait(ended, HEARTBEAT_INTERVAL_S if working else HEARTBEAT_INTERVAL_S / 20)
    try:
        await client.delete(key)
    except (RedisError, OSError):
        log.debug("heartbeat_not_cleared", key=key)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
