"""Keeps Dramatiq's own log lines free of what people said."""

from __future__ import annotations

import logging

import dramatiq


class DramatiqLogFilter(logging.Filter):
    """Names a message by its actor and id, where Dramatiq would print its arguments, contents and all.

    It also drops the warning that an actor's result is discarded: `Responses` is what takes it, and Dramatiq's own
    Results middleware, the one thing that stops the warning, warns just the same. And it drops what actors log at
    debug of their arguments.
    tests/unit/test_log_filter.py fails when Dramatiq's words change.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        said = str(record.msg)
        if "returned a value that is not None" in said or said.startswith("Received args="):
            return False
        if isinstance(record.args, tuple):
            record.args = tuple(_name(arg) for arg in record.args)
        return True


def _name(arg: object) -> object:
    if isinstance(arg, dramatiq.Message | dramatiq.MessageProxy):
        return f"{arg.actor_name} {arg.message_id}"
    return arg
