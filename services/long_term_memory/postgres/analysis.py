"""Renewal of `terms` and `traits`, which are computed from a memory's text, where an earlier release has computed them.

In batches, each a transaction: searches and writers go on meanwhile, and a process that is killed leaves its work.
"""

from __future__ import annotations

from typing import Final

from psycopg import Connection, Cursor
from psycopg.rows import TupleRow

from services.long_term_memory.postgres.pool import migration_lock
from services.long_term_memory.postgres.rows import ANALYSIS, analyse

#: Memories in a batch: some 0.2 s, far below the 10 s after which the pool's connections end a statement.
BATCH_ROWS: Final = 1_000

# `analysis < 2` is the condition of the index memories_outdated.
_OUTDATED: Final = "FROM memories WHERE analysis < 2 ORDER BY number LIMIT %s"
_UPDATE: Final = (
    "UPDATE memories SET terms = new.terms, traits = new.traits, analysis = %s"
    " FROM unnest(%s::bigint[], %s::bigint[], %s::bytea[], %s::bytea[]) AS new (number, user_hash, terms, traits)"
    " WHERE memories.number = new.number AND memories.user_hash = new.user_hash"  # names the partition
)


def renew_analyses(connection: Connection[TupleRow]) -> int:
    """Renew what is outdated, and return how many memories were; one process does it, the others wait for it."""
    if not _any_outdated(connection):
        return 0
    renewed = 0
    with migration_lock(connection):
        while batch := _renew_batch(connection):
            renewed += batch
    return renewed


def _any_outdated(connection: Connection[TupleRow]) -> bool:
    with connection.transaction():
        return connection.execute(f"SELECT number {_OUTDATED}", (1,)).fetchone() is not None


def _renew_batch(connection: Connection[TupleRow]) -> int:
    with connection.transaction(), connection.cursor() as cursor:
        return _renew(cursor)


def _renew(cursor: Cursor[TupleRow]) -> int:
    rows = cursor.execute(
        "SELECT number, user_hash, content, source = 'ai', payload ? 'request_id', payload -> 'speaker'"
        f" {_OUTDATED} FOR UPDATE",
        (BATCH_ROWS,),
    ).fetchall()
    if rows:
        analyses = [
            analyse(content, from_ai=from_ai, added=added, speaker=speaker)
            for _, _, content, from_ai, added, speaker in rows
        ]
        terms, traits = zip(*analyses, strict=True)
        numbers, hashes, *_ = zip(*rows, strict=True)
        cursor.execute(_UPDATE, (ANALYSIS, list(numbers), list(hashes), list(terms), list(traits)))
    return len(rows)
