"""Exceptions of the client and of the wire. `code` identifies an error on the wire, in logs and in counters."""

from __future__ import annotations

import re

#: In place of redis-py's words, which are about commands of its own that the user never gave.
CREDENTIALS_REFUSED = "it asks for another user or password than its URL has (REDIS_URL)"


class KeepsakeError(Exception):
    """Base class of every exception that Keepsake raises on purpose."""

    code = "internal"

    @property
    def wire(self) -> str:
        """The `error` field of a response: `"code: reason"`."""
        return f"{self.code}: {self}"


class InvalidMessage(KeepsakeError):
    """A message does not have the shape that the contract specifies.

    Args:
        reason: what is wrong; names fields, never values.
        request_id, user_id: where the error response goes, as far as they could be read.
        traceparent: the span that the message belongs to, where it could be read.
    """

    code = "invalid_request"

    def __init__(
        self,
        reason: str,
        *,
        request_id: str | None = None,
        user_id: str | None = None,
        traceparent: str | None = None,
    ) -> None:
        super().__init__(reason)
        self.request_id = request_id
        self.user_id = user_id
        self.traceparent = traceparent


class InvalidJSON(InvalidMessage):
    """The bytes are not one JSON object."""

    code = "invalid_json"


class MessageTooLarge(InvalidMessage):
    """The message or its content exceeds a size limit."""

    code = "too_large"


class NoText(InvalidMessage):
    """The message holds no text, such as a recording without its transcript: it is counted, and not rejected."""


class UnknownRequestType(InvalidMessage):
    """The request's type is not one of `REQUEST_TYPES`."""

    code = "unknown_type"


class Forbidden(InvalidMessage):
    """The request's type is not taken from the list that it was pushed to."""

    code = "forbidden"


class Unavailable(KeepsakeError):
    """A server or provider that the request needs does not respond at present; a later attempt may succeed."""

    code = "unavailable"


class InvalidURL(KeepsakeError, ValueError):
    """The URL of a Redis cannot be used. The message has nothing of it: it may hold a password.

    Args:
        expected: what is allowed, in words.
    """

    code = "invalid_url"

    def __init__(self, expected: str) -> None:
        super().__init__(f"the URL of Redis cannot be used; allowed: {expected}")
        self.expected = expected


class RequestTimeout(KeepsakeError):
    """No response arrived before the deadline."""

    code = "timeout"


class RequestFailed(KeepsakeError):
    """The response reports a failure.

    Args:
        error: the response's `error`, `"code: reason"`. `code` becomes its code, the message all of it. The reason may
            quote contents, which belong in no log.
    """

    def __init__(self, error: str) -> None:
        super().__init__(error)
        code, colon, _ = error.partition(":")
        self.code = code if colon and re.fullmatch("[a-z_]{1,64}", code) else "internal"

    @property
    def wire(self) -> str:
        """The `error` field of the response."""
        return str(self)


class Disabled(KeepsakeError):
    """The client was constructed with `enabled=False`."""

    code = "disabled"
