"""Overruns: notices actors that go on long after their time limit, as in native code that hangs.

The time limit interrupts an actor at its next line of Python. One that never comes to it keeps its thread for ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import dramatiq
from dramatiq.middleware import Middleware

from services.runtime.heartbeat import HUNG_AFTER_S
from tasks.queues import INDEX_TIME_LIMIT_MS


class Overruns(Middleware):
    """Knows when each running actor is to have ended.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends: dict[int, float] = {}

    def before_process_message(self, broker: dramatiq.Broker, message: dramatiq.MessageProxy) -> None:
        # As dramatiq.middleware.TimeLimit reads it.
        options = broker.get_actor(message.actor_name).options
        limit_ms = message.options.get("time_limit") or options.get("time_limit", INDEX_TIME_LIMIT_MS)
        self._ends[threading.get_ident()] = self._clock() + limit_ms / 1000

    def after_process_message(
        self,
        broker: dramatiq.Broker,
        message: dramatiq.MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        self._ends.pop(threading.get_ident(), None)

    after_skip_message = after_process_message

    def none_hangs(self) -> bool:
        """Whether no actor is so long past its time limit that only a restart of the process can end it."""
        now = self._clock()
        return all(now < end + HUNG_AFTER_S for end in list(self._ends.values()))
