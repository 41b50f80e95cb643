"""The schema: numbered migrations, each applied once, in order, under an advisory lock.

migrations/NNNN_name.sql is step NNNN. A released step is never edited: append another one. `{dimensions}` in it is the
number of dimensions of the embedder's vectors.

Processes of the release before run on until they are replaced: a step leaves their searches as they are, builds indexes
under no lock that keeps searches out, and leaves their writes working or refuses them with an error that they retry.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import structlog
from psycopg import Connection, sql
from psycopg.rows import TupleRow

from services.long_term_memory.postgres.analysis import renew_analyses
from services.long_term_memory.postgres.locking import brief_locks, until_locked
from services.long_term_memory.postgres.partitioning import PARTITIONS, PARTITIONS_STEP, partition_new
from services.long_term_memory.postgres.pool import migration_lock
from services.long_term_memory.postgres.preconditions import applied_steps, step_files
from services.long_term_memory.postgres.rows import memory_row
from services.runtime.errors import EmbeddingDimensionMismatch

log = structlog.get_logger()

#: Called with the number of partitions that a new database gets.
Hook = Callable[[Connection[TupleRow], int], None]


class Migration(NamedTuple):
    """Migration: one numbered change of the schema, applied once.

    Args:
        statements: SQL, with `{dimensions}` for the number of dimensions.
        hook: what SQL alone cannot do, called after the statements in the same transaction.
    """

    statements: str
    hook: Hook | None = None


def _move_mem0_rows(connection: Connection[TupleRow], _: int) -> None:
    """Insert the rows of Mem0's own table into the table of columns, and drop the former."""
    with connection.cursor("mem0_rows") as old:
        for memory_id, vector, payload in old.execute("SELECT id::text, vector::text, payload FROM memories_of_mem0"):
            row = memory_row(memory_id, json.loads(vector), payload)
            connection.execute("INSERT INTO users (user_id) VALUES (%(user_id)s) ON CONFLICT DO NOTHING", row)
            connection.execute(_ADD_OF_MEM0, row)
    connection.execute("DROP TABLE memories_of_mem0")


# Of the table as the second step makes it.
_ADD_OF_MEM0 = (
    "INSERT INTO memories (id, user_number, session, said_at, source, content, payload, terms, traits, vector)"
    " SELECT %(id)s, number, %(session)s, %(said_at)s, %(source)s, %(content)s, %(payload)s, %(terms)s, %(traits)s,"
    " %(vector)s::halfvec FROM users WHERE user_id = %(user_id)s"
)

#: By the number of the step.
HOOKS: dict[int, Hook] = {2: _move_mem0_rows, PARTITIONS_STEP: partition_new}


def read_migrations() -> list[Migration]:
    """The steps of this release in their order, from migrations/*.sql: 0001 is the first, and no number is missing."""
    return [Migration(file.read_text("utf-8"), HOOKS.get(number)) for number, file in enumerate(step_files(), start=1)]


def migrate(
    connection: Connection[TupleRow],
    dimensions: int,
    migrations: Sequence[Migration] | None = None,
    *,
    partitions: int = PARTITIONS,
) -> None:
    """Apply the steps that the database lacks, and renew what earlier releases computed from texts; idempotent.

    Several processes may call this at once: one applies the steps, the others wait for it.

    Args:
        dimensions: of the embedder's vectors.
        migrations: all steps in their order; None for those of this release.
        partitions: of the memories of a new database.

    Raises:
        EmbeddingDimensionMismatch: the table holds vectors of another size.
        SchemaTooNew: a newer release has migrated it.
    """
    steps = read_migrations() if migrations is None else migrations
    with migration_lock(connection):
        with connection.transaction():
            connection.execute(
                "CREATE TABLE IF NOT EXISTS schema_migrations"
                " (version int PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
            )
            applied = applied_steps(connection, len(steps))
        for version, step in enumerate(steps[applied:], start=applied + 1):
            apply = partial(_apply, connection, version, step, dimensions, partitions)
            until_locked(apply, partial(log.warning, "migration_waits", step=version, awaits="what uses the tables"))
    if migrations is None:
        renew_analyses(connection)
    _check_dimensions(connection, dimensions)


def _apply(connection: Connection[TupleRow], version: int, step: Migration, dimensions: int, partitions: int) -> None:
    """Apply one step, in a transaction of its own: its locks are not held while the next one builds an index.

    Raises:
        LockNotAvailable: of psycopg: not now, as during a backup; searches would wait behind it.
    """
    with brief_locks(connection):
        connection.execute(
            "SET LOCAL statement_timeout = 0"
        )  # a million memories take longer than the 10 s of the pool
        connection.execute(sql.SQL(step.statements).format(dimensions=sql.Literal(dimensions)))
        if step.hook:
            step.hook(connection, partitions)
        connection.execute("INSERT INTO schema_migrations (version) VALUES (%s)", (version,))


def table_dimensions(connection: Connection[TupleRow]) -> int | None:
    """The number of dimensions of the stored vectors; None where there is no table of memories."""
    # pgvector keeps a column's dimensions as its type modifier.
    row = connection.execute(
        "SELECT atttypmod FROM pg_attribute WHERE attrelid = to_regclass('memories') AND attname = 'vector'"
    ).fetchone()
    return row[0] if row else None


def _check_dimensions(connection: Connection[TupleRow], dimensions: int) -> None:
    table = table_dimensions(connection)
    if table != dimensions:
        raise EmbeddingDimensionMismatch(embedder=dimensions, table=table or 0)
