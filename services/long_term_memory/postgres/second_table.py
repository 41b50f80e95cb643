"""The second table of `ltm reembed`: all memories with new vectors, filled beside `memories`, then put in its place.

A trigger notes what is inserted, changed or deleted in `memories` meanwhile, and removes from the second table at once
what was deleted. Searches read `memories` alone until the switch, one transaction that also ends the connections of the
workers: whatever they had under way has vectors of the old embedder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from psycopg import Connection, sql
from psycopg.rows import TupleRow

from services.long_term_memory.embeddings.identity import EmbedderIdentity
from services.long_term_memory.postgres.embedder_record import drop_new_vectors, read_record, write_record
from services.long_term_memory.postgres.foreign_keys import validate
from services.long_term_memory.postgres.layout import MEMORIES_BYTES, is_like_memories
from services.long_term_memory.postgres.locking import brief_locks
from services.long_term_memory.postgres.pool import APPLICATION_NAME
from services.long_term_memory.postgres.replacement import MAX_INDEXED_DIMENSIONS, Replacement
from services.long_term_memory.postgres.rows import Vector

#: Memories whose changes are taken over at once.
BATCH_ROWS = 64

_CHANGES = """
CREATE TABLE memories_changed (number bigint NOT NULL);
CREATE FUNCTION note_changed_memory() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        DELETE FROM memories_next WHERE number = OLD.number;
    ELSIF TG_OP = 'UPDATE' THEN
        DELETE FROM memories_next WHERE number = OLD.number AND content <> NEW.content;
    END IF;
    INSERT INTO memories_changed VALUES (CASE TG_OP WHEN 'DELETE' THEN OLD.number ELSE NEW.number END);
    RETURN NULL;
END $$;
CREATE TRIGGER note_changed_memory AFTER INSERT OR UPDATE OR DELETE ON memories
    FOR EACH ROW EXECUTE FUNCTION note_changed_memory();
"""
# The bound of the inner number keeps PostgreSQL from reading all that is done for each batch.
_MISSING = (
    "SELECT number, content FROM memories WHERE number > %(after)s AND NOT EXISTS (SELECT FROM memories_next"
    " WHERE memories_next.number = memories.number AND memories_next.number > %(after)s)"
    " ORDER BY number LIMIT %(limit)s"
)
_TAKE_CHANGES = (
    "DELETE FROM memories_changed WHERE ctid = ANY(ARRAY(SELECT ctid FROM memories_changed LIMIT %s)) RETURNING number"
)
_SAME = "memories.number = memories_next.number AND memories.content = memories_next.content"
_CHANGED = (
    "SELECT number, content FROM memories WHERE number = ANY(%s)"  # noqa: S608 - constants
    f" AND NOT EXISTS (SELECT FROM memories_next WHERE {_SAME}) ORDER BY number"
)
_DELETE_CHANGED = (
    "DELETE FROM memories_next WHERE number = ANY(%s)"  # noqa: S608 - constants
    f" AND NOT EXISTS (SELECT FROM memories WHERE {_SAME})"
)
_UPDATE_OTHERS = (
    "UPDATE memories_next SET ({}) = ROW ({}) FROM memories"  # noqa: S608 - constants
    f" WHERE {_SAME} AND memories.number = ANY(%s)"
)
_COLUMNS = (
    "SELECT attname::text FROM pg_attribute WHERE attrelid = 'memories'::regclass AND attnum > 0 AND NOT attisdropped"
    " AND attgenerated = '' AND attname NOT IN ('number', 'vector') ORDER BY attname"
)


class SecondTable:
    """The table `memories_next`.

    Args:
        connection: in autocommit mode, without a statement time-out.
        identity: the embedder of its vectors.
    """

    def __init__(self, connection: Connection[TupleRow], identity: EmbedderIdentity) -> None:
        self._connection = connection
        self._identity = identity
        self._replacement = Replacement(connection, identity.dimensions)
        self._columns: list[str] = []

    def prepare(self) -> None:
        """Make the table, unless an earlier run with the same embedder has left it.

        Raises:
            LockNotAvailable: of psycopg: not now.
        """
        begun = read_record(self._connection, "new_vector")
        self._columns = [name for (name,) in self._connection.execute(_COLUMNS).fetchall()]
        if begun and begun.same_vectors(self._identity) and is_like_memories(self._connection):
            return
        with brief_locks(self._connection):
            drop_new_vectors(self._connection)
            self._replacement.create()
            # Once the trigger is there, every row is either seen by the first batch or noted.
            self._connection.execute(_CHANGES)
            self._replacement.copy_owner("memories_changed")
            write_record(self._connection, "new_vector", self._identity)

    def counts(self) -> tuple[int, int]:
        """How many memories there are, and how many of them are in this table."""
        row = self._connection.execute("SELECT (SELECT count(*) FROM memories), count(*) FROM memories_next").fetchone()
        return row or (0, 0)

    def missing(self, after: int) -> list[tuple[int, str]]:
        """The next memories that are not in this table, with numbers above one: numbers and contents."""
        return self._connection.execute(_MISSING, {"after": after, "limit": BATCH_ROWS}).fetchall()

    def store(self, memories: Sequence[tuple[int, str]], vectors: Sequence[Vector]) -> None:
        """Store memories with new vectors; one whose content is another by now is left to its note."""
        names = sql.SQL(", ").join(map(sql.Identifier, self._columns))
        kept = sql.SQL(", ").join(sql.Identifier("memories", name) for name in self._columns)
        statement = sql.SQL(
            "INSERT INTO memories_next (number, {names}, vector)"
            " SELECT memories.number, {kept}, (%(vectors)b)[(place - 1) * %(size)s + 1 : place * %(size)s]::halfvec"
            " FROM unnest(%(numbers)b::bigint[], %(contents)b::text[])"
            " WITH ORDINALITY AS given (number, content, place)"
            " JOIN memories ON memories.number = given.number AND memories.content = given.content"
            " ON CONFLICT DO NOTHING"
        ).format(names=names, kept=kept)
        numbers, contents = zip(*memories, strict=True)
        values = {"numbers": list(numbers), "contents": list(contents), "vectors": np.asarray(vectors, np.float32)}
        self._connection.execute(statement, {**values, "size": self._identity.dimensions})

    def take_changes(self, embed: Callable[[list[str]], list[list[float]]]) -> bool:
        """Take over some of what has changed since; whether there may be more.

        In one transaction: a change whose memory cannot be embedded now stays noted.
        """
        with self._connection.transaction():
            taken = self._connection.execute(_TAKE_CHANGES, (BATCH_ROWS,)).fetchall()
            if not taken:
                return False
            numbers = list({number for (number,) in taken})
            # Embedded before any row is locked that a worker may want to delete.
            changed = self._connection.execute(_CHANGED, (numbers,)).fetchall()
            vectors = embed([content for _, content in changed]) if changed else []
            self._connection.execute(_DELETE_CHANGED, (numbers,))
            names = sql.SQL(", ").join(map(sql.Identifier, self._columns))
            kept = sql.SQL(", ").join(sql.Identifier("memories", name) for name in self._columns)
            self._connection.execute(sql.SQL(_UPDATE_OTHERS).format(names, kept), (numbers,))
            if changed:
                self.store(changed, vectors)
        return len(taken) == BATCH_ROWS

    def build_indexes(self) -> None:
        """Make the indexes of `memories` on this table, while the trigger writes to it; resumable."""
        self._replacement.build_indexes()
        # Searches read pages that are known to be visible to all.
        self._connection.execute("VACUUM (ANALYZE) memories_next")

    def switch(self, embed: Callable[[list[str]], list[list[float]]]) -> None:
        """Put this table in the place of `memories`, in one transaction.

        Raises:
            LockNotAvailable, DeadlockDetected: of psycopg: not now.
            InsufficientPrivilege: of psycopg: the connections of the workers may not be ended.
        """
        with brief_locks(self._connection):
            # In the order in which others take them: writers users first, searches memories. This mode waits for those
            # that have locked a row of users, who would take a stronger lock of the table while this waits for them.
            self._connection.execute("LOCK TABLE users IN EXCLUSIVE MODE")
            self._connection.execute("LOCK TABLE memories IN SHARE MODE")  # searches go on, writers wait
            while self.take_changes(embed):
                pass
            # A worker that connects from here on waits, and then sees the new record.
            self._connection.execute("LOCK TABLE embedders IN ACCESS EXCLUSIVE MODE")
            self._connection.execute("LOCK TABLE memories, users IN ACCESS EXCLUSIVE MODE")
            self._connection.execute("DROP FUNCTION note_changed_memory CASCADE")
            self._connection.execute("DROP TABLE memories_changed")
            self._replacement.replace()
            self._connection.execute("DELETE FROM embedders WHERE vector_column = 'new_vector'")
            write_record(self._connection, "vector", self._identity)
            self._connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name = %s",
                (APPLICATION_NAME,),
            )

    def validate(self) -> None:
        """Check the foreign keys that the switch has added unchecked."""
        validate(self._connection)


def disk_needed(connection: Connection[TupleRow], dimensions: int) -> tuple[int, int]:
    """The size of the table with its indexes, and an estimate of that of the second one, in bytes.

    Args:
        dimensions: of the new vectors, which have two bytes each.
    """
    row = connection.execute(
        f"SELECT {MEMORIES_BYTES}, (SELECT count(*) FROM memories),"  # noqa: S608 - constants
        " (SELECT atttypmod FROM pg_attribute WHERE attrelid = 'memories'::regclass AND attname = 'vector')"
    ).fetchone()
    size, rows, present = row or (0, 0, 0)

    def copies(of: int) -> float:
        return 1 + 8 / 7 if of <= MAX_INDEXED_DIMENSIONS else 1.0  # the row, the index, and the sample's index

    grown = rows * 2 * (dimensions * copies(dimensions) - present * copies(present))
    return size, max(0, round(size + grown))
