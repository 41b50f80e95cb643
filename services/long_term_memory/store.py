"""The store: what Mem0 keeps in PostgreSQL, laid out so that all of one user's memories can be ranked exactly.

Mem0's own pgvector store filters an index over everybody's vectors afterwards and finds next to nothing of one user
among many. Here every search names its user, and one index holds what ranking needs of that user, in the order of the
conversation: a search reads a stretch of it and nothing else, however many other users there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from mem0.vector_stores.base import VectorStoreBase
from mem0.vector_stores.pgvector import OutputData, _build_filter_conditions
from numpy.typing import NDArray
from psycopg import Cursor, sql
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb
from psycopg_pool import ConnectionPool

from services.long_term_memory.rows import (
    HEAD,
    UPDATE,
    hashed,
    insert_memories,
    kept,
    literal,
    memory_row,
    memory_rows,
)

#: One in so many memories is in a sample that has an index of its own; `migrations` has the same number. It is odd, so
#: that where the user and the AI take turns, neither is left out.
SAMPLE = 7

_POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC).timestamp()

# What ranks memories, each packed into one value: a heavy user's 50,000 rows cost more to take apart in Python than to
# find in PostgreSQL. The name, what one memory's part is, and numpy's type for it.
_PACKED: tuple[tuple[str, str, np.dtype[Any]], ...] = (
    ("head", "head", HEAD),
    ("terms", "terms", np.dtype("<u4")),
    ("distance", "float8send(coalesce(vector <=> %(vector)s::halfvec, 'NaN'))", np.dtype(">f8")),
)
_COLUMNS = (
    "SELECT "  # noqa: S608 - constants
    + ", ".join(f"coalesce(string_agg({pack}, ''::bytea), ''::bytea) AS {name}" for name, pack, _ in _PACKED)
    + " FROM (SELECT * FROM memories WHERE user_number = (SELECT number FROM users WHERE user_id = %(user)s){}"
    " ORDER BY session, said_at, number LIMIT %(most)s) AS conversation"
)
_OF_RUNS = (
    "SELECT run.* FROM unnest("  # noqa: S608 - constants
    "%(first_session)s::bigint[], %(first_said_at)s::float8[], %(first_number)s::bigint[],"
    " %(end_session)s::bigint[], %(end_said_at)s::float8[], %(end_number)s::bigint[])"
    " WITH ORDINALITY AS bounds (session1, said_at1, number1, session2, said_at2, number2, place), LATERAL ("
    + _COLUMNS.replace(
        "{}",
        " AND (session, said_at, number) >= (session1, to_timestamp(said_at1), number1)"
        " AND (session, said_at, number) < (session2, to_timestamp(said_at2), number2){}",
    )
    + ") AS run ORDER BY place"
)
# A memory as Mem0 knows it: its payload whole, as it was inserted.
_AS_MEM0 = (
    "SELECT m.number, m.id, m.vector, m.user_number, m.source, m.said_at,"
    " m.payload || jsonb_build_object('data', m.content, 'user_id', u.user_id) AS payload"
    " FROM memories m JOIN users u ON u.number = m.user_number"
)
_OF_USER = sql.SQL("user_number = (SELECT number FROM users WHERE user_id = %s)")


@dataclass(frozen=True, slots=True)
class Conversation:
    """All memories of one user as columns, in the order of the conversation: sessions whole, turns as they came.

    Every array has one entry a memory, but `terms`, which holds the hashed terms of all of them in a row: `length[i]`
    of them belong to memory i.
    """

    number: NDArray[np.int64]
    session: NDArray[np.int64]
    timestamp: NDArray[np.float64]  # seconds since 1970
    from_ai: NDArray[np.bool_]
    asks: NDArray[np.int64]
    script: NDArray[np.int64]
    speaker: NDArray[np.int64]
    fingerprint: NDArray[np.int64]
    length: NDArray[np.int64]
    terms: NDArray[np.uint32]
    cosine: NDArray[np.float64]  # to the query; NaN where it was not embedded

    def __len__(self) -> int:
        return len(self.number)


@dataclass(frozen=True, slots=True)
class Window:
    """Which part of a conversation is read; without anything said, all of it."""

    session_id: str | None = None
    since: float | None = None  # seconds since 1970
    until: float | None = None

    def conditions(self) -> str:
        """What they are in SQL."""
        conditions = {
            "session_id": " AND session = %(session)s",
            "since": " AND said_at >= to_timestamp(%(since)s)",
            "until": " AND said_at <= to_timestamp(%(until)s)",
        }
        return "".join(condition for name, condition in conditions.items() if getattr(self, name) is not None)

    def values(self) -> dict[str, Any]:
        """What those conditions name."""
        session = None if self.session_id is None else hashed(self.session_id)
        return {"session": session, "since": self.since, "until": self.until}


#: A place in a conversation: session, seconds since 1970, number.
Place = tuple[int, float, int]


class MemoryStore(VectorStoreBase):  # type: ignore[misc]  # Mem0 has no types
    """Memories in PostgreSQL. Mem0 calls the methods of its base class, `MemoryService` the first two."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._beside = ThreadPoolExecutor(thread_name_prefix="second-connection")

    def conversation(
        self,
        user_id: str,
        vector: Sequence[float] | NDArray[np.float32] | None,
        window: Window = Window(),
        *,
        most: int | None = None,
        sample: bool = False,
    ) -> Conversation:
        """Everything that ranks the user's memories, with their cosines to the query's `vector`; None gives NaN.

        Args:
            window: which of them are read.
            most: no more than so many, the first of the conversation.
            sample: one in `SAMPLE` of them.
        """
        conditions = (f" AND number %% {SAMPLE} = 0" if sample else "") + window.conditions()
        values = {"user": user_id, "vector": _optional(vector), "most": most, **window.values()}
        return _conversation(self._fetch(sql.SQL(_COLUMNS.replace("{}", conditions)), values))

    def runs(
        self,
        user_id: str,
        vector: Sequence[float] | NDArray[np.float32] | None,
        bounds: Sequence[tuple[Place, Place]],
        window: Window = Window(),
    ) -> Conversation:
        """The same for parts of the conversation: from a place up to another one, which is not read, and so on.

        The second half of them is read at the same time on a connection of its own.
        """
        values = {"user": user_id, "vector": _optional(vector), "most": None, **window.values()}
        statement = sql.SQL(_OF_RUNS.replace("{}", window.conditions()))
        half = (len(bounds) + 1) // 2
        later = self._beside.submit(self._fetch, statement, values | _edges(bounds[half:]))
        return _conversation([*self._fetch(statement, values | _edges(bounds[:half])), *later.result()])

    def _fetch(self, statement: sql.SQL, values: dict[str, Any]) -> Sequence[TupleRow]:
        with self._pool.connection() as connection:
            return connection.execute(statement, values, binary=True).fetchall()

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


def _conversation(parts: Sequence[TupleRow]) -> Conversation:
    """The columns that PostgreSQL has packed, one row for each part of the conversation."""
    raw = {
        name: np.frombuffer(b"".join(part[column] for part in parts), dtype)
        for column, (name, _, dtype) in enumerate(_PACKED)
    }
    head = raw["head"]
    numbers = ("number", "session", "asks", "script", "length", "speaker", "fingerprint")
    return Conversation(
        timestamp=head["said_at"] / 1e6 + _POSTGRES_EPOCH,
        from_ai=head["from_ai"],
        **{name: head[name].astype(np.int64) for name in numbers},
        terms=raw["terms"],
        cosine=1.0 - raw["distance"].astype(np.float64),
    )


def _edges(bounds: Sequence[tuple[Place, Place]]) -> dict[str, Any]:
    """What `_OF_RUNS` names: a list for each part of the places."""
    names = [f"{end}_{name}" for end in ("first", "end") for name in ("session", "said_at", "number")]
    return {name: [(*first, *end)[i] for first, end in bounds] for i, name in enumerate(names)}


def _optional(vector: Sequence[float] | NDArray[np.float32] | None) -> str | None:
    return None if vector is None else literal(vector)


def _where(filters: dict[str, Any] | None) -> tuple[sql.Composable, list[Any]]:
    """Mem0's filters as SQL. There is no reading without a user, and a user is a value, never an operator."""
    user_id = (filters or {}).get("user_id")
    if not isinstance(user_id, str) or user_id == "*":
        raise ValueError("filters must name one user_id")
    conditions, values = _build_filter_conditions({k: v for k, v in (filters or {}).items() if k != "user_id"})
    others = sql.SQL("".join(f" AND ({condition})" for condition in conditions))
    return sql.Composed([_OF_USER, others]), [user_id, *values]
