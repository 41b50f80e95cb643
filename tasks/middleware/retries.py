"""Retries: a failed message is retried where that can help, for as long as its actor's policy says.

Dramatiq's own Retries counts attempts; an outage is a matter of time. And where the retry itself cannot be enqueued,
because the broker is down too, it would acknowledge the message all the same and lose it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import count
from typing import Any

import dramatiq
import redis
import structlog
from dramatiq.common import compute_backoff, current_millis
from dramatiq.errors import BrokerConnectionError
from dramatiq.middleware import Middleware
from dramatiq.middleware.threading import Interrupt
from keepsake_client.errors import KeepsakeError, Unavailable

from services.runtime.backoff import wait_s

#: What may pass by itself: a server or provider that is down, overloaded, read-only, full or locked.
#: `services.long_term_memory` turns PostgreSQL's and the providers' errors of that kind into `Unavailable`.
TRANSIENT_ERRORS = (
    Unavailable,
    redis.ConnectionError,
    redis.TimeoutError,
    BrokerConnectionError,
    ConnectionError,
    TimeoutError,
)
#: A time limit may be exceeded in a busy moment. Work that exceeds it three times would do so again.
MAX_INTERRUPTIONS = 3

log = structlog.get_logger()


@dataclass(frozen=True)
class RetryPolicy:
    """How an actor's failures are retried: with exponential backoff and jitter, for a limited time.

    Args:
        max_age_s: no retry comes later than this after the first failure.
        min_backoff_ms: the first delay.
        max_backoff_ms: no delay is longer.
        dead_letters: whether a message that is not retried becomes a dead letter.
    """

    max_age_s: float
    min_backoff_ms: int
    max_backoff_ms: int
    dead_letters: bool = True


#: The asker has stopped waiting by the time a retry could answer.
NO_RETRY = RetryPolicy(max_age_s=0, min_backoff_ms=1, max_backoff_ms=1)
#: What is to be done is in the database, and is sent anew.
OUTBOX_RETRY = RetryPolicy(max_age_s=0, min_backoff_ms=1, max_backoff_ms=1, dead_letters=False)
#: The asker waits for the answer, and a write outlives a restart of PostgreSQL.
WRITE_RETRY = RetryPolicy(max_age_s=55, min_backoff_ms=500, max_backoff_ms=10_000)
#: There is no asker, and no event may be lost: a day is time enough for an operator to free a disk.
INDEX_RETRY = RetryPolicy(max_age_s=26 * 3_600, min_backoff_ms=1_000, max_backoff_ms=30_000)


def is_transient(error: BaseException, tries: int) -> bool:
    """Whether the same work may succeed later, after so many attempts."""
    return isinstance(error, TRANSIENT_ERRORS) or (isinstance(error, Interrupt) and tries < MAX_INTERRUPTIONS)


def is_expected(error: BaseException | None) -> bool:
    """Whether the error's text explains it; an unexpected one is logged with its traceback."""
    return isinstance(error, (*TRANSIENT_ERRORS, KeepsakeError, Interrupt))


def error_text(error: BaseException) -> str:
    """The error as responses, the log and dead letters state it, without content."""
    if isinstance(error, Interrupt):
        error = Unavailable("it took too long")
    return error.wire if isinstance(error, KeepsakeError) else f"internal: {type(error).__name__}"


class Retries(Middleware):
    """Retries by the actor's option `retry`, a `RetryPolicy`; an actor without one is not retried.

    It marks a message that is not retried as failed, so Dramatiq makes it a dead letter, unless its policy
    wants none.
    """

    @property
    def actor_options(self) -> set[str]:
        return {"retry"}

    def after_process_message(
        self,
        broker: dramatiq.Broker,
        message: dramatiq.MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        if exception is None:
            return
        policy: RetryPolicy = broker.get_actor(message.actor_name).options.get("retry", NO_RETRY)
        tries = message.options["retries"] = message.options.get("retries", 0) + 1
        failing_since = message.options.setdefault("failing_since", current_millis())
        _, delay_ms = compute_backoff(tries - 1, factor=policy.min_backoff_ms, max_backoff=policy.max_backoff_ms)
        known = {"actor": message.actor_name, "message_id": message.message_id, "tries": tries}
        if current_millis() + delay_ms > failing_since + policy.max_age_s * 1000 or not is_transient(exception, tries):
            if policy.dead_letters:
                message.fail()
            log.error("actor_failed", **known, reason=error_text(exception))
            return
        log.info("retry_scheduled", **known, reason=error_text(exception), in_ms=delay_ms)
        self._enqueue(broker, message, delay_ms)

    def _enqueue(self, broker: dramatiq.Broker, message: dramatiq.MessageProxy, delay_ms: int) -> None:
        # Endless, because the message is acknowledged after this. A process that ends meanwhile still holds it, and it
        # is requeued as any failed worker's.
        for failures in count(1):
            try:
                broker.enqueue(message, delay=delay_ms)  # type: ignore[arg-type]  # as Dramatiq's own Retries does
                return
            except (redis.RedisError, BrokerConnectionError):
                time.sleep(wait_s(failures))
