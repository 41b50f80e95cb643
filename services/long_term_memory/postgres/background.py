"""What is known of a user besides what answers a query: profiles, and memories of the last sessions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from keepsake_client.protocol import MemoryKind, Source
from psycopg_pool import ConnectionPool

from services.long_term_memory.postgres.scope import OWNERS, Kind, Scope

#: What a recap is made of: the newest facts before the present session, and lines of the last session at each end.
RECAPPED: tuple[Kind, ...] = ("message", "fact")
MAX_FACTS = 24
LINES_AT_EACH_END = 2

_OF_OWNER = "user_number = owners.number AND memories.user_hash = owners.user_hash"
_COLUMNS = "number, id::text AS id, session, said_at, source, content, payload"
# One statement, because it is one round trip. Sessions are told from the present one by time: the index
# `memories_by_time` then leads to the last one before it, however long the present one is.
_BACKGROUND = (
    f"WITH owners AS MATERIALIZED (SELECT number, user_hash, kind FROM users WHERE {OWNERS}),"  # noqa: S608 - constants
    " begun AS MATERIALIZED (SELECT coalesce(min(said_at), 'infinity') AS at FROM owners,"
    " unnest(%(present)b::bigint[]) AS present (session),"
    f" LATERAL (SELECT said_at FROM memories WHERE {_OF_OWNER} AND memories.session = present.session"
    " ORDER BY said_at LIMIT 1) AS first WHERE kind = 'message'),"
    f" facts AS (SELECT m.* FROM owners, LATERAL (SELECT {_COLUMNS} FROM memories WHERE {_OF_OWNER}"
    " AND said_at < (SELECT at FROM begun) ORDER BY said_at DESC, number DESC LIMIT %(facts)b) AS m"
    " WHERE kind = 'fact'),"
    " last AS MATERIALIZED (SELECT m.* FROM owners, LATERAL (SELECT session, said_at FROM memories"
    f" WHERE {_OF_OWNER} AND said_at < (SELECT at FROM begun)"
    " ORDER BY said_at DESC, number DESC LIMIT 1) AS m"
    " WHERE kind = 'message' ORDER BY m.said_at DESC LIMIT 1),"
    " lines AS (SELECT m.* FROM last, owners, LATERAL ("
    f"(SELECT {_COLUMNS} FROM memories WHERE {_OF_OWNER} AND session = last.session"
    " ORDER BY said_at, number LIMIT %(lines)b)"
    f" UNION ALL (SELECT {_COLUMNS} FROM memories WHERE {_OF_OWNER} AND session = last.session"
    " ORDER BY memories.said_at DESC, number DESC LIMIT %(lines)b)) AS m WHERE kind = 'message')"
    " SELECT kind, number, id, session, extract(epoch FROM said_at)::float8, source, content, payload"
    " FROM (SELECT 'fact' AS kind, * FROM facts UNION ALL SELECT 'message', * FROM lines UNION ALL"
    " SELECT 'profile', 0, agent_id, 0, to_timestamp(0), '', '', profile FROM profiles"
    " WHERE user_id = ANY(%(users)b::text[]) AND agent_id = ANY(ARRAY['', %(agent)b::text])) AS found"
    " ORDER BY said_at, number"
)


class RecapMemory(NamedTuple):
    """A memory of a session before the present one.

    Args:
        session: hash of the session.
        said_at: in seconds since 1970.
        payload: as the column has it.
    """

    kind: MemoryKind
    number: int
    id: str
    session: int
    said_at: float
    source: Source
    content: str
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Background:
    """What is known of a user besides what answers a query.

    Args:
        profiles: the user's own, then a character's, as far as there are any.
        recap: the newest facts, and lines at both ends of the last session; in the order of time.
    """

    profiles: Sequence[dict[str, Any]]
    recap: Sequence[RecapMemory]


class BackgroundReader:
    """Reads the background of a user in one round trip."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

    def read(self, scope: Scope, present: Sequence[int]) -> Background:
        """Profiles and recap of a user.

        Args:
            scope: of that user, with the kinds `RECAPPED`.
            present: hashes of the session that goes on; nothing that was said since it began is in the recap.
        """
        values = {**scope.values, "present": list(present), "facts": MAX_FACTS, "lines": LINES_AT_EACH_END}
        with self._pool.connection() as connection:
            rows = connection.execute(_BACKGROUND, values, binary=True).fetchall()
        profiles = {row[2]: row[-1] for row in rows if row[0] == "profile"}
        # A line may be at both ends of a short session.
        recap = {row[1]: RecapMemory(*row) for row in rows if row[0] != "profile"}
        return Background([profiles[agent] for agent in sorted(profiles)], list(recap.values()))
