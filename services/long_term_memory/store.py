"""The store: what Mem0 keeps in PostgreSQL, laid out so that all of one user's memories can be ranked exactly.

Mem0's own pgvector store filters an index over everybody's vectors afterwards and finds next to nothing of one user
among many. Here every search names its user, and one index holds what ranking needs of that user, in the order of the
conversation: a search reads a stretch of it and nothing else, however many other users there are.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from operator import itemgetter
from typing import Any

import numpy as np
from mem0.vector_stores.base import VectorStoreBase
from mem0.vector_stores.pgvector import OutputData, _build_filter_conditions
from numpy.typing import NDArray
from psycopg import Cursor, sql
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb
from psycopg_pool import ConnectionPool

from services.long_term_memory import speech, words

#: Of a longer memory, the first so many terms can be found by word: an index row of PostgreSQL holds 2,704 bytes.
MOST_TERMS = 400

#: What is judged of a memory's text once, when it is stored, as the column `traits` holds it.
TRAITS = np.dtype(
    [("from_ai", "?"), ("asks", "i1"), ("script", "i1"), ("length", "<u2"), ("speaker", "<i8"), ("fingerprint", "<i8")]
)

_POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC).timestamp()

# The columns that rank a memory, each packed into one value: a heavy user's 50,000 rows cost more to take apart in
# Python than to find in PostgreSQL. The name, the function that packs one, and numpy's type for it.
_PACKED: tuple[tuple[str, str, np.dtype[Any]], ...] = (
    ("number", "int8send(number)", np.dtype(">i8")),
    ("session", "int8send(session)", np.dtype(">i8")),
    ("said_at", "timestamptz_send(said_at)", np.dtype(">i8")),
    ("traits", "traits", TRAITS),
    ("terms", "terms", np.dtype("<u4")),
    ("distance", "float8send(coalesce(vector <=> %(vector)s::halfvec, 'NaN'))", np.dtype(">f8")),
)
_COLUMNS = sql.SQL(
    "SELECT "  # noqa: S608 - constants
    + ", ".join(f"coalesce(string_agg({pack}, ''::bytea), ''::bytea)" for _, pack, _ in _PACKED)
    + " FROM (SELECT * FROM memories WHERE user_number = (SELECT number FROM users WHERE user_id = %(user)s)"
    " ORDER BY session, said_at, number) AS conversation"
)
# A memory as Mem0 knows it: its payload whole, as it was inserted.
_AS_MEM0 = (
    "SELECT m.number, m.id, m.vector, u.user_id,"
    " m.payload || jsonb_build_object('data', m.content, 'user_id', u.user_id) AS payload"
    " FROM memories m JOIN users u ON u.number = m.user_number"
)


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


class MemoryStore(VectorStoreBase):  # type: ignore[misc]  # Mem0 has no types
    """Memories in PostgreSQL. Mem0 calls the methods of its base class, `MemoryService` the first two."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

    def conversation(self, user_id: str, vector: Sequence[float] | NDArray[np.float32] | None) -> Conversation:
        """Everything that ranks the user's memories, with their cosines to the query's `vector`; None gives NaN."""
        values = {"user": user_id, "vector": None if vector is None else _literal(vector)}
        with self._pool.connection() as connection:
            row = connection.execute(_COLUMNS, values, binary=True).fetchone()
        assert row is not None  # noqa: S101 - an aggregate always has one row
        raw = {name: np.frombuffer(data, dtype) for (name, _, dtype), data in zip(_PACKED, row, strict=True)}
        traits = raw["traits"]
        return Conversation(
            number=raw["number"].astype(np.int64),
            session=raw["session"].astype(np.int64),
            timestamp=raw["said_at"] / 1e6 + _POSTGRES_EPOCH,
            from_ai=traits["from_ai"],
            **{name: traits[name].astype(np.int64) for name in ("asks", "script", "length", "speaker", "fingerprint")},
            terms=raw["terms"],
            cosine=1.0 - raw["distance"].astype(np.float64),
        )

    def payloads(self, user_id: str, numbers: Sequence[int]) -> dict[int, OutputData]:
        """The user's memories of these numbers, by number."""
        with self._pool.connection() as connection:
            rows = connection.execute(
                sql.SQL("SELECT number, id, payload FROM ({}) AS m WHERE user_id = %s AND number = ANY(%s)").format(
                    sql.SQL(_AS_MEM0)
                ),
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
        rows = [memory_row(*row) for row in zip(ids or [], vectors, payloads or [], strict=True)]
        with self._pool.connection() as connection, connection.transaction(), connection.cursor() as cursor:
            return insert_memories(cursor, rows)

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
                (_literal(vectors), *values, top_k),
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
                connection.execute(_UPDATE, memory_row(vector_id, vector, payload))
            elif vector is not None:
                connection.execute(
                    "UPDATE memories SET vector = %s::halfvec WHERE id = %s", (_literal(vector), vector_id)
                )
            elif payload is not None:
                connection.execute("UPDATE memories SET payload = %s WHERE id = %s", (Jsonb(_kept(payload)), vector_id))

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


_COLUMN_NAMES = ("session", "said_at", "source", "content", "payload", "terms", "traits", "vector")
_VALUES = ", ".join(f"%({name})s" + ("::halfvec" if name == "vector" else "") for name in _COLUMN_NAMES)
_INSERT = (
    f"INSERT INTO memories (id, user_number, {', '.join(_COLUMN_NAMES)})"  # noqa: S608 - constants
    f" SELECT %(id)s, number, {_VALUES} FROM users WHERE user_id = %(user_id)s ON CONFLICT (id) DO NOTHING RETURNING id"
)
_UPDATE = f"UPDATE memories SET ({', '.join(_COLUMN_NAMES)}) = ROW ({_VALUES}) WHERE id = %(id)s"  # noqa: S608 - constants


def memory_row(memory_id: str, vector: Sequence[float], payload: dict[str, Any]) -> dict[str, Any]:
    """The columns of one memory, judged from its text once, when it is stored.

    Args:
        payload: Mem0's, as `MemoryStore.insert` takes it.
    """
    content = payload["data"]
    said_at = payload.get("timestamp")
    source = payload.get("source", "user")
    terms = hashed_terms(words.terms(content)[:MOST_TERMS])
    judged = (
        source == "ai",
        speech.asks(content),
        speech.script(content),
        len(terms),
        hashed(speech.speaker(content)),
        hashed(speech.fingerprint(content)),
    )
    return {
        "id": memory_id,
        "user_id": payload["user_id"],
        "session": hashed(payload.get("session_id") or ""),
        "said_at": datetime.now(UTC) if said_at is None else datetime.fromtimestamp(said_at, UTC),
        "source": source,
        "content": content,
        "payload": Jsonb(_kept(payload)),
        "terms": terms.tobytes(),
        "traits": np.array(judged, TRAITS).tobytes(),
        "vector": _literal(vector),
    }


def insert_memories(cursor: Cursor[TupleRow], rows: Sequence[dict[str, Any]]) -> set[str]:
    """Insert rows of `memory_row` and return the ids that are new."""
    # In order, so that two batches at once cannot wait for each other in a circle.
    users = sorted({row["user_id"] for row in rows})
    cursor.execute("INSERT INTO users (user_id) SELECT unnest(%s::text[]) ON CONFLICT DO NOTHING", (users,))
    cursor.executemany(_INSERT, sorted(rows, key=itemgetter("id")), returning=True)
    return {str(row[0]) for result in cursor.results() for row in result}


def hashed(text: str) -> int:
    """64 bits of a text's BLAKE2b, as PostgreSQL's signed bigint; 0 for the empty text."""
    if not text:
        return 0
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big", signed=True)


def hashed_terms(terms: Sequence[str]) -> NDArray[np.uint32]:
    """A CRC-32 for each term, in their order. Two terms of one user meet in one hash once in four billion pairs."""
    return np.array([zlib.crc32(term.encode("utf-8", "surrogatepass")) for term in terms], dtype="<u4")


def _kept(payload: dict[str, Any]) -> dict[str, Any]:
    # What has a column of its own is not kept twice, and Mem0's lemmas only serve its own keyword search.
    return {name: value for name, value in payload.items() if name not in {"data", "user_id", "text_lemmatized"}}


def _literal(vector: Sequence[float] | NDArray[np.float32]) -> str:
    return json.dumps(vector.tolist() if isinstance(vector, np.ndarray) else [float(x) for x in vector])


def _where(filters: dict[str, Any] | None) -> tuple[sql.Composable, list[Any]]:
    """Mem0's filters as SQL. There is no reading without a user, and a user is a value, never an operator."""
    user_id = (filters or {}).get("user_id")
    if not isinstance(user_id, str) or user_id == "*":
        raise ValueError("filters must name one user_id")
    conditions, values = _build_filter_conditions({k: v for k, v in (filters or {}).items() if k != "user_id"})
    texts = ["user_id = %s", *conditions]
    return sql.SQL(" AND ".join(f"({text})" for text in texts)), [user_id, *values]
