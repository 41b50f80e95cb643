"""Errors of RabbitMQ's client in words, with the remedy where RabbitMQ refuses."""

from __future__ import annotations

from pika.exceptions import (
    AMQPError,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
    NackError,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
)

ACCESS_REFUSED = 403
MAX_CHARS = 300


def words(error: BaseException) -> str:
    """A failure in one line, which names no password."""
    match error:
        case ProbableAuthenticationError():
            return "it refuses the user: correct user and password in BROKER_URL"
        case ProbableAccessDeniedError():
            return "it refuses the virtual host: correct it in BROKER_URL, or give the user permissions on it"
        case NackError():
            return "it rejects the message, as by the policy max-length of a queue: raise that, or remove the policy"
        case ChannelClosedByBroker() | ConnectionClosedByBroker():
            said = " ".join(str(error.reply_text).split())[:MAX_CHARS]
            remedy = "; give the user configure, write and read (rabbitmqctl set_permissions)"
            return said + (remedy if error.reply_code == ACCESS_REFUSED else "")
    # pika's errors of connecting have their cause among their arguments, or as `exception`.
    causes = [*error.args, getattr(error, "exception", None)]
    if cause := next((cause for cause in causes if isinstance(cause, BaseException)), None):
        return words(cause)
    text = str(error) if isinstance(error, OSError | AMQPError) and error.args else ""
    return f"{type(error).__name__}{': ' if text else ''}{' '.join(text.split())}"[:MAX_CHARS]
