"""Dead letters of the workers: why a message failed, recorded among its options, for both brokers."""

from __future__ import annotations

import traceback

import dramatiq

from tasks.middleware.retries import error_text

#: Frames that are kept of a dead letter's traceback, and characters, the last ones: an error may quote a message.
MAX_TRACEBACK_FRAMES = 30
MAX_TRACEBACK_CHARS = 20_000


def add_reason(message: dramatiq.MessageProxy) -> None:
    """Add the `error` and the `traceback` of a message that failed to its options."""
    error = message._exception
    if error is None:
        return
    message.options["error"] = error_text(error)
    text = "".join(traceback.format_exception(error, limit=MAX_TRACEBACK_FRAMES))
    message.options["traceback"] = text[-MAX_TRACEBACK_CHARS:]
