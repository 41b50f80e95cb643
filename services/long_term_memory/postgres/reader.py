"""ColumnReader: all that ranks the memories of one user, read as columns.

One index holds it, in the order of the conversation: a search reads a stretch of that and nothing else, however many
other users there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import sql
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool

from services.long_term_memory.postgres.rows import HEAD, hashed, literal

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


@dataclass(frozen=True, slots=True)
class MemoryColumns:
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


class ColumnReader:
    """Reads conversations from PostgreSQL."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._beside = ThreadPoolExecutor(thread_name_prefix="second-connection")

    def read(
        self,
        user_id: str,
        vector: Sequence[float] | NDArray[np.float32] | None,
        window: Window = Window(),
        *,
        most: int | None = None,
        sample: bool = False,
    ) -> MemoryColumns:
        """Everything that ranks the user's memories, with their cosines to the query's `vector`; None gives NaN.

        Args:
            window: which of them are read.
            most: no more than so many, the first of the conversation.
            sample: one in `SAMPLE` of them.
        """
        conditions = (f" AND number %% {SAMPLE} = 0" if sample else "") + window.conditions()
        values = {"user": user_id, "vector": _optional(vector), "most": most, **window.values()}
        return _conversation(self._fetch(sql.SQL(_COLUMNS.replace("{}", conditions)), values))

    def read_runs(
        self,
        user_id: str,
        vector: Sequence[float] | NDArray[np.float32] | None,
        bounds: Sequence[tuple[Place, Place]],
        window: Window = Window(),
    ) -> MemoryColumns:
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


def _conversation(parts: Sequence[TupleRow]) -> MemoryColumns:
    """The columns that PostgreSQL has packed, one row for each part of the conversation."""
    raw = {
        name: np.frombuffer(b"".join(part[column] for part in parts), dtype)
        for column, (name, _, dtype) in enumerate(_PACKED)
    }
    head = raw["head"]
    numbers = ("number", "session", "asks", "script", "length", "speaker", "fingerprint")
    return MemoryColumns(
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
