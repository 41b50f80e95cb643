"""ColumnReader: reads the columns that rank the memories of one user from PostgreSQL.

One covering index holds them in the order of the conversation: a search reads a range of that index and nothing else,
however many other users there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from psycopg import sql
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool

from services.long_term_memory.postgres.rows import ADDED, HEAD, Vector
from services.long_term_memory.postgres.scope import OWNER_NUMBER, OWNERS, Owner, Scope
from services.long_term_memory.retrieval.columns import MemoryColumns, hashed

#: One in so many memories is in the sample, which has an index of its own; migrations/0002 has the same number. It is
#: odd, so that where the user and the AI take turns, the sample holds both.
SAMPLE = 7

_POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC).timestamp()

# Each column of all memories is packed into one value: 50,000 rows took longer to unpack in Python than to find in
# PostgreSQL. The name, the expression of one memory's part, and numpy's dtype of that part.
_PACKED: tuple[tuple[str, str, np.dtype[Any]], ...] = (
    ("head", "head", HEAD),
    ("terms", "terms", np.dtype("<u4")),
    ("distance", "float8send(coalesce(vector <=> (SELECT %(vector)s::halfvec), 'NaN'))", np.dtype(">f8")),
)
_COLUMNS_OF = (
    "SELECT "  # noqa: S608 - constants
    + ", ".join(f"coalesce(string_agg({pack}, ''::bytea), ''::bytea) AS {name}" for name, pack, _ in _PACKED)
    + " FROM (SELECT * FROM memories WHERE user_number = {owner}{conditions}"
    " ORDER BY session, said_at, number LIMIT %(limit)s) AS conversation"
)
_COLUMNS = _COLUMNS_OF.replace("{owner}", OWNER_NUMBER)
_COLUMNS_BY_OWNER = (
    "SELECT owners.user_id, owners.agent_id, columns.* FROM"  # noqa: S608 - constants
    f" (SELECT number, user_id, agent_id FROM users WHERE {OWNERS}) AS owners, LATERAL ("
    + _COLUMNS_OF.replace("{owner}", "owners.number").replace("{conditions}", "")
    + ") AS columns"
)
_SEGMENT_COLUMNS = (
    "SELECT segment.* FROM unnest("  # noqa: S608 - constants
    "%(first_session)s::bigint[], %(first_said_at)s::float8[], %(first_number)s::bigint[],"
    " %(end_session)s::bigint[], %(end_said_at)s::float8[], %(end_number)s::bigint[])"
    " WITH ORDINALITY AS bounds (session1, said_at1, number1, session2, said_at2, number2, place), LATERAL ("
    + _COLUMNS.replace(
        "{conditions}",
        " AND (session, said_at, number) >= (session1, to_timestamp(said_at1), number1)"
        " AND (session, said_at, number) < (session2, to_timestamp(said_at2), number2){conditions}",
    )
    + ") AS segment ORDER BY place"
)

#: The key of the conversation's order: session, seconds since 1970, number.
Place = tuple[int, float, int]


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a conversation that is read; all of it where nothing is given.

    Args:
        session_id: one session.
        since: seconds since 1970, inclusive.
        until: seconds since 1970, inclusive.
    """

    session_id: str | None = None
    since: float | None = None
    until: float | None = None

    def conditions(self) -> str:
        """The SQL conditions, to be appended to a WHERE clause."""
        conditions = {
            "session_id": " AND session = %(session)s",
            "since": " AND said_at >= to_timestamp(%(since)s)",
            "until": " AND said_at <= to_timestamp(%(until)s)",
        }
        return "".join(condition for name, condition in conditions.items() if getattr(self, name) is not None)

    def values(self) -> dict[str, Any]:
        """The parameters of those conditions."""
        session = None if self.session_id is None else hashed(self.session_id)
        return {"session": session, "since": self.since, "until": self.until}


class ColumnReader:
    """Reads the memories of an owner, or of each owner of a scope, as columns."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._executor = ThreadPoolExecutor(thread_name_prefix="second-connection")

    def read(
        self,
        owner: Owner,
        vector: Vector | None,
        window: Window = Window(),
        *,
        limit: int | None = None,
        sample: bool = False,
    ) -> MemoryColumns:
        """The owner's memories, with their cosines to the query's `vector`: NaN where it is None.

        Args:
            window: which of them are read.
            limit: how many at most, the first of the conversation.
            sample: only one in `SAMPLE` of them.
        """
        conditions = (f" AND number %% {SAMPLE} = 0" if sample else "") + window.conditions()
        values = {**owner._asdict(), "vector": _float32(vector), "limit": limit, **window.values()}
        return unpack(self._fetch(sql.SQL(_COLUMNS.replace("{conditions}", conditions)), values))

    def read_owners(self, scope: Scope, vector: Vector | None, limit: int) -> dict[Owner, MemoryColumns]:
        """The memories of each owner of a scope, as `read` gives them, in one round trip.

        Args:
            limit: how many at most of each owner, the first of the conversation.
        """
        values = {**scope.values, "vector": _float32(vector), "limit": limit}
        rows = self._fetch(sql.SQL(_COLUMNS_BY_OWNER), values)
        return {Owner(user, agent): unpack([packed]) for user, agent, *packed in rows}

    def read_segments(
        self,
        owner: Owner,
        vector: Vector | None,
        bounds: Sequence[tuple[Place, Place]],
        window: Window = Window(),
    ) -> MemoryColumns:
        """The memories of segments of the conversation, as `read` gives them.

        The second half of the segments is read concurrently on another connection.

        Args:
            bounds: where each segment begins, and the place before which it ends; in the order of the conversation.
        """
        values = {**owner._asdict(), "vector": _float32(vector), "limit": None, **window.values()}
        statement = sql.SQL(_SEGMENT_COLUMNS.replace("{conditions}", window.conditions()))
        half = (len(bounds) + 1) // 2
        later = self._executor.submit(self._fetch, statement, values | _edges(bounds[half:]))
        return unpack([*self._fetch(statement, values | _edges(bounds[:half])), *later.result()])

    def _fetch(self, statement: sql.SQL, values: dict[str, Any]) -> Sequence[TupleRow]:
        with self._pool.connection() as connection:
            return connection.execute(statement, values, binary=True).fetchall()


def unpack(segments: Sequence[Sequence[Any]]) -> MemoryColumns:
    """The columns that PostgreSQL has packed, one row for each segment of the conversation."""
    raw = {
        name: np.frombuffer(b"".join(segment[column] for segment in segments), dtype)
        for column, (name, _, dtype) in enumerate(_PACKED)
    }
    head = raw["head"]
    added = head["asks"] < 0
    numbers = ("number", "session", "script", "length", "speaker", "fingerprint")
    return MemoryColumns(
        timestamp=head["said_at"] / 1e6 + _POSTGRES_EPOCH,  # PostgreSQL sends microseconds since 2000
        from_ai=head["from_ai"],
        added=added,
        asks=head["asks"].astype(np.int64) - ADDED * added,
        **{name: head[name].astype(np.int64) for name in numbers},
        terms=raw["terms"],
        cosine=1.0 - raw["distance"].astype(np.float64),
    )


def _edges(bounds: Sequence[tuple[Place, Place]]) -> dict[str, Any]:
    """The parameters of `_SEGMENT_COLUMNS`: a list for each part of the places."""
    names = [f"{end}_{name}" for end in ("first", "end") for name in ("session", "said_at", "number")]
    return {name: [(*first, *end)[i] for first, end in bounds] for i, name in enumerate(names)}


def _float32(vector: Vector | None) -> NDArray[np.float32] | None:
    return None if vector is None else np.asarray(vector, np.float32)


NO_MEMORIES: Final = unpack([])
