"""The store: what Mem0 keeps in PostgreSQL, laid out so that all of one user's memories can be ranked exactly.

Mem0's own pgvector store filters an index over everybody's vectors afterwards and finds next to nothing of one user
among many. Here every search names its user, and what ranks that user's memories is read as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mem0.vector_stores.base import VectorStoreBase
from mem0.vector_stores.pgvector import OutputData, _build_filter_conditions
from psycopg import Cursor, sql
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb
from psycopg_pool import ConnectionPool

from services.long_term_memory.postgres.reader import ColumnReader
from services.long_term_memory.postgres.rows import (
    UPDATE,
    insert_memories,
    kept,
    literal,
    memory_row,
    memory_rows,
)

# A memory as Mem0 knows it: its payload whole, as it was inserted.
_AS_MEM0 = (
    "SELECT m.number, m.id, m.vector, m.user_number, m.source, m.said_at,"
    " m.payload || jsonb_build_object('data', m.content, 'user_id', u.user_id) AS payload"
    " FROM memories m JOIN users u ON u.number = m.user_number"
)
_OF_USER = sql.SQL("user_number = (SELECT number FROM users WHERE user_id = %s)")


class MemoryStore(VectorStoreBase):  # type: ignore[misc]  # Mem0 has no types
    """Memories in PostgreSQL. Mem0 calls the methods of its base class; the others are `MemoryService`'s."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self.conversations = ColumnReader(pool)

    def payloads(self, user_id: str, numbers: Sequence[int]) -> dict[int, OutputData]:
        """The user's memories of these numbers, by number; `source`, `timestamp` and `meta` are in every payload."""
        with self._pool.connection() as connection:
            rows = connection.execute(
                sql.SQL(
                    "SELECT number, id,"
                    " jsonb_build_object('timestamp', extract(epoch FROM said_at), 'meta', '{{}}'::jsonb)"
                    " || payload || jsonb_build_object('source', source)"
                    " FROM ({}) AS m WHERE {} AND number = ANY(%s)"
                ).format(sql.SQL(_AS_MEM0), _OF_USER),
                (user_id, list(numbers)),
            ).fetchall()
        return {row[0]: OutputData(id=str(row[1]), score=None, payload=row[2]) for row in rows}

    def insert(
        self,
        vectors: Sequence[Sequence[float]],
        payloads: Sequence[dict[str, Any]] | None = None,
        ids: Sequence[str] | None = None,
    ) -> set[str]:
        """Keep memories; one whose id is there already stays as it was.

        Args:
            payloads: Mem0's, with at least `data` and `user_id`, and where known `source`, `timestamp` in seconds
                since 1970, and `session_id`.

        Returns:
            The ids that are new.
        """
        with self.transaction() as cursor:
            return insert_memories(cursor, memory_rows(ids or [], vectors, payloads or []))

    @contextmanager
    def transaction(self) -> Iterator[Cursor[TupleRow]]:
        """A cursor whose statements happen together or not at all."""
        with self._pool.connection() as connection, connection.transaction(), connection.cursor() as cursor:
            yield cursor

    def search(
        self, query: str, vectors: Sequence[float], top_k: int = 5, filters: dict[str, Any] | None = None
    ) -> list[OutputData]:
        """The user's nearest memories by meaning alone, exactly: what Mem0 compares new facts with."""
        where, values = _where(filters)
        with self._pool.connection() as connection:
            rows = connection.execute(
                sql.SQL(
                    "SELECT id, 1 - (vector <=> %s::halfvec), payload FROM ({}) AS m WHERE {} ORDER BY 2 DESC LIMIT %s"
                ).format(sql.SQL(_AS_MEM0), where),
                (literal(vectors), *values, top_k),
            ).fetchall()
        return [OutputData(id=str(row[0]), score=max(0.0, row[1]), payload=row[2]) for row in rows]

    def get(self, vector_id: str) -> OutputData | None:
        """One memory, or None."""
        with self._pool.connection() as connection:
            row = connection.execute(
                sql.SQL("SELECT id, payload FROM ({}) AS m WHERE id = %s").format(sql.SQL(_AS_MEM0)), (vector_id,)
            ).fetchone()
        return OutputData(id=str(row[0]), score=None, payload=row[1]) if row else None

    def list(self, filters: dict[str, Any] | None = None, top_k: int | None = 100) -> list[list[OutputData]]:
        """The user's memories, oldest first, in the extra list that Mem0 unwraps."""
        where, values = _where(filters)
        with self._pool.connection() as connection:
            rows = connection.execute(
                sql.SQL("SELECT id, payload FROM ({}) AS m WHERE {} ORDER BY number LIMIT %s").format(
                    sql.SQL(_AS_MEM0), where
                ),
                (*values, top_k),
            ).fetchall()
        return [[OutputData(id=str(row[0]), score=None, payload=row[1]) for row in rows]]

    def update(
        self, vector_id: str, vector: Sequence[float] | None = None, payload: dict[str, Any] | None = None
    ) -> None:
        """Replace a memory's vector, its payload, or both; its user stays."""
        with self._pool.connection() as connection:
            if payload is not None and vector is not None:
                connection.execute(UPDATE, memory_row(vector_id, vector, payload))
            elif vector is not None:
                connection.execute(
                    "UPDATE memories SET vector = %s::halfvec WHERE id = %s", (literal(vector), vector_id)
                )
            elif payload is not None:
                connection.execute("UPDATE memories SET payload = %s WHERE id = %s", (Jsonb(kept(payload)), vector_id))

    def delete(self, vector_id: str) -> None:
        """Forget one memory."""
        with self._pool.connection() as connection:
            connection.execute("DELETE FROM memories WHERE id = %s", (vector_id,))

    def reset(self) -> None:
        """Forget everybody's memories."""
        with self._pool.connection() as connection:
            connection.execute("TRUNCATE memories")

    def create_col(self, name: str, vector_size: int, distance: str) -> None:
        """The table is there: migrations make it."""

    def list_cols(self) -> Sequence[str]:
        """The one collection there is."""
        return ["memories"]

    def delete_col(self) -> None:
        """Forget everybody's memories."""
        self.reset()

    def col_info(self) -> dict[str, Any]:
        """How many memories there are, about."""
        with self._pool.connection() as connection:
            row = connection.execute(
                "SELECT greatest(reltuples, 0)::bigint, pg_total_relation_size(oid)"
                " FROM pg_class WHERE oid = 'memories'::regclass"
            ).fetchone()
        return {"name": "memories", "count": row and row[0], "size": row and row[1]}


def _where(filters: dict[str, Any] | None) -> tuple[sql.Composable, list[Any]]:
    """Mem0's filters as SQL. There is no reading without a user, and a user is a value, never an operator."""
    user_id = (filters or {}).get("user_id")
    if not isinstance(user_id, str) or user_id == "*":
        raise ValueError("filters must name one user_id")
    conditions, values = _build_filter_conditions({k: v for k, v in (filters or {}).items() if k != "user_id"})
    others = sql.SQL("".join(f" AND ({condition})" for condition in conditions))
    return sql.Composed([_OF_USER, others]), [user_id, *values]
