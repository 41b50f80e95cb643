"""Deletion of memories: in batches, each with its history and its tombstones, so that nothing of it comes back.

Every transaction locks the user first, as every insertion does with a weaker lock: the deletion either waits for an
insertion and sees what it inserts, or is seen by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from hashlib import sha256
from typing import Any

from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool

from services.long_term_memory.postgres.conditions import Conditions
from services.long_term_memory.postgres.deletions import CONDITIONS_KEPT
from services.long_term_memory.postgres.scope import OWNER_NUMBERS, OWNERS, SHARED, Scope
from services.long_term_memory.removal import BATCH, remove

# All of the user's: an insertion for a character that is new locks the owner of the shared memories.
_LOCK = "SELECT FROM users WHERE user_id = ANY(%(users)s) ORDER BY number FOR UPDATE"
# In a statement of its own: an insertion that the lock waited for may have added an owner.
_OWNERS = f"SELECT number FROM users WHERE {OWNERS} ORDER BY array_position(%(kinds)b::text[], kind), number"  # noqa: S608 - constants
_BY_ID = f"SELECT number FROM memories WHERE user_number = {OWNER_NUMBERS} AND id = ANY(%(ids)s::uuid[])"  # noqa: S608 - constants
# Only the rows of a batch are asked for their contents, so that no statement takes long however few contain a text.
_BATCH = (
    "SELECT m.said_at, m.number, {contains} FROM (SELECT * FROM memories"
    " WHERE user_number = %(owner)s AND (arrived_at IS NULL OR arrived_at <= %(at)s){conditions}{after}"
    " ORDER BY said_at, number LIMIT %(batch)s) AS m ORDER BY m.said_at, m.number"
)
_COUNT = (
    "SELECT count(*) FROM memories m"  # noqa: S608 - constants
    f" WHERE user_number = {OWNER_NUMBERS} AND (arrived_at IS NULL OR arrived_at <= %(at)s){{conditions}}"
)
_COUNT_IDS = f"SELECT count(*) FROM memories WHERE user_number = {OWNER_NUMBERS} AND id = ANY(%(ids)s::uuid[])"  # noqa: S608 - constants
_ADD_DELETION = (
    "INSERT INTO deletions (user_digest, agent_digests, deleted_at, session, source, since, until, speaker_name,"
    " speaker_id, contains) VALUES (%(user_digest)s, %(agent_digests)s, %(at)s, %(session)s, %(source)s, %(since)s,"
    " %(until)s, %(speaker_name)s, %(speaker_id)s, %(contains)s)"
)


def delete_ids(pool: ConnectionPool, scope: Scope, ids: Sequence[str]) -> int:
    """Delete the memories of a scope that have these ids; how many there were.

    Args:
        ids: UUIDs.
    """
    with _locked(pool, scope) as connection:
        rows = connection.execute(_BY_ID, {**scope.values, "ids": list(ids)}).fetchall()
        return remove(connection, [number for (number,) in rows])


def delete_matching(pool: ConnectionPool, scope: Scope, conditions: Conditions, at: datetime) -> int:
    """Delete the memories of a scope that meet conditions, and what arrived before `at` and is indexed later.

    A deletion that was ended in the middle is completed by the same call. What it deletes of facts that no other
    messages say than those it deletes is not counted.

    Args:
        scope: of one user.

    Returns:
        How many memories there were, without those that are not indexed yet.
    """
    owners = _record(pool, scope, conditions, at)
    return sum(_delete_of_owner(pool, scope, number, conditions, at) for number in owners)


def count_ids(connection: Connection[TupleRow], scope: Scope, ids: Sequence[str]) -> int:
    """How many memories `delete_ids` would delete."""
    return _count(connection, _COUNT_IDS, {**scope.values, "ids": list(ids)})


def count_matching(connection: Connection[TupleRow], scope: Scope, conditions: Conditions, at: datetime) -> int:
    """How many memories `delete_matching` would delete."""
    statement = _COUNT.replace("{conditions}", conditions.sql("m"))
    return _count(connection, statement, {**scope.values, **conditions.values, "at": at})


def remove_old_deletions(connection: Connection[TupleRow]) -> None:
    """Remove the deletions by conditions that are older than any event that could still be indexed."""
    connection.execute(
        f"DELETE FROM deletions WHERE NOT everything AND deleted_at < clock_timestamp() - {CONDITIONS_KEPT}"  # noqa: S608 - constants
    )


@contextmanager
def _locked(pool: ConnectionPool, scope: Scope) -> Iterator[Connection[TupleRow]]:
    """A transaction in which nothing is inserted for the users of a scope."""
    with pool.connection() as connection, connection.transaction():
        connection.execute(_LOCK, scope.values)
        yield connection


def _record(pool: ConnectionPool, scope: Scope, conditions: Conditions, at: datetime) -> list[int]:
    """Add a deletion, by which what arrived before it is refused from now on; the numbers of the owners."""
    [user] = scope.users
    agents = None if scope.all_agents else {SHARED, scope.agent}
    values = {
        **conditions.values,
        "at": at,
        "user_digest": _digest(user),
        "agent_digests": agents and [_digest(agent) for agent in agents],
    }
    with pool.connection() as connection:
        # What is locked may not be there yet.
        connection.execute(
            "INSERT INTO users (user_id, agent_id, kind) VALUES (%s, %s, 'message') ON CONFLICT DO NOTHING",
            (user, SHARED),
        )
    with _locked(pool, scope) as connection:
        remove_old_deletions(connection)
        connection.execute(_ADD_DELETION, values)
        return [number for (number,) in connection.execute(_OWNERS, scope.values).fetchall()]


def _delete_of_owner(pool: ConnectionPool, scope: Scope, number: int, conditions: Conditions, at: datetime) -> int:
    """Delete an owner's memories that meet conditions, in the order of time."""
    statement = _BATCH.replace("{contains}", f"true{conditions.sql('m')}")
    statement = statement.replace("{conditions}", conditions.sql("memories", contains=False))
    values: dict[str, Any] = {**conditions.values, "owner": number, "at": at, "batch": BATCH}
    deleted, after = 0, ""
    while True:
        with _locked(pool, scope) as connection:
            rows = connection.execute(statement.replace("{after}", after), values).fetchall()
            deleted += remove(connection, [place for _, place, meets in rows if meets])
        if len(rows) < BATCH:
            return deleted
        after = " AND (said_at, number) > (%(said_at)s, %(number)s)"
        values |= {"said_at": rows[-1][0], "number": rows[-1][1]}


def _count(connection: Connection[TupleRow], statement: str, values: dict[str, Any]) -> int:
    row = connection.execute(statement, values).fetchone()
    return int(row[0]) if row else 0


def _digest(encoded_id: str) -> bytes:
    return sha256(encoded_id.encode()).digest()
