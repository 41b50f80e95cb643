"""Errors of the client and of the wire. `code` is an error's id, on the wire and in logs."""

from __future__ import annotations


class KeepsakeError(Exception):
    """Base class of every error that Keepsake raises on purpose."""

    code = "internal"

    @property
    def wire(self) -> str:
        """The `error` field of a response: `"code: reason"`."""
        return f"{self.code}: {self}"


class InvalidMessage(KeepsakeError):
    """A message from the wire that does not have the shape of the contract.

    Args:
        reason: what is wrong, for the sender; names fields, never values.
        request_id, user_id: the ids to answer to, as far as they could be read.
    """

    code = "invalid_request"

    def __init__(self, reason: str, *, request_id: str | None = None, user_id: str | None = None) -> None:
        super().__init__(reason)
        self.request_id = request_id
        self.user_id = user_id


class InvalidJSON(InvalidMessage):
    """The bytes are not one JSON object."""

    code = "invalid_json"


class MessageTooLarge(InvalidMessage):
    """The message or its content exceeds a size limit."""

    code = "too_large"


class UnknownRequestType(InvalidMessage):
    """The request's type is not one of `REQUEST_TYPES`."""

    code = "unknown_type"


class Unavailable(KeepsakeError):
    """A server or provider that the request needs does not answer at present; a later try may succeed."""

    code = "unavailable"


class RequestTimeout(KeepsakeError):
    """No response arrived within the time-out."""

    code = "timeout"


class RequestFailed(KeepsakeError):
    """The response reports a failure; the message is the response's `error`."""

    code = "request_failed"


class Disabled(KeepsakeError):
    """Long-term memory is switched off by ENABLE_LTM."""

    code = "disabled"
