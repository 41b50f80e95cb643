"""Exponential backoff: how long a loop waits before it tries a failed server again."""

from __future__ import annotations

import asyncio

from redis.backoff import ExponentialBackoff

FIRST_WAIT_S = 0.1
MAX_WAIT_S = 5.0

_BACKOFF = ExponentialBackoff(cap=MAX_WAIT_S, base=FIRST_WAIT_S)
#: By then the cap is reached. An outage of hours counts on, and 2**1024 is no float.
_MAX_DOUBLINGS = 10


def wait_s(failures: int) -> float:
    """The wait in seconds after that many failures in a row: 0.1 after the first, doubling to 5.0.

    Without jitter: a pipeline has a handful of loops, and their first waits decide how soon a restart is noticed.
    """
    return _BACKOFF.compute(min(max(failures - 1, 0), _MAX_DOUBLINGS))


async def pause(seconds: float, stop: asyncio.Event) -> None:
    """Sleep for `seconds`, or until `stop` is set."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
