"""Decoding of what is on the workers' queues, which anything that may write to the broker has put there."""

from __future__ import annotations

from typing import Any

import dramatiq
from dramatiq.errors import DecodeError

#: Options that Dramatiq and `Retries` compute with.
_NUMBERS = ("eta", "retries", "failing_since")
#: No time or count is larger; nan and infinity are neither.
_MAX = 1e15


def decode(data: bytes, queue: str) -> dramatiq.Message[Any] | None:
    """The message; None of what is none, or would end the consumer or worker thread that takes it from this queue."""
    try:
        message: dramatiq.Message[Any] = dramatiq.Message.decode(data)
    except DecodeError:
        return None
    return message if is_sound(message, queue) else None


def is_sound(message: dramatiq.Message[Any], queue: str) -> bool:
    """Whether Dramatiq can deal with a message from this queue: its own `decode` checks the names of fields alone."""
    return (
        isinstance(message.actor_name, str)
        and isinstance(message.message_id, str)
        and isinstance(message.kwargs, dict)
        and isinstance(message.options, dict)
        and message.queue_name == queue
        and "throws" not in message.options  # which would be classes
        and all(_is_number(message.options.get(name, 0)) for name in _NUMBERS)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and -_MAX < value < _MAX
