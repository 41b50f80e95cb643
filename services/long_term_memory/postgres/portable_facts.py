"""Facts of one user as rows for an export, and the insertion of what is imported.

The id of an export is that under which a memory was first exported: an import for another user gives it another one.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from psycopg import Connection
from psycopg.rows import TupleRow, dict_row

from services.long_term_memory.postgres.scope import Owner

#: Of a fact that is current, in place of the time at which it was superseded.
CURRENT_US: Final = 2**61
_ID: Final = "coalesce({row}.payload ->> 'exported_id', {row}.id::text)"
# What replaced a fact comes before it.
_FACTS: Final = (
    "SELECT f.number, agent_id, content, source, payload, id, superseded_us, evidence, superseded_by, said_at, changes"  # noqa: S608 - constants
    f" FROM (SELECT m.number, u.agent_id, m.content, m.source, m.payload, {_ID.format(row='m')} AS id, m.id AS own_id,"
    " coalesce((extract(epoch FROM s.superseded_at) * 1000000)::bigint, %(current)s) AS superseded_us,"
    " extract(epoch FROM m.said_at)::float8 AS said_at,"
    f" (SELECT {_ID.format(row='n')} FROM memories n WHERE n.number = s.superseded_by) AS superseded_by,"
    f" ARRAY(SELECT {_ID.format(row='e')} FROM fact_evidence JOIN memories e ON e.number = memory_number"
    " WHERE fact_number = m.number ORDER BY e.said_at, e.number) AS evidence"
    " FROM memories m JOIN users u ON u.number = m.user_number LEFT JOIN superseded_facts s ON fact_number = m.number"
    " WHERE u.user_id = %(user)s AND u.kind <> 'message') AS f LEFT JOIN LATERAL ("
    "SELECT jsonb_agg(jsonb_build_object('event', event, 'old_content', old_memory, 'new_content', new_memory,"
    " 'changed_at', coalesce(updated_at, created_at)) ORDER BY h.number) AS changes"
    " FROM memory_history h WHERE h.memory_id = f.own_id::text HAVING count(*) > 1) AS history ON true"
    " WHERE cardinality(evidence) > 0"
    " AND (superseded_us < %(superseded_us)s OR superseded_us = %(superseded_us)s AND f.number > %(number)s)"
    " ORDER BY superseded_us DESC, f.number LIMIT %(limit)s"
)
_BY_ID: Final = (
    "SELECT id::text, m.number FROM memories m JOIN users u ON u.number = user_number"
    " WHERE user_id = %(user)s AND agent_id = %(agent)s AND (kind = 'message') = %(messages)s"
    " AND id = ANY(%(ids)s::uuid[])"
)
_BY_EXPORTED_ID: Final = (
    "SELECT payload ->> 'exported_id', m.number FROM memories m JOIN users u ON u.number = user_number"
    " WHERE user_id = %(user)s AND agent_id = %(agent)s AND (kind = 'message') = %(messages)s"
    " AND payload ->> 'exported_id' = ANY(%(ids)s)"
)
_SUPERSEDE: Final = (
    "WITH noted AS (INSERT INTO superseded_facts (fact_number, superseded_by, superseded_at)"
    " VALUES (%(fact)s, %(by)s, to_timestamp(%(at)s)) ON CONFLICT DO NOTHING RETURNING fact_number)"
    " UPDATE memories SET user_number = (SELECT number FROM users"
    " WHERE (user_id, agent_id, kind) = (%(user)s, %(agent)s, 'superseded'))"
    " WHERE number IN (SELECT fact_number FROM noted)"
)


class FactPlace(NamedTuple):
    """Where a page of facts begins: after the fact with this number, superseded at this time."""

    superseded_us: int = CURRENT_US
    number: int = 0


def facts_of(
    connection: Connection[TupleRow], user: str, place: FactPlace, limit: int
) -> list[tuple[FactPlace, dict[str, Any]]]:
    """The facts of a user after a place, the current ones first, then the superseded ones, last superseded first."""
    values = {"user": user, "limit": limit, "current": CURRENT_US, **place._asdict()}
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(_FACTS, values).fetchall()
    return [(FactPlace(row["superseded_us"], row["number"]), row) for row in rows]


def numbers_of(connection: Connection[TupleRow], owner: Owner, ids: Iterable[str], *, messages: bool) -> dict[str, int]:
    """The numbers of an owner's memories by the ids of an export.

    Args:
        messages: whether messages are meant, or facts.
    """
    wanted = set(ids)
    values: dict[str, Any] = {"user": owner.user, "agent": owner.agent, "messages": messages}
    found: dict[str, int] = dict(connection.execute(_BY_EXPORTED_ID, {**values, "ids": list(wanted)}).fetchall())
    if others := wanted - found.keys():  # which kept their ids, or were not imported
        found |= dict(connection.execute(_BY_ID, {**values, "ids": uuids(others)}).fetchall())
    return found


def supersede(connection: Connection[TupleRow], owner: Owner, fact: int, by: int, at: float) -> None:
    """Let a fact, by its number, be superseded by another since a time; nothing where it is."""
    connection.execute(
        "INSERT INTO users (user_id, agent_id, kind) VALUES (%s, %s, 'superseded') ON CONFLICT DO NOTHING", owner
    )
    connection.execute(_SUPERSEDE, {"fact": fact, "by": by, "at": at, "user": owner.user, "agent": owner.agent})


def uuids(ids: Iterable[str]) -> list[str]:
    """Those of some ids that are UUIDs, as all ids of memories are."""
    found = []
    for one in ids:
        try:
            found.append(str(uuid.UUID(one)))
        except ValueError:
            continue  # of a record that was written by hand
    return found
