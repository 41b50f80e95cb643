"""What a database must have before a worker can use it; imports little, because `ltm up` checks it too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from services.long_term_memory.postgres.embedder_record import check_provider
from services.long_term_memory.postgres.pool import CONNECT_TIMEOUT_S, MIGRATION_LOCK, check_connects, database_errors
from services.runtime.errors import CannotStart, SchemaTooNew


def step_files() -> list[Path]:
    """The files of the migrations of this release, in their order."""
    return sorted(Path(__file__).with_name("migrations").glob("*.sql"))


def check_database(database_url: str, provider: str) -> None:
    """Check that a worker can use the database, as far as that is known without loading the embedder.

    Args:
        provider: the configured embedder's.

    Raises:
        CannotStart: it cannot, whatever time passes.
        Unavailable: the database does not answer yet.
    """
    check_connects(database_url)
    steps = len(step_files())
    with (
        database_errors(),
        schema_errors(),
        psycopg.connect(database_url, connect_timeout=CONNECT_TIMEOUT_S) as connection,
        connection.transaction(force_rollback=True),
    ):
        migrated = connection.execute("SELECT to_regclass('schema_migrations') IS NOT NULL").fetchone()
        if migrated == (True,) and applied_steps(connection, steps) == steps:
            check_provider(connection, provider)
        elif connection.execute("SELECT pg_try_advisory_xact_lock(%s)", (MIGRATION_LOCK,)).fetchone() == (True,):
            # What the first worker will do, undone: PostgreSQL's own tables do not tell whether a role may. Not while a
            # worker does it: the second of two that create the extension fails when the first commits.
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            connection.execute("CREATE TABLE keepsake_check (vector halfvec(1))")


def applied_steps(connection: Connection[TupleRow], known: int) -> int:
    """The number of the last step that was applied.

    Args:
        known: how many steps this release has.

    Raises:
        SchemaTooNew: it is none of these.
    """
    row = connection.execute("SELECT coalesce(max(version), 0) FROM schema_migrations").fetchone()
    applied = row[0] if row else 0
    if applied > known:
        raise SchemaTooNew(database=applied, release=known)
    return int(applied)


@contextmanager
def schema_errors() -> Iterator[None]:
    """Raise `CannotStart` where PostgreSQL refuses the schema for good: no pgvector, or no right to make tables."""
    try:
        yield
    except (psycopg.ProgrammingError, psycopg.NotSupportedError, psycopg.errors.UndefinedFile) as error:
        raise CannotStart(f"the database of DATABASE_URL cannot be used: {_refusal(error)}") from error


def _refusal(error: psycopg.Error) -> str:
    reason = error.diag.message_primary or type(error).__name__
    match error:
        case psycopg.errors.FeatureNotSupported() | psycopg.errors.UndefinedFile() if "extension" in reason:
            return f"{reason}; install pgvector 0.7 or later on the server, or use another server"
        case psycopg.errors.InsufficientPrivilege() if "extension" in reason:
            return f"{reason}; let a superuser run CREATE EXTENSION vector in it once"
        case psycopg.errors.InsufficientPrivilege():
            return f"{reason}; the role needs the right to create tables in the schema public, as the owner has it"
        case psycopg.errors.UndefinedObject() if "halfvec" in reason:
            return f"{reason}; pgvector is older than 0.7: upgrade it, then ALTER EXTENSION vector UPDATE"
    return reason
