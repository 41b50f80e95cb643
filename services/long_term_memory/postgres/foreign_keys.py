"""Foreign keys of `memories`, which a switch adds unchecked and which are checked afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from psycopg import Connection, errors, sql
from psycopg.rows import TupleRow

from services.long_term_memory.postgres.layout import partitions_of
from services.long_term_memory.postgres.locking import brief_locks

#: The foreign key of a table that is distributed by `user_hash`.
HASHED_REFERENCE: Final = "(user_number, user_hash) REFERENCES users(number, user_hash)"
#: How often a foreign key of the partitions is given to the whole table, which waits for writers.
ATTEMPTS: Final = 30

_OF_PARTITIONS = (
    "SELECT conname, pg_get_constraintdef(pg_constraint.oid) FROM pg_constraint"
    " JOIN pg_inherits ON inhrelid = conrelid WHERE inhparent = 'memories'::regclass AND contype = 'f'"
    " AND conparentid = 0 GROUP BY 1, 2"
)


def unvalidated(connection: Connection[TupleRow]) -> Iterator[tuple[str, str]]:
    """Table and name of the foreign keys of `memories` that were added unchecked."""
    for table in partitions_of(connection) or ["memories"]:
        found = connection.execute(
            "SELECT conname FROM pg_constraint WHERE conrelid = to_regclass(%s) AND NOT convalidated", (table,)
        )
        for (name,) in found.fetchall():
            yield table, name


def validate(connection: Connection[TupleRow]) -> None:
    """Check the foreign keys that a switch has added unchecked, without keeping any request waiting."""
    for table, name in list(unvalidated(connection)):
        statement = sql.SQL("ALTER TABLE {} VALIDATE CONSTRAINT {}")
        connection.execute(statement.format(sql.Identifier(table), sql.Identifier(name)))
    for _ in range(ATTEMPTS):
        try:
            with brief_locks(connection):
                _give_to_all(connection)
            return
        except (errors.LockNotAvailable, errors.DeadlockDetected):
            continue  # the partitions have it, each: without the rest nothing is unchecked


def _give_to_all(connection: Connection[TupleRow]) -> None:
    """Give a partitioned table the foreign keys that its partitions have, each."""
    missing = connection.execute(_OF_PARTITIONS).fetchall()
    if missing:
        connection.execute("LOCK TABLE users IN EXCLUSIVE MODE")  # first, as all writers do
    for name, definition in missing:
        statement = sql.SQL("ALTER TABLE memories ADD CONSTRAINT {} {}")
        connection.execute(statement.format(sql.Identifier(name), sql.SQL(definition)))
