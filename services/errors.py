"""Every error Keepsake raises on purpose. An error's `code` is its id on the wire and in the logs."""

from __future__ import annotations


class KeepsakeError(Exception):
    """Something went wrong in Keepsake."""

    code = "internal"

    @property
    def wire(self) -> str:
        """The `error` field of a response: `"code: what is wrong, in words"`."""
        return f"{self.code}: {self}"


class InvalidMessage(KeepsakeError):
    """A message from the wire that cannot be served as it stands.

    Args:
        reason: what is wrong, in words for whoever sent it.
        request_id, user_id: whom to answer, as far as they could be read.
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
    """The message or its content is over a size limit."""

    code = "too_large"


class UnknownRequestType(InvalidMessage):
    """The request's type is none of the four."""

    code = "unknown_type"


class ProfileConflict(KeepsakeError):
    """The profile has moved on since the version the writer expected."""

    code = "conflict"

    def __init__(self, expected_version: int, version: int) -> None:
        super().__init__(f"expected_version is {expected_version} and the profile is at version {version}")
        self.expected_version = expected_version
        self.version = version


class Unavailable(KeepsakeError):
    """A server or provider that the request needs does not answer just now; it may be asked again."""

    code = "unavailable"


class Expired(KeepsakeError):
    """The search's time was up before it was done: whoever asked has gone on."""

    code = "expired"


class EmbeddingDimensionMismatch(KeepsakeError):
    """The embedder's vectors do not fit the table: another embedder filled it."""

    code = "embedding_dimension_mismatch"

    def __init__(self, embedder: int, table: int) -> None:
        super().__init__(
            f"the embedder gives {embedder} dimensions and the memories table holds {table}; "
            "set LTM_EMBEDDER_PROVIDER and LTM_EMBEDDER_MODEL back, or point DATABASE_URL at a new database"
        )


class InvalidSetting(KeepsakeError):
    """An environment variable holds what it must not."""

    code = "invalid_setting"


class LTMRequestTimeout(KeepsakeError):
    """No response came within the wait."""

    code = "timeout"


class LTMRequestFailed(KeepsakeError):
    """The response says the request failed; the message is the response's `error`."""

    code = "request_failed"


class LTMDisabled(KeepsakeError):
    """Long-term memory is switched off by ENABLE_LTM."""

    code = "disabled"


class StackError(KeepsakeError):
    """The local stack cannot be started or found."""

    code = "stack"


class PortTaken(StackError):
    """Somebody else listens on the port that was asked for."""

    code = "port_taken"


class ProcessKeepsDying(StackError):
    """A process of the stack died too often to be started again."""

    code = "process_keeps_dying"
