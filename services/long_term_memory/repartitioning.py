"""Repartitioning: gives the memories of a database another number of partitions, for `ltm partition`.

Workers search and write meanwhile. All memories are copied to a second table in batches, so that a run that was ended
is resumed; one transaction then puts that table in the place of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from services.long_term_memory.postgres.embedder_record import REEMBEDDING_LOCK, drop_new_vectors
from services.long_term_memory.postgres.foreign_keys import validate
from services.long_term_memory.postgres.layout import MEMORIES_BYTES, partitions_of
from services.long_term_memory.postgres.locking import pause_for_locks, until_locked
from services.long_term_memory.postgres.partitioning import Partitioning, is_hashed
from services.long_term_memory.postgres.pool import check_connects, database_errors
from services.long_term_memory.postgres.preconditions import applied_steps, schema_errors, step_files
from services.runtime.errors import PartitioningRefused
from services.runtime.settings import Settings


class Operator(Protocol):
    """The person or program that runs it: decides, and is told how far it is."""

    def accepts(self, memories: int, table_bytes: int) -> bool:
        """Whether to begin: the second table takes as much space as the first, with its indexes."""

    def progressed(self, done: int, total: int) -> None:
        """A batch is copied."""

    def indexing(self) -> None:
        """The indexes are made."""

    def waiting(self) -> None:
        """Something else uses the table, and is waited for."""


def run(
    connection: Connection[TupleRow],
    partitions: int,
    operator: Operator,
    pause: Callable[[], None] = pause_for_locks,
) -> int | None:
    """Partition the memories while workers search and write; how many there are, None where nothing is to be done.

    Args:
        connection: in autocommit mode, without a statement time-out.
        partitions: 0 or 1 for one table.
        pause: waits until locks are asked for again.

    Raises:
        PartitioningRefused: workers of an earlier release run, the operator has not agreed, or `ltm reembed` has begun.
            What is copied is kept, and the next run goes on from there.
    """
    validate(connection)  # of a run that was ended after its switch
    if is_hashed(connection) and max(len(partitions_of(connection)), 1) == max(partitions, 1):
        return None
    total, size = connection.execute(f"SELECT (SELECT count(*) FROM memories), {MEMORIES_BYTES}").fetchone() or (0, 0)  # noqa: S608 - constants
    if not operator.accepts(total, size):
        raise PartitioningRefused("not begun: everything is as it was")
    second = Partitioning(connection, partitions)
    until_locked(second.prepare, operator.waiting, pause)
    _copy(second, operator, pause)
    operator.indexing()
    second.build_indexes()
    until_locked(second.switch, operator.waiting, pause)
    second.validate()
    return int(total)


def partition(settings: Settings, partitions: int, operator: Operator) -> int | None:
    """`run` on the configured database.

    Raises:
        CannotStart: the database cannot be used.
        PartitioningRefused: as `run`; no worker of this release has opened the database; or another run is under way.
        Unavailable: the database does not answer; what is done stays done.
    """
    with _alone(settings) as connection:
        return run(connection, partitions, operator)


def abandon(settings: Settings, waiting: Callable[[], None], pause: Callable[[], None] = pause_for_locks) -> None:
    """Remove what a run has copied that is not to be gone on with.

    Args:
        waiting, pause: as `Operator.waiting` and `run` have them.

    Raises:
        as `partition`.
    """
    with _alone(settings) as connection:
        begun = connection.execute("SELECT to_regproc('mirror_memory') IS NOT NULL").fetchone()
        if begun == (True,):
            until_locked(partial(drop_new_vectors, connection), waiting, pause)


@contextmanager
def _alone(settings: Settings) -> Iterator[Connection[TupleRow]]:
    """A connection to the configured database, beside no other run of `ltm partition` or `ltm reembed`."""
    url = settings.database_url.get_secret_value()
    check_connects(url)
    with database_errors(), psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET statement_timeout = 0")
        with schema_errors():
            migrated = connection.execute("SELECT to_regclass('schema_migrations') IS NOT NULL").fetchone()
            steps = len(step_files())
            if migrated != (True,) or applied_steps(connection, steps) < steps:
                raise PartitioningRefused("the database is not of this release yet: start the stack once")
            if connection.execute("SELECT pg_try_advisory_lock(%s)", (REEMBEDDING_LOCK,)).fetchone() != (True,):
                raise PartitioningRefused(
                    "another `ltm partition` or `ltm reembed` runs on this database, or was killed and"
                    " PostgreSQL still makes its index"
                )
            yield connection


def _copy(second: Partitioning, operator: Operator, pause: Callable[[], None]) -> None:
    total, done = second.counts()
    last: int | None = -1
    while last is not None:
        copied, last = until_locked(partial(second.copy, last), operator.waiting, pause)
        done += copied
        operator.progressed(done, max(total, done))
