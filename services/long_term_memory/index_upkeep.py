"""Upkeep of indexes: those whose pages are half full are built anew, one at a time, beside searches and writers.

Memories come one by one, each into the middle of an index, which leaves its pages half full where users talk much. How
large an index should be is estimated from its rows and their mean size: nothing of it is read.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import psycopg
import structlog
from psycopg import Connection, sql
from psycopg.rows import TupleRow

from services.long_term_memory.postgres.layout import MEMORIES_TABLES
from services.long_term_memory.postgres.pool import APPLICATION_NAME, database_errors

#: Between two passes, each of which builds one index at most.
INTERVAL_S: Final = 1_800.0
#: Smaller indexes are in memory, whatever their pages hold.
MIN_BYTES: Final = 32 << 20
#: Larger ones take longer than a pass may: of a partition that is some ten million memories.
MAX_BYTES: Final = 16 << 30
#: One that is larger than estimated after it was built is left until it has grown so much.
GROWTH: Final = 1.5
#: The key of the advisory lock of the process that does it: "indexes" in ASCII.
UPKEEP_LOCK: Final = 0x69_6E6465786573

# A page has 8,152 bytes for rows, of which a new index leaves a tenth free; a row has 12 beside its columns, some of
# which are aligned. Without statistics of the table there is no estimate.
_SIZES = (
    "SELECT name, bytes, ceil(rows / greatest(floor(8152 * 0.9 / (width + 16)), 1)) * 8192 FROM ("  # noqa: S608 - constants
    "SELECT indexrelid::regclass::text AS name, pg_relation_size(indexrelid) AS bytes, own.reltuples AS rows,"
    " (SELECT sum(avg_width) FROM pg_attribute JOIN pg_stats USING (attname) WHERE attrelid = indexrelid"
    " AND schemaname = nspname AND tablename = pg_class.relname"
    " HAVING count(*) = own.relnatts) AS width"
    " FROM pg_index JOIN pg_class ON pg_class.oid = indrelid JOIN pg_class own ON own.oid = indexrelid"
    " JOIN pg_namespace ON pg_namespace.oid = pg_class.relnamespace"
    f" WHERE {MEMORIES_TABLES} AND own.relkind = 'i' AND indisvalid) AS sizes"
    " WHERE rows > 0 AND width IS NOT NULL AND bytes BETWEEN %s AND %s ORDER BY bytes DESC"
)
# What a rebuild leaves that was ended. No process makes one now: that would be an index that is being built.
_LEFT_OVER = (
    "SELECT indexrelid::regclass::text FROM pg_index JOIN pg_class ON pg_class.oid = indrelid"  # noqa: S608 - constants
    f" WHERE {MEMORIES_TABLES} AND NOT indisvalid AND indexrelid::regclass::text ~ '_cc(new|old)[0-9]*$'"
    " AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index)"
)

log = structlog.get_logger()


class IndexSize(NamedTuple):
    """The size of an index in bytes, and what it would be if it were built anew."""

    name: str
    size: int
    estimate: float


class IndexUpkeep:
    """Builds indexes of `memories` anew that are larger than they would be by a factor.

    Args:
        factor: 0 for never.
        min_bytes: of an index.
    """

    def __init__(self, database_url: str, factor: float, min_bytes: int = MIN_BYTES) -> None:
        self._database_url = database_url
        self._factor = factor
        self._min_bytes = min_bytes
        self._built: dict[str, int] = {}

    def run_once(self) -> str | None:
        """Build the index anew that takes the most room for nothing, unless another process is at it; its name.

        Raises:
            Unavailable: the database does not answer.
            psycopg.Error: it was not built, as where the disk has no room for it.
        """
        if not self._factor:
            return None
        with database_errors():
            connected = psycopg.connect(self._database_url, autocommit=True, application_name=APPLICATION_NAME)
        with connected as connection:
            connection.execute("SET statement_timeout = 0")
            if connection.execute("SELECT pg_try_advisory_lock(%s)", (UPKEEP_LOCK,)).fetchone() != (True,):
                return None
            # `ltm partition` and `ltm reembed` make all of them anew.
            if connection.execute("SELECT to_regclass('memories_next')").fetchone() != (None,):
                return None
            return self._build_one(connection)

    def _build_one(self, connection: Connection[TupleRow]) -> str | None:
        _drop_left_over(connection)
        rows = connection.execute(_SIZES, (self._min_bytes, MAX_BYTES)).fetchall()
        sizes = [IndexSize(name, size, float(estimate)) for name, size, estimate in rows]
        bloated = [
            index
            for index in sizes
            if index.size > self._factor * index.estimate and index.size > GROWTH * self._built.get(index.name, 0)
        ]
        if not bloated:
            return None
        worst = max(bloated, key=lambda index: index.size - index.estimate)
        connection.execute("SET max_parallel_maintenance_workers = 0")  # one core, the others are for searches
        try:
            connection.execute(sql.SQL("REINDEX INDEX CONCURRENTLY {}").format(sql.SQL(worst.name)))
        except psycopg.Error:
            if not connection.closed:
                _drop_left_over(connection)  # now: it takes room, and writers write to it
            raise
        [(size,)] = connection.execute("SELECT pg_relation_size(to_regclass(%s))", (worst.name,)).fetchall()
        self._built[worst.name] = size
        log.info("index_rebuilt", index=worst.name, bytes_before=worst.size, bytes=size)
        return worst.name


def _drop_left_over(connection: Connection[TupleRow]) -> None:
    for (name,) in connection.execute(_LEFT_OVER).fetchall():
        connection.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.SQL(name)))
