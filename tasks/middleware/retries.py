"""What failed is tried again when that can help, for as long as its actor's policy says; otherwise it has failed.

Dramatiq's own Retries asks only how often a message was tried; an outage is a matter of time. And where the retry
itself cannot be sent, because the broker is away too, it would acknowledge the message all the same and lose it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import dramatiq
import redis
import structlog
from dramatiq.common import compute_backoff, current_millis
from dramatiq.errors import BrokerConnectionError
from dramatiq.middleware import Middleware
from dramatiq.middleware.threading import Interrupt
from keepsake_client.errors import KeepsakeError, Unavailable

#: What may go away by itself: a server or provider that is away, overloaded, read-only, full or locked.
#: `services.long_term_memory` turns PostgreSQL's and the providers' errors of that kind into `Unavailable`.
TRANSIENT_ERRORS = (
    Unavailable,
    redis.ConnectionError,
    redis.TimeoutError,
    BrokerConnectionError,
    ConnectionError,
    TimeoutError,
)
#: Work that was interrupted for taking too long may have met a busy moment; three times is a habit.
MAX_INTERRUPTIONS = 3
ENQUEUE_AGAIN_S = 0.5

log = structlog.get_logger()


@dataclass(frozen=True)
class RetryPolicy:
    """How an actor's failures are retried: pauses double, with jitter, from `first_ms` up to `longest_ms`.

    Args:
        for_s: no retry comes later than this after the first failure.
    """

    for_s: float
    first_ms: int
    longest_ms: int


#: Whoever asked has gone on by the time a retry could answer.
NO_RETRY = RetryPolicy(for_s=0, first_ms=1, longest_ms=1)
#: Somebody waits for the answer, and a write is worth a restart of PostgreSQL.
WRITE_RETRY = RetryPolicy(for_s=55, first_ms=500, longest_ms=10_000)
#: Nobody waits, and nothing may be lost: a day is time enough for somebody to free a disk.
INDEX_RETRY = RetryPolicy(for_s=26 * 3_600, first_ms=1_000, longest_ms=30_000)


def is_transient(error: BaseException, tries: int) -> bool:
    """Whether the same work may succeed later, after it has been tried so often."""
    return isinstance(error, TRANSIENT_ERRORS) or (isinstance(error, Interrupt) and tries < MAX_INTERRUPTIONS)


def expected(error: BaseException | None) -> bool:
    """Whether the error's own words say all there is to it; of any other a traceback is wanted."""
    return isinstance(error, (*TRANSIENT_ERRORS, KeepsakeError, Interrupt))


def in_words(error: BaseException) -> str:
    """The error without anybody's content in it: as a response says it, and the log."""
    if isinstance(error, Interrupt):
        error = Unavailable("it took too long")
    return error.wire if isinstance(error, KeepsakeError) else f"internal: {type(error).__name__}"


class Retries(Middleware):
    """Retries by the actor's option `retry`, a `RetryPolicy`; an actor without one is not retried.

    It stands last, so that the middleware before it see its verdict: `message.failed`.
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
        _, pause_ms = compute_backoff(tries - 1, factor=policy.first_ms, max_backoff=policy.longest_ms)
        known = {"actor": message.actor_name, "message_id": message.message_id, "tries": tries}
        if current_millis() + pause_ms > failing_since + policy.for_s * 1000 or not is_transient(exception, tries):
            message.fail()
            log.error("failed_for_good", **known, reason=in_words(exception))
            return
        log.info("will_be_retried", **known, reason=in_words(exception), in_ms=pause_ms)
        self._enqueue(broker, message, pause_ms)

    def _enqueue(self, broker: dramatiq.Broker, message: dramatiq.MessageProxy, pause_ms: int) -> None:
        # Not to give up: the message is acknowledged after this. A process that ends meanwhile holds it still, and it
        # comes back as any dead worker's does.
        while True:
            try:
                broker.enqueue(message, delay=pause_ms)  # type: ignore[arg-type]  # as Dramatiq's own Retries does
                return
            except (redis.RedisError, BrokerConnectionError):
                time.sleep(ENQUEUE_AGAIN_S)
