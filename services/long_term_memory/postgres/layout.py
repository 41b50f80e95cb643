"""Layout: the tables that hold the memories, `memories` alone or with partitions by a hash of the user."""

from __future__ import annotations

from typing import Final

from psycopg import Connection
from psycopg.rows import TupleRow

#: `memories` and its partitions, as a condition on `pg_class`.
MEMORIES_TABLES: Final = (
    "(pg_class.oid = 'memories'::regclass OR pg_class.oid IN"
    " (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'memories'::regclass))"
)
#: Their size with their indexes, as an expression.
MEMORIES_BYTES: Final = f"(SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class WHERE {MEMORIES_TABLES})"  # noqa: S608 - constants

_PARTITIONS = (
    "SELECT relname::text FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid"
    " WHERE inhparent = to_regclass(%s) ORDER BY relname"
)
# A newer release may have given the table another column meanwhile.
_IS_LIKE_MEMORIES = (
    "SELECT NOT EXISTS (SELECT attname FROM pg_attribute WHERE attnum > 0 AND NOT attisdropped"
    " AND attrelid IN ('memories'::regclass, to_regclass('memories_next')) GROUP BY attname HAVING count(*) < 2)"
)


def partitions_of(connection: Connection[TupleRow], table: str = "memories") -> list[str]:
    """The names of the partitions of a table; none of one that is not partitioned."""
    return [name for (name,) in connection.execute(_PARTITIONS, (table,)).fetchall()]


def is_like_memories(connection: Connection[TupleRow]) -> bool:
    """Whether there is a second table that has the columns of `memories`."""
    return connection.execute(_IS_LIKE_MEMORIES).fetchone() == (True,)
