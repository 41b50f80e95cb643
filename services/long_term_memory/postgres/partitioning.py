"""Partitioning: a table of memories that is distributed by a hash of the user is put in the place of one that is not.

At once, where nothing else uses the table, as in a new database; or while workers search and write: a trigger mirrors
what they write, rows are copied in batches, and one transaction puts the new table in the place of the old one.
"""

from __future__ import annotations

from typing import Final

from psycopg import Connection, sql
from psycopg.rows import TupleRow

from services.long_term_memory.postgres.embedder_record import drop_new_vectors, read_record
from services.long_term_memory.postgres.foreign_keys import validate
from services.long_term_memory.postgres.layout import is_like_memories, partitions_of
from services.long_term_memory.postgres.locking import brief_locks
from services.long_term_memory.postgres.own_objects import own_objects
from services.long_term_memory.postgres.pool import EARLIER_APPLICATION_NAME
from services.long_term_memory.postgres.replacement import Replacement
from services.runtime.errors import PartitioningRefused

#: Partitions of a new table, by default.
PARTITIONS: Final = 16
#: The migration that brings the distribution column, and partitions to a new database.
PARTITIONS_STEP: Final = 12
#: Memories that are copied by one transaction, for which those who change one of them wait.
BATCH_ROWS: Final = 500
#: The distribution column of a user, as an expression of `users`.
USER_HASH: Final = "hashtextextended(user_id, 0)"

_COLUMNS = (
    "SELECT attname::text FROM pg_attribute WHERE attrelid = 'memories'::regclass AND attnum > 0 AND NOT attisdropped"
    " AND attgenerated = '' AND attname <> 'user_hash' ORDER BY attnum"
)
_IS_HASHED = "SELECT attgenerated <> '' FROM pg_attribute WHERE attrelid = 'users'::regclass AND attname = 'user_hash'"
# An owner's memory is mirrored in the transaction that writes it. Of a memory that is being copied it waits for the
# lock of the copy before, so that it finds what that has written.
_MIRROR = """
CREATE FUNCTION mirror_memory() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        DELETE FROM memories_next WHERE number = OLD.number;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO memories_next ({columns}, user_hash)
            SELECT {new}, hashtextextended(user_id, 0) FROM users WHERE number = NEW.user_number
            ON CONFLICT DO NOTHING;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER mirror_memory AFTER INSERT OR UPDATE OR DELETE ON memories
    FOR EACH ROW EXECUTE FUNCTION mirror_memory();
"""
_IS_BEGUN = "SELECT EXISTS (SELECT FROM pg_trigger WHERE tgname = 'mirror_memory' AND tgrelid = 'memories'::regclass)"
# The last column is the number: where the next batch begins.
_COPY = (
    "WITH batch AS MATERIALIZED (SELECT {columns} FROM memories WHERE number > %(after)s AND NOT EXISTS (SELECT FROM"
    " memories_next WHERE memories_next.number = memories.number AND memories_next.number > %(after)s)"
    " ORDER BY number LIMIT %(limit)s FOR SHARE), copied AS (INSERT INTO memories_next ({columns}, user_hash)"
    " SELECT {of_batch}, hashtextextended(user_id, 0) FROM batch JOIN users ON users.number = user_number"
    " ON CONFLICT DO NOTHING) SELECT count(*), max(number) FROM batch"
)
_COPY_ALL = (
    "INSERT INTO memories_next ({columns}, user_hash) SELECT {of_batch}, hashtextextended(user_id, 0)"
    " FROM memories AS batch JOIN users ON users.number = user_number"
)
_OTHERS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s"
    " AND pid <> pg_backend_pid()"
)
# The hash of an owner, from which memories take it; what is stored for an owner has that of the same.
_HASH_USERS = (
    "ALTER TABLE users DROP COLUMN user_hash,"
    " ADD COLUMN user_hash bigint NOT NULL GENERATED ALWAYS AS (hashtextextended(user_id, 0)) STORED",
    "ALTER TABLE users ADD CONSTRAINT users_number_user_hash_key UNIQUE (number, user_hash)",
)


def is_hashed(connection: Connection[TupleRow]) -> bool:
    """Whether the table of memories is distributed by a hash of the user, in partitions or as one table."""
    return connection.execute(_IS_HASHED).fetchone() == (True,)


def partition_new(connection: Connection[TupleRow], partitions: int) -> None:
    """Partition the table of a new database, in the transaction of the connection; a filled one is left as it is.

    It is left too where workers of an earlier release use the database, which know the table as it was, and where
    something of the operator's own depends on it.
    """
    filled = connection.execute("SELECT FROM memories LIMIT 1").fetchone() is not None
    earlier = connection.execute(_OTHERS, (EARLIER_APPLICATION_NAME,)).fetchone() != (0,)
    if not filled and not earlier and not own_objects(connection):
        partition_at_once(connection, partitions)


def partition_at_once(connection: Connection[TupleRow], partitions: int) -> None:
    """Partition the table in the transaction of the connection, while it is locked against all others."""
    connection.execute("LOCK TABLE users IN EXCLUSIVE MODE")
    connection.execute("LOCK TABLE memories, users IN ACCESS EXCLUSIVE MODE")
    drop_new_vectors(connection)
    replacement = Replacement(connection, partitions=_count(partitions))
    replacement.create()
    connection.execute(_with_columns(connection, _COPY_ALL))
    replacement.build_indexes(concurrently=False)
    _switch(connection, replacement)
    validate(connection)


class Partitioning:
    """One run of `ltm partition`, while workers search and write.

    Args:
        connection: in autocommit mode, without a statement time-out.
        partitions: how many there will be; 0 or 1 for a table without, whose keys have the distribution column.
    """

    def __init__(self, connection: Connection[TupleRow], partitions: int) -> None:
        self._connection = connection
        self._partitions = _count(partitions)
        self._replacement = Replacement(connection, partitions=self._partitions)

    def prepare(self) -> None:
        """Make the new table, unless an earlier run has left one with as many partitions.

        Raises:
            PartitioningRefused: `ltm reembed` has begun to fill a table.
            LockNotAvailable: of psycopg: not now.
        """
        if read_record(self._connection, "new_vector"):
            raise PartitioningRefused("`ltm reembed` has begun on this database: finish that first")
        begun = self._connection.execute(_IS_BEGUN).fetchone() == (True,) and is_like_memories(self._connection)
        if begun and len(partitions_of(self._connection, "memories_next")) == self._partitions:
            return
        with brief_locks(self._connection):
            drop_new_vectors(self._connection)
            self._replacement.create()
            # Once the trigger is there, every memory is either seen by a batch or mirrored.
            self._connection.execute(_with_columns(self._connection, _MIRROR))

    def counts(self) -> tuple[int, int]:
        """How many memories there are, and how many of them are in the new table."""
        row = self._connection.execute("SELECT (SELECT count(*) FROM memories), count(*) FROM memories_next").fetchone()
        return row or (0, 0)

    def copy(self, after: int) -> tuple[int, int | None]:
        """Copy a batch of memories with numbers above one; how many, and the last number, None where none is left.

        Those whose deletion or change waits for the batch are deleted or changed in the new table after it.

        Raises:
            LockNotAvailable, DeadlockDetected: of psycopg: not now, as a memory is being changed; none is copied.
        """
        statement = _with_columns(self._connection, _COPY)
        with brief_locks(self._connection):
            row = self._connection.execute(statement, {"after": after, "limit": BATCH_ROWS}).fetchone()
        return row or (0, None)

    def build_indexes(self) -> None:
        """Make the indexes, while the trigger writes to the table; resumable."""
        self._replacement.build_indexes()
        # Searches read pages that are known to be visible to all.
        self._connection.execute("VACUUM (ANALYZE) memories_next")

    def switch(self) -> None:
        """Put the new table in the place of `memories`, in one transaction.

        Raises:
            PartitioningRefused: workers of an earlier release are running, or a memory is missing.
            LockNotAvailable, DeadlockDetected: of psycopg: not now.
        """
        # In one snapshot: each transaction writes to both tables.
        total, copied = self.counts()
        if total != copied:
            raise PartitioningRefused(f"{copied} of {total} memories are in the new table: report this as a bug")
        with brief_locks(self._connection):
            # In the order in which others take them: writers users first, searches memories. This mode waits for those
            # that have locked a row of users, who would take a stronger lock of the table while this waits for them.
            self._connection.execute("LOCK TABLE users IN EXCLUSIVE MODE")
            self._connection.execute("LOCK TABLE memories, users IN ACCESS EXCLUSIVE MODE")
            # Those of this release know both tables.
            if self._connection.execute(_OTHERS, (EARLIER_APPLICATION_NAME,)).fetchone() != (0,):
                raise PartitioningRefused(
                    "workers of an earlier release are running: restart them with this one, and run it again"
                )
            self._connection.execute("DROP FUNCTION mirror_memory CASCADE")
            _switch(self._connection, self._replacement)

    def validate(self) -> None:
        """Check the foreign keys that the switch has added unchecked."""
        validate(self._connection)


def _switch(connection: Connection[TupleRow], replacement: Replacement) -> None:
    if not is_hashed(connection):
        for statement in _HASH_USERS:
            connection.execute(statement)
    replacement.replace()


def _with_columns(connection: Connection[TupleRow], statement: str) -> sql.Composed:
    names = [name for (name,) in connection.execute(_COLUMNS).fetchall()]
    return sql.SQL(statement).format(
        columns=sql.SQL(", ").join(map(sql.Identifier, names)),
        new=sql.SQL(", ").join(sql.SQL("NEW.{}").format(sql.Identifier(name)) for name in names),
        of_batch=sql.SQL(", ").join(sql.Identifier("batch", name) for name in names),
    )


def _count(partitions: int) -> int:
    """How many partitions a table has: one is none."""
    return partitions if partitions > 1 else 0
