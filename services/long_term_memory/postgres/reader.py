"""ColumnReader: reads the columns that rank the memories of one user from PostgreSQL.

One covering index holds them in the order of the conversation: a search reads a range of that index and nothing else,
however many other users there are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from psycopg import sql
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool

from services.long_term_memory.postgres.pool import PREPARED, is_partitioned
from services.long_term_memory.postgres.rows import ADDED, HEAD, Vector
from services.long_term_memory.postgres.scope import OWNER_NUMBER, OWNERS, USER_HASH, Owner, Scope
from services.long_term_memory.retrieval.columns import MemoryColumns, hashed
from services.long_term_memory.retrieval.facts import ColumnsWithFacts

#: One in so many memories is in the sample, which has an index of its own; migrations/0002 has the same number. It is
#: odd, so that where the user and the AI take turns, the sample holds both.
SAMPLE = 7

#: Facts of one owner that are read, the newest; a user of ten years has some thousands.
MAX_FACTS = 20_000

_POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC).timestamp()

# Each column of all memories is packed into one value: 50,000 rows took longer to unpack in Python than to find in
# PostgreSQL. The name, the expression of one memory's part, and numpy's dtype of that part.
_PACKED: tuple[tuple[str, str, np.dtype[Any]], ...] = (
    ("head", "head", HEAD),
    ("terms", "terms", np.dtype("<u4")),
    ("distance", "float8send(coalesce(vector <=> (SELECT %(vector)s::halfvec), 'NaN'))", np.dtype(">f8")),
)
_PACKS = ", ".join(f"coalesce(string_agg({pack}, ''::bytea), ''::bytea) AS {name}" for name, pack, _ in _PACKED)
_COLUMNS_OF = (
    f"SELECT {_PACKS} FROM (SELECT * FROM memories WHERE user_number = {{owner}}{{hash}}{{conditions}}"  # noqa: S608 - constants
    " ORDER BY session, said_at, number LIMIT %(limit)s) AS conversation"
)
#: In the place of a segment, for the rows of facts.
_OF_FACTS = -1
# Of facts the newest are read, whatever their order: none is a turn of a conversation. The pairs of numbers are packed
# like the columns, and looked up for all facts at once, as ranges of an index: one by one took twice as long. An owner
# without facts costs a look into the index of `users`.
_PAIRS = (
    "(SELECT string_agg(int8send(fact_number) || int8send({other}), ''::bytea) FROM {table}"
    " WHERE fact_number = ANY(array_agg(facts.number))) AS {name}"
)
_SAID = _PAIRS.format(table="fact_evidence", other="memory_number", name="said")
_REPLACED = _PAIRS.format(table="superseded_facts", other="superseded_by", name="replaced")
_FACTS_OF = (
    f"SELECT {_PACKS}, {_SAID}, {_REPLACED} FROM (SELECT * FROM memories"  # noqa: S608 - constants
    f" WHERE user_number = owners.number{{hash}} ORDER BY number DESC LIMIT {MAX_FACTS}) AS facts"
)
_NO_FACTS = "NULL::bytea AS said, NULL::bytea AS replaced"
_COLUMNS = _COLUMNS_OF.replace("{owner}", OWNER_NUMBER)
_FACTS = (
    f" UNION ALL SELECT {_OF_FACTS}, facts.* FROM (SELECT number FROM users"  # noqa: S608 - constants
    " WHERE user_id = %(user)s AND agent_id = %(agent)s AND kind IN ('fact', 'superseded')) AS owners,"
    f" LATERAL ({_FACTS_OF}) AS facts"
)
_COLUMNS_AND_FACTS = f"SELECT 0, columns.*, {_NO_FACTS} FROM ({_COLUMNS}) AS columns{_FACTS}"  # noqa: S608 - constants
_COLUMNS_BY_OWNER = (
    f"WITH owners AS (SELECT number, user_hash, user_id, agent_id, kind FROM users WHERE {OWNERS})"  # noqa: S608 - constants
    f" SELECT user_id, agent_id, 0, columns.*, {_NO_FACTS} FROM owners, LATERAL ("
    + _COLUMNS_OF.replace("{owner}", "owners.number").replace("{conditions}", "")
    + ") AS columns WHERE kind = 'message'"  # noqa: S608 - constants
    f" UNION ALL SELECT user_id, agent_id, {_OF_FACTS}, facts.* FROM owners, LATERAL ({_FACTS_OF}) AS facts"
    " WHERE kind <> 'message'"
)
_SEGMENT_COLUMNS = (
    f"SELECT place, segment.*, {_NO_FACTS} FROM unnest("  # noqa: S608 - constants
    "%(first_session)s::bigint[], %(first_said_at)s::float8[], %(first_number)s::bigint[],"
    " %(end_session)s::bigint[], %(end_said_at)s::float8[], %(end_number)s::bigint[])"
    " WITH ORDINALITY AS bounds (session1, said_at1, number1, session2, said_at2, number2, place), LATERAL ("
    + _COLUMNS.replace(
        "{conditions}",
        " AND (session, said_at, number) >= (session1, to_timestamp(said_at1), number1)"
        " AND (session, said_at, number) < (session2, to_timestamp(said_at2), number2){conditions}",
    )
    + ") AS segment"
)

_IN_ORDER = " ORDER BY 1"

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
    """Reads the memories of an owner, or of each owner of a scope, as columns: messages and facts."""

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
            window: which of the messages are read.
            limit: how many messages at most, the first of the conversation.
            sample: only one in `SAMPLE` of the messages, without facts.
        """
        values = {**owner._asdict(), "vector": _float32(vector), "limit": limit, **window.values()}
        if sample:
            conditions = f" AND number %% {SAMPLE} = 0{window.conditions()}"
            return unpack(self._fetch(_COLUMNS.replace("{conditions}", conditions), values))
        statement = _COLUMNS_AND_FACTS.replace("{conditions}", window.conditions())
        return _together(self._fetch(statement, values))

    def read_owners(self, scope: Scope, vector: Vector | None, limit: int) -> dict[Owner, MemoryColumns]:
        """The memories of each owner of a scope, as `read` gives them, in one round trip.

        Args:
            limit: how many messages at most of each owner, the first of the conversation.
        """
        values = {**scope.values, "vector": _float32(vector), "limit": limit}
        by_owner: dict[Owner, list[TupleRow]] = defaultdict(list)
        for user, agent, *row in self._fetch(_COLUMNS_BY_OWNER, values):
            by_owner[Owner(user, agent)].append(tuple(row))
        return {owner: _together(rows) for owner, rows in by_owner.items()}

    def read_segments(
        self,
        owner: Owner,
        vector: Vector | None,
        bounds: Sequence[tuple[Place, Place]],
        window: Window = Window(),
    ) -> MemoryColumns:
        """The messages of segments of the conversation, and all facts, as `read` gives them.

        The second half of the segments is read concurrently on another connection.

        Args:
            bounds: where each segment begins, and the place before which it ends; in the order of the conversation.
        """
        values = {**owner._asdict(), "vector": _float32(vector), "limit": None, **window.values()}
        segments = _SEGMENT_COLUMNS.replace("{conditions}", window.conditions())
        half = (len(bounds) + 1) // 2
        # In a copy of the context, which says what a read of the replica must see.
        later = self._executor.submit(
            copy_context().run, self._fetch, segments + _IN_ORDER, values | _edges(bounds[half:])
        )
        first = self._fetch(segments + _FACTS + _IN_ORDER, values | _edges(bounds[:half]))
        return _together([*first, *later.result()])

    def _fetch(self, statement: str, values: dict[str, Any]) -> Sequence[TupleRow]:
        with self._pool.connection() as connection:
            # Only where there are partitions to leave out: the index of another table does not hold it.
            user_hash = "owners.user_hash" if statement is _COLUMNS_BY_OWNER else USER_HASH
            condition = f" AND user_hash = {user_hash}" if is_partitioned(connection) else ""
            columns = sql.SQL(statement.replace("{hash}", condition))
            return connection.execute(columns, values, binary=True, prepare=PREPARED).fetchall()


def _together(rows: Sequence[TupleRow]) -> MemoryColumns:
    """The messages and facts of one owner.

    Args:
        rows: the place of the segment or `_OF_FACTS`, the packed columns, and the pairs of `ColumnsWithFacts`.
    """
    messages = unpack([packed for place, *packed in rows if place != _OF_FACTS])
    of_facts = [packed for place, *packed in rows if place == _OF_FACTS]
    facts = unpack(of_facts) if of_facts else NO_MEMORIES
    if not len(facts):
        return messages
    said, replaced = (
        np.frombuffer(b"".join(packed[pairs] or b"" for packed in of_facts), ">i8").astype(np.int64).reshape(-1, 2)
        for pairs in (-2, -1)
    )
    return ColumnsWithFacts.of(messages, [facts], said, replaced)


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
