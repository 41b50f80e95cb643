"""What is kept of one user as rows for an export, and the insertion of what is imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from keepsake_client.protocol import MemoryChange
from keepsake_client.records import ProfileChangeRecord, ProfileRecord
from psycopg import Connection
from psycopg.rows import TupleRow, dict_row
from psycopg.types.json import Jsonb

from services.long_term_memory.known_slots import EXTRACTION, evidence_of
from services.long_term_memory.postgres.portable_facts import uuids
from services.long_term_memory.postgres.scope import SHARED

#: Before the year 1, the first of the calendar.
BEGINNING_US: Final = -63_000_000_000_000_000

_PROFILES: Final = (
    "SELECT agent_id, profile, version, extract(epoch FROM updated_at)::float8 AS updated_at"
    " FROM profiles WHERE user_id = %(user)s AND version > 0 ORDER BY agent_id"
)
_PROFILE_CHANGES: Final = (
    "SELECT agent_id, version, patch, extract(epoch FROM changed_at)::float8 AS changed_at, source"
    " FROM profile_history"
    " WHERE user_id = %(user)s AND (agent_id, version) > (%(agent)s, %(version)s)"
    " ORDER BY agent_id, version LIMIT %(limit)s"
)
_OWNER_FROM: Final = (
    "SELECT number, agent_id FROM users WHERE user_id = %(user)s AND kind = 'message'"
    ' AND (agent_id COLLATE "C", 1) > (%(agent)s, %(is_done)s) ORDER BY agent_id COLLATE "C" LIMIT 1'
)
# The text of an event is what the first entry of its history has; most memories have no other.
_MEMORIES: Final = (
    "SELECT number, coalesce(payload ->> 'exported_id', id::text) AS id, content, source, payload,"
    " (extract(epoch FROM said_at) * 1000000)::bigint AS said_at_us,"
    " extract(epoch FROM expires_at)::float8 AS expires_at, changes FROM ("
    "SELECT * FROM memories WHERE user_number = %(owner)s AND (said_at, number) >"
    " (timestamptz 'epoch' + %(said_at_us)s * interval '1 microsecond', %(number)s)"
    " ORDER BY said_at, number LIMIT %(limit)s) AS page LEFT JOIN LATERAL ("
    "SELECT jsonb_agg(jsonb_build_object('event', event, 'old_content', old_memory, 'new_content', new_memory,"
    " 'changed_at', coalesce(updated_at, created_at)) ORDER BY h.number) AS changes"
    " FROM memory_history h WHERE h.memory_id = page.id::text HAVING count(*) > 1) AS history ON true"
    " ORDER BY said_at, number"
)
_ADD_PROFILE: Final = (
    "INSERT INTO profiles (user_id, agent_id, profile, version, updated_at)"
    " VALUES (%(user)s, %(agent)s, %(profile)s, %(version)s, to_timestamp(%(updated_at)s)) ON CONFLICT DO NOTHING"
)
_ADD_PROFILE_CHANGE: Final = (
    "INSERT INTO profile_history (user_id, agent_id, version, patch, changed_at, source, evidence)"
    " SELECT %(user)s, %(agent)s, %(version)s, %(patch)s, to_timestamp(%(changed_at)s), %(source)s,"
    " %(evidence)s::uuid[]"
    " WHERE NOT EXISTS (SELECT FROM profiles"
    " WHERE user_id = %(user)s AND agent_id = %(agent)s AND version < %(version)s)"
    " ON CONFLICT DO NOTHING"
)
_ADD_CHANGE: Final = (
    "INSERT INTO memory_history"
    " (id, memory_id, old_memory, new_memory, event, created_at, updated_at, is_deleted, role)"
    " SELECT gen_random_uuid(), %(memory_id)s, %(old_content)s, %(new_content)s, %(event)s, %(changed_at)s,"
    " %(changed_at)s, false, %(role)s"
)


class Place(NamedTuple):
    """Where a page of memories begins: after the memory of this agent, time and number.

    Args:
        agent: the encoded id.
        said_at_us: microseconds since 1970.
        is_done: whether it is after all memories of the agent: 0 or 1.
    """

    agent: str = SHARED
    said_at_us: int = BEGINNING_US
    number: int = 0
    is_done: int = 0


def profiles_of(connection: Connection[TupleRow], user: str) -> list[dict[str, Any]]:
    """The profiles of a user: the own one and those of characters."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_PROFILES, {"user": user}).fetchall()


def profile_changes_of(
    connection: Connection[TupleRow], user: str, agent: str, version: int, limit: int
) -> list[dict[str, Any]]:
    """The changes of these profiles after that one, by agent and version."""
    values = {"user": user, "agent": agent, "version": version, "limit": limit}
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_PROFILE_CHANGES, values).fetchall()


def memories_of(
    connection: Connection[TupleRow], user: str, place: Place, limit: int
) -> tuple[str, list[tuple[Place, dict[str, Any]]]] | None:
    """The first agent of the user from `place` on, and its memories after that, each with its place.

    None where there is no agent left.
    """
    found = connection.execute(_OWNER_FROM, {"user": user, "agent": place.agent, "is_done": place.is_done}).fetchone()
    if found is None:
        return None
    number, agent = found
    begin = place if place.agent == agent else Place(agent)
    values = {"owner": number, "said_at_us": begin.said_at_us, "number": begin.number, "limit": limit}
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(_MEMORIES, values).fetchall()
    return agent, [(Place(agent, row["said_at_us"], row["number"]), row) for row in rows]


def add_profile(connection: Connection[TupleRow], user: str, agent: str, record: ProfileRecord) -> None:
    """Insert a profile, unless there is one."""
    values = {"profile": Jsonb(record.profile), "version": record.version, "updated_at": record.updated_at}
    connection.execute(_ADD_PROFILE, {"user": user, "agent": agent, **values})


def add_profile_change(connection: Connection[TupleRow], user: str, agent: str, record: ProfileChangeRecord) -> None:
    """Insert a change of a profile, unless that version has one, or is ahead of the profile."""
    evidence = sorted(set(uuids(evidence_of(record.patch)))) if record.source == EXTRACTION else []
    values = {
        "patch": Jsonb(record.patch),
        "version": record.version,
        "changed_at": record.changed_at,
        "source": record.source,
        "evidence": evidence or None,
    }
    connection.execute(_ADD_PROFILE_CHANGE, {"user": user, "agent": agent, **values})


def deleted_ids(connection: Connection[TupleRow], ids: Sequence[str]) -> set[str]:
    """Those of the ids of memories that have a tombstone."""
    found = connection.execute("SELECT memory_id::text FROM tombstones WHERE memory_id = ANY(%s::uuid[])", (list(ids),))
    return {memory_id for (memory_id,) in found.fetchall()}


def drop_tombstones(connection: Connection[TupleRow], ids: Sequence[str]) -> None:
    """Let memories of these ids be stored again."""
    connection.execute("DELETE FROM tombstones WHERE memory_id = ANY(%s::uuid[])", (list(ids),))


def replace_history(
    connection: Connection[TupleRow], memory_id: str, role: str, changes: Sequence[MemoryChange]
) -> None:
    """Replace what the insertion of a memory has written as its history, unless the memory was deleted meanwhile."""
    with connection.transaction():
        lock = "SELECT FROM memories WHERE id = %s::uuid FOR KEY SHARE"
        if connection.execute(lock, (memory_id,)).fetchone() is None:
            return
        connection.execute("DELETE FROM memory_history WHERE memory_id = %s", (memory_id,))
        for change in changes:
            connection.execute(_ADD_CHANGE, {"memory_id": memory_id, "role": role, **change.model_dump()})
