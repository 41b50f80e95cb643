"""Waiting for the backlog: bulk writes give way to live messages."""

from __future__ import annotations

import time
from collections.abc import Callable

import redis
from keepsake_client.errors import Unavailable

from services.stack.readiness import stream_state

STALLED_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.2


def wait_for_room(
    client: redis.Redis,
    stream: str,
    max_backlog: int,
    waiting: Callable[[int], None] = lambda _: None,
    stalled_timeout_s: float = STALLED_TIMEOUT_S,
) -> None:
    """Return once at most `max_backlog` messages wait in the stream.

    Args:
        waiting: called with their number at each look, for a progress bar.
        stalled_timeout_s: how long nothing may be taken from the stream.

    Raises:
        Unavailable: nothing takes messages from the stream.
        redis.RedisError: Redis is away, or permits it not.
    """
    state, until = stream_state(client, stream), time.monotonic() + stalled_timeout_s
    while (now := stream_state(client, stream)).backlog > max_backlog:
        waiting(now.backlog)
        if now.backlog < state.backlog or now.read_to != state.read_to:
            state, until = now, time.monotonic() + stalled_timeout_s
        if time.monotonic() > until:
            raise Unavailable(
                f"{now.backlog} messages wait in {stream} and none has been taken for {stalled_timeout_s:g} s; "
                "are long-term-memory-adapters and long-term-memory-indexer running? Then run it again"
            )
        time.sleep(POLL_INTERVAL_S)
