"""Process start and asyncio loops for composition roots: settings and logging, loops that survive outages, SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog
from keepsake_client.protocol import COUNTERS
from keepsake_client.subscription import HalfOpen, SubscriptionMonitor, next_message
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from services.runtime.availability import Availability
from services.runtime.backoff import pause, wait_s
from services.runtime.counters import PendingCounts
from services.runtime.errors import EXIT_CANNOT_START, CannotStart, InvalidSetting
from services.runtime.heartbeat import Liveness
from services.runtime.logging import START_REFUSED, configure_logging, redact
from services.runtime.metrics import NO_METRICS, Metrics
from services.runtime.settings import Settings, load_settings, renamed_settings, unknown_settings

#: Every wait for a message ends after this, so that a stop is noticed and the loop marks its liveness.
POLL_TIMEOUT_S = 1

log = structlog.get_logger()


def bootstrap(process: str) -> Settings:
    """The settings of a starting process, with its logging configured; a wrong setting ends it with one line.

    Args:
        process: its name in compose, `ltm status` and the log.
    """
    try:
        settings = load_settings()
    except InvalidSetting as error:
        print(f"ltm: {error}", file=sys.stderr)
        sys.exit(EXIT_CANNOT_START)
    configure_logging(settings, process)
    for old, new in renamed_settings():
        log.warning("setting_renamed", old=old, new=new)
    for variable, nearest in unknown_settings():
        log.warning("setting_unknown", variable=variable, nearest=nearest)
    return settings


def serve(process: str, run: Callable[[Settings, asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    """Run an asyncio service until SIGTERM or SIGINT, which set the event that `run` is given."""
    settings = bootstrap(process)

    async def until_signalled() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await run(settings, stop)

    try:
        asyncio.run(until_signalled())
    except CannotStart as error:
        log.critical(START_REFUSED, code=error.code, reason=str(error))
        sys.exit(EXIT_CANNOT_START)


class LoopConnection:
    """The connection of one loop to Redis: logs each change of its availability once, and backs off while it is down.

    Args:
        at: the queue or channel that the loop reads, for the log.
        stop: ends every wait.
        clock: seconds, monotonic.
        metrics: of this process.
    """

    def __init__(
        self,
        at: str,
        stop: asyncio.Event,
        clock: Callable[[], float] = time.monotonic,
        metrics: Metrics = NO_METRICS,
    ) -> None:
        self._stop = stop
        self._availability = Availability("redis", metrics=metrics, at=at)
        self._liveness = Liveness(clock=clock)
        self._connected = False
        self._failures = 0

    def up(self) -> None:
        """Note that Redis just answered."""
        self._liveness.mark()
        self._availability.up()
        self._connected, self._failures = True, 0

    async def down(self, error: Exception, availability: Availability | None = None) -> None:
        """Note that Redis just failed, and wait before the next attempt.

        Args:
            availability: logs it in place of the loop's own.
        """
        self._liveness.mark()
        (availability or self._availability).down(redact(error))
        self._connected, self._failures = False, self._failures + 1
        await pause(wait_s(self._failures), self._stop)

    def working(self) -> bool:
        """Whether the loop is connected and has turned recently."""
        return self._connected and self._liveness.alive()

    def turning(self) -> bool:
        """Whether the loop turns, connected or not."""
        return self._liveness.turning()


async def no_gap(_: float) -> None:
    """Ignore what was published while a subscription was down: where nothing else keeps it, that is not known."""


async def listen(
    client: Redis,
    channel: str,
    handle: Callable[[bytes], Awaitable[None]],
    connection: LoopConnection,
    stop: asyncio.Event,
    *,
    monitor: SubscriptionMonitor | None = None,
    counts: PendingCounts | None = None,
    on_gap: Callable[[float], Awaitable[None]] = no_gap,
) -> None:
    """Pass every message of a channel to `handle`, one after the other, until `stop`; reconnects by itself.

    The loop of `connection` works while the subscription hears: messages, or the answers to its pings. A half-open
    connection is replaced, and counted.

    `handle` must raise nothing, not even when Redis is away: its error would be taken for one of the subscription. Nor
    may it wait for long: what is not read is dropped by Redis in the end.

    Args:
        monitor: its intervals; those of `keepsake_client.subscription` where it is None.
        counts: written whenever something is heard.
        on_gap: called once the channel is subscribed again, with the time of the last message or pong before.
    """
    monitor, counts = monitor or SubscriptionMonitor(), counts or PendingCounts(COUNTERS)
    poll_timeout_s = min(POLL_TIMEOUT_S, monitor.ping_interval_s)
    heard_at: float | None = None
    renewed = False
    async with client.pubsub() as pubsub:
        while not stop.is_set():
            try:
                if not renewed:
                    await pubsub.aclose()
                    await pubsub.subscribe(channel)
                monitor.restart()
                while not stop.is_set():
                    message = await next_message(pubsub, monitor, poll_timeout_s)
                    if message is None:
                        continue
                    connection.up()
                    if message["type"] == "message":
                        await handle(message["data"])
                    elif message["type"] == "subscribe" and heard_at is not None:
                        await on_gap(heard_at)
                    await counts.flush_async(client)
            except (RedisError, OSError) as error:
                if monitor.confirmed:
                    heard_at = time.time() - monitor.silence_s()
                if isinstance(error, HalfOpen):
                    counts.count("subscriptions_replaced")
                    # Those that are idle are half-open too; each would cost one command its time-out.
                    await client.connection_pool.disconnect(inuse_connections=False)
                renewed = _renewed(pubsub, error)
                await connection.down(error)


def _renewed(pubsub: PubSub, error: Exception) -> bool:
    """Whether redis-py has made another connection and subscribed on it, as it does before it raises.

    What arrives there must not be dropped with it.
    """
    broken = isinstance(error, RedisConnectionError | RedisTimeoutError) and not isinstance(error, HalfOpen)
    return broken and pubsub.connection is not None and pubsub.connection.is_connected
