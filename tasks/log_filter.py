"""Log filter that keeps content, and what another line says already, out of Dramatiq's own log lines."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import dramatiq

from tasks.middleware.retries import is_expected

#: Prefixes of the messages that another line repeats in a better form.
REDUNDANT = (
    # Every attempt during an outage logs these; the broker logs `dependency_down` and `dependency_up` once each.
    "Consumer encountered a connection error",
    "Restarting consumer in",
    "Failed to post_process_message",
    # `Retries` logs these with the delay of the next attempt.
    "Failed to process message %s with expected exception",
    "Time limit exceeded",
    # The arguments of actors, at debug.
    "Received args=",
)


class DramatiqLogFilter(logging.Filter):
    """Names a message by its actor and id, where Dramatiq would print its arguments, contents included.

    It drops the warning that an actor's result is discarded: `ResponsePublisher` takes the results, and Dramatiq's own
    Results middleware, the one thing that stops the warning, warns just the same. It drops what `Retries` logs too: an
    error that is retried or expected; an unexpected one keeps its traceback. tests/unit/test_log_filter.py fails when
    the wording of Dramatiq changes.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        message = str(record.msg)
        if "returned a value that is not None" in message or message.startswith(REDUNDANT):
            return False
        if message.startswith("Failed to process message") and record.exc_info and is_expected(record.exc_info[1]):
            return False
        if isinstance(record.args, tuple):
            record.args = tuple(_name(arg) for arg in record.args)
        return True


def _name(arg: object) -> object:
    if isinstance(arg, dramatiq.Message | dramatiq.MessageProxy):
        return f"{arg.actor_name} {arg.message_id}"
    return arg


def install_log_filter(handlers: Iterable[logging.Handler]) -> None:
    """Add the filter to these handlers, and silence the pool of psycopg."""
    for handler in handlers:
        handler.addFilter(DramatiqLogFilter())
    # It logs every attempt; the pool of `services.long_term_memory` logs an outage once.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
