"""Keeps Dramatiq's own log lines free of what people said, and of what has been told already."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import dramatiq

from tasks.middleware.retries import expected

#: Beginnings of the lines that are told better elsewhere.
TOLD_ELSEWHERE = (
    # The broker tells of a lost server once, and once when it is back; these come with every try.
    "Consumer encountered a connection error",
    "Restarting consumer in",
    "Failed to post_process_message",
    # `Retries` tells with which pause.
    "Failed to process message %s with expected exception",
    "Time limit exceeded",
    # Of what actors are called with, at debug.
    "Received args=",
)


class DramatiqLogFilter(logging.Filter):
    """Names a message by its actor and id, where Dramatiq would print its arguments, contents and all.

    It also drops the warning that an actor's result is discarded: `ResponsePublisher` is what takes it, and
    Dramatiq's own
    Results middleware, the one thing that stops the warning, warns just the same. And it drops what is told elsewhere:
    an error that will be retried, or that is ours, is a line of `Retries`; what nobody expected keeps its traceback.
    tests/unit/test_log_filter.py fails when Dramatiq's words change.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        said = str(record.msg)
        if "returned a value that is not None" in said or said.startswith(TOLD_ELSEWHERE):
            return False
        if said.startswith("Failed to process message") and record.exc_info and expected(record.exc_info[1]):
            return False
        if isinstance(record.args, tuple):
            record.args = tuple(_name(arg) for arg in record.args)
        return True


def _name(arg: object) -> object:
    if isinstance(arg, dramatiq.Message | dramatiq.MessageProxy):
        return f"{arg.actor_name} {arg.message_id}"
    return arg


def install_log_filter(handlers: Iterable[logging.Handler]) -> None:
    """Let these handlers say what a person wants to know, once."""
    for handler in handlers:
        handler.addFilter(DramatiqLogFilter())
    # A line a try; the pool of `services.long_term_memory` tells when the server goes and when it is back.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
