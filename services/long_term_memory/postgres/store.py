"""MemoryStore: Mem0's vector store on PostgreSQL, laid out so that all memories of one user can be ranked exactly.

Mem0's own pgvector store searches an approximate index over the vectors of all users and filters the result: of one
user among many it finds next to nothing. Here every search is of one user, and reads all columns of that user's
memories.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from keepsake_client.fields import MAX_ID_BYTES
from mem0.vector_stores.base import VectorStoreBase
from mem0.vector_stores.pgvector import OutputData, _build_filter_conditions
from psycopg import sql
from psycopg.types.json import Jsonb
from psycopg_pool import ConnectionPool

from services.long_term_memory.postgres.facts import ABOUT_FACTS
from services.long_term_memory.postgres.layout import MEMORIES_BYTES, MEMORIES_TABLES
from services.long_term_memory.postgres.pool import PREPARED, is_partitioned
from services.long_term_memory.postgres.reader import ColumnReader
from services.long_term_memory.postgres.rows import (
    UPDATE,
    Inserted,
    insert_memories,
    memory_row,
    memory_rows,
    stored_events,
    stored_payload,
)
from services.long_term_memory.postgres.scope import MESSAGES, OWNER_NUMBER, OWNERS, USER_HASH, Scope

# A memory as Mem0 has it: with its whole payload, as it was inserted.
_AS_MEM0 = (
    "SELECT m.number, m.id, m.vector, m.user_number, m.source, m.said_at,"
    " m.payload || jsonb_build_object('data', m.content, 'user_id', u.user_id)"
    " || CASE u.agent_id WHEN '' THEN '{}' ELSE jsonb_build_object('agent_id', u.agent_id) END"
    " || CASE WHEN m.expires_at IS NULL THEN '{}'"
    " ELSE jsonb_build_object('expires_at', extract(epoch FROM m.expires_at)) END AS payload"
    " FROM memories m JOIN users u ON u.number = m.user_number"
)
# Mem0's own calls name a user, and mean that user's memories of all characters.
_OF_USER = sql.SQL("user_number = ANY(ARRAY(SELECT number FROM users WHERE user_id = %s))")
_OF_OWNERS = "memories m JOIN users ON users.number = m.user_number AND users.user_hash = m.user_hash"
_PAYLOAD = "m.number, id::text, payload, content, source, extract(epoch FROM said_at)::float8"
_PAYLOADS = (
    f"SELECT {_PAYLOAD}, user_id, agent_id{{facts}}"  # noqa: S608 - constants
    f" FROM {_OF_OWNERS} WHERE {OWNERS} AND m.number = ANY(%(numbers)s::bigint[])"
)
# Of one owner, as most searches are: 0.4 of the time, without the join and the lists of its parameters.
_PAYLOADS_OF_OWNER = (
    f"SELECT {_PAYLOAD}, %(user)s, %(agent)s FROM memories m"  # noqa: S608 - constants
    f" WHERE user_number = {OWNER_NUMBER}{{hash}} AND m.number = ANY(%(numbers)s::bigint[])"
)
_BRIEFS = (
    "SELECT m.number, id::text, left(content, 1001), source, extract(epoch FROM said_at)::float8,"  # noqa: S608 - constants
    f" left(payload ->> 'session_id', {MAX_ID_BYTES}), left(payload ->> 'message_id', {MAX_ID_BYTES}),"
    " kind <> 'message'"
    f" FROM {_OF_OWNERS} WHERE {OWNERS} AND m.number = ANY(%(numbers)s::bigint[])"
)
_ARRIVALS = (
    f"SELECT m.number, (payload ->> 'arrived_at')::float8 FROM {_OF_OWNERS}"  # noqa: S608 - constants
    f" WHERE {OWNERS} AND m.number = ANY(%(numbers)s) AND payload ->> 'arrived_at' IS NOT NULL"
)
_LIKENESS = (
    "SELECT m.number,"  # noqa: S608 - constants
    f" 1 - nullif(vector <=> (SELECT vector FROM {_OF_OWNERS} WHERE {OWNERS} AND m.number = %(first)s), 'NaN')"
    f" FROM {_OF_OWNERS} WHERE {OWNERS} AND m.number = ANY(%(numbers)s)"
)


class Brief(NamedTuple):
    """A memory, without what its publisher sent with it.

    Args:
        content: its first 1,001 characters.
        timestamp: when it was said, in seconds since 1970.
        session_id, message_id: their first 2,600 characters: a session's id may be as long as a message.
    """

    id: str
    content: str
    source: str
    timestamp: float
    session_id: str | None
    message_id: str | None
    is_fact: bool


class MemoryStore(VectorStoreBase):  # type: ignore[misc]  # Mem0 has no types
    """Memories in PostgreSQL. Mem0 calls the methods of its base class, `MemoryService` the others."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self.columns = ColumnReader(pool)

    def payloads(self, scope: Scope, numbers: Sequence[int]) -> dict[int, OutputData]:
        """The memories of a scope that have these numbers, by number.

        Every payload has `data`, the content, `source`, `timestamp`, `meta`, `user_id` and `agent_id`, encoded.
        Facts have `fact` too, as `stored_memory` gives it.
        """
        with self._pool.connection() as connection:
            # As text: psycopg looks at each number of a list for the smallest type that holds them all.
            given = "{" + ",".join(map(str, numbers)) + "}"
            owner = scope.owner
            if owner is None or scope.kinds != MESSAGES:
                about = "" if scope.kinds == MESSAGES else f", {ABOUT_FACTS.format(memory='m')}"
                statement = _PAYLOADS.replace("{facts}", about)
                found = connection.execute(statement, {**scope.values, "numbers": given}, binary=True)
            else:
                condition = f" AND user_hash = {USER_HASH}" if is_partitioned(connection) else ""
                statement = _PAYLOADS_OF_OWNER.replace("{hash}", condition)
                values = {**owner._asdict(), "numbers": given}
                found = connection.execute(statement, values, binary=True, prepare=PREPARED)
            rows = found.fetchall()
        return {number: stored_memory(*row) for number, *row in rows}

    def briefs(self, scope: Scope, numbers: Sequence[int]) -> dict[int, Brief]:
        """The memories of a scope that have these numbers, by number, in brief."""
        if not numbers:
            return {}
        given = "{" + ",".join(map(str, numbers)) + "}"
        with self._pool.connection() as connection:
            rows = connection.execute(_BRIEFS, {**scope.values, "numbers": given}, binary=True).fetchall()
        return {number: Brief(*row) for number, *row in rows}

    def arrivals(self, scope: Scope, numbers: Sequence[int]) -> dict[int, float]:
        """When the memories of a scope that have these numbers arrived, of those that are dated otherwise."""
        with self._pool.connection() as connection:
            return dict(connection.execute(_ARRIVALS, {**scope.values, "numbers": list(numbers)}).fetchall())

    def likeness(self, scope: Scope, numbers: Sequence[int]) -> list[float]:
        """The cosine of each of these memories to the first of them; 0 for one that was deleted or has none."""
        values = {**scope.values, "numbers": list(numbers), "first": numbers[0]}
        with self._pool.connection() as connection:
            cosines: dict[int, float | None] = dict(connection.execute(_LIKENESS, values).fetchall())
        return [cosines.get(number) or 0.0 for number in numbers]

    def insert(
        self,
        vectors: Sequence[Sequence[float]],
        payloads: Sequence[dict[str, Any]] | None = None,
        ids: Sequence[str] | None = None,
    ) -> set[str]:
        """Insert memories; idempotent: one whose id exists is left unchanged.

        Args:
            payloads: Mem0's, with at least `data` and `user_id`, and where known `source`, `timestamp` in seconds
                since 1970, and `session_id`.

        Returns:
            The ids that are new.
        """
        return self.insert_rows(memory_rows(ids or [], vectors, payloads or [])).new

    def insert_rows(self, rows: Sequence[dict[str, Any]], *, history: bool = False, extract: bool = False) -> Inserted:
        """`insert_memories` on a connection of the pool."""
        with self._pool.connection() as connection:
            return insert_memories(connection, rows, history=history, extract=extract)

    def stored_events(self, ids: Sequence[str]) -> set[tuple[str, str, str]]:
        """`stored_events` on a connection of the pool."""
        with self._pool.connection() as connection:
            return stored_events(connection, ids)

    def search(
        self, query: str, vectors: Sequence[float], top_k: int = 5, filters: dict[str, Any] | None = None
    ) -> list[OutputData]:
        """The exact nearest neighbours by cosine among the user's memories: Mem0 compares new facts with them."""
        where, values = _where(filters)
        with self._pool.connection() as connection:
            rows = connection.execute(
                sql.SQL(
                    "SELECT id, 1 - (vector <=> %s::halfvec), payload FROM ({}) AS m WHERE {} ORDER BY 2 DESC LIMIT %s"
                ).format(sql.SQL(_AS_MEM0), where),
                (np.asarray(vectors, np.float32), *values, top_k),
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
        """The user's memories in the order of insertion, in the outer list that Mem0 unwraps."""
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
        """Replace a memory's vector, its payload, or both, but never its user."""
        with self._pool.connection() as connection:
            if payload is not None and vector is not None:
                connection.execute(UPDATE, memory_row(vector_id, vector, payload))
            elif vector is not None:
                connection.execute(
                    "UPDATE memories SET vector = %s::halfvec WHERE id = %s",
                    (np.asarray(vector, np.float32), vector_id),
                )
            elif payload is not None:
                connection.execute(
                    "UPDATE memories SET payload = %s WHERE id = %s", (Jsonb(stored_payload(payload)), vector_id)
                )

    def delete(self, vector_id: str) -> None:
        """Delete one memory."""
        with self._pool.connection() as connection:
            connection.execute("DELETE FROM memories WHERE id = %s", (vector_id,))

    def reset(self) -> None:
        """Delete the memories of all users."""
        with self._pool.connection() as connection:
            connection.execute("TRUNCATE memories")

    def create_col(self, name: str, vector_size: int, distance: str) -> None:
        """Do nothing: migrations create the table."""

    def list_cols(self) -> Sequence[str]:
        """The name of the only collection."""
        return ["memories"]

    def delete_col(self) -> None:
        """Delete the memories of all users."""
        self.reset()

    def col_info(self) -> dict[str, Any]:
        """PostgreSQL's estimate of the number of memories, and their size in bytes."""
        with self._pool.connection() as connection:
            row = connection.execute(
                f"SELECT sum(greatest(reltuples, 0)) FILTER (WHERE relkind = 'r'), {MEMORIES_BYTES}"  # noqa: S608 - constants
                f" FROM pg_class WHERE {MEMORIES_TABLES}"
            ).fetchone()
        return {"name": "memories", "count": row and int(row[0]), "size": row and row[1]}


def stored_memory(
    memory_id: str,
    payload: dict[str, Any],
    content: str,
    source: str,
    said_at: float,
    user_id: str,
    agent_id: str,
    fact: dict[str, Any] | None = None,
) -> OutputData:
    """A memory as Mem0 has it, of columns of its row and of its owner's.

    Args:
        said_at: in seconds since 1970.
        fact: of a fact, as `ABOUT_FACTS` gives it.
    """
    columns = {"data": content, "source": source, "user_id": user_id, "agent_id": agent_id, "fact": fact}
    return OutputData(id=memory_id, score=None, payload={"timestamp": said_at, "meta": {}, **payload, **columns})


def _where(filters: dict[str, Any] | None) -> tuple[sql.Composable, list[Any]]:
    """Mem0's filters as SQL conditions and their parameters.

    Raises:
        ValueError: they name no user, or an operator in place of one.
    """
    user_id = (filters or {}).get("user_id")
    if not isinstance(user_id, str) or user_id == "*":
        raise ValueError("filters must name one user_id")
    conditions, values = _build_filter_conditions({k: v for k, v in (filters or {}).items() if k != "user_id"})
    others = sql.SQL("".join(f" AND ({condition})" for condition in conditions))
    return sql.Composed([_OF_USER, others]), [user_id, *values]
