"""Removal of memories with their history, leaving tombstones, so that the same events do not bring them back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from psycopg import Connection
from psycopg.rows import TupleRow

from services.long_term_memory.postgres.scope import Owner
from services.long_term_memory.storing import event_ids

#: Memories that are deleted by one transaction: a fifth of a second, for which their owners' insertions wait.
BATCH = 1_000

# A deletion locks the owners, in the order of their numbers, before its next statement takes its snapshot.
_LOCK_OWNERS = (
    "SELECT number FROM users WHERE number IN (SELECT user_number FROM memories WHERE number = ANY(%s))"
    " ORDER BY number FOR UPDATE"
)
# The content that a memory first had identifies the event that it came from.
_EVENTS = (
    "SELECT m.number, m.id::text, u.user_id, u.agent_id, m.source, m.payload ->> 'message_id',"
    " coalesce(CASE WHEN m.payload ? 'message_id' THEN ("
    "SELECT CASE event WHEN 'ADD' THEN new_memory ELSE old_memory END FROM memory_history"
    " WHERE memory_id = m.id::text ORDER BY memory_history.number LIMIT 1) END, m.content)"
    " FROM memories m JOIN users u ON u.number = m.user_number WHERE m.number = ANY(%s) ORDER BY m.number"
)


def remove(connection: Connection[TupleRow], numbers: Sequence[int]) -> int:
    """Delete memories, by their numbers, in one transaction; how many there were."""
    if not numbers:
        return 0
    with connection.transaction():
        connection.execute(_LOCK_OWNERS, (list(numbers),))
        found = connection.execute(_EVENTS, (list(numbers),)).fetchall()
        ids = [memory_id for _, memory_id, *_ in found]
        tombstones: set[str] = set()
        for _, memory_id, user, agent, source, message_id, original in found:
            tombstones |= event_ids(memory_id, Owner(user, agent), source, message_id, original)
        with connection.pipeline():
            connection.execute("DELETE FROM memories WHERE number = ANY(%s)", ([number for number, *_ in found],))
            # After it: a correction that the deletion waited for has added to the history meanwhile.
            connection.execute("DELETE FROM memory_history WHERE memory_id = ANY(%s::text[])", (ids,))
            add_tombstones(connection, tombstones)
    return len(found)


def add_tombstones(connection: Connection[TupleRow], ids: Iterable[str]) -> None:
    """Keep the ids of deleted memories, but for those that a memory has, in an order that cannot deadlock."""
    connection.execute(
        "INSERT INTO tombstones (memory_id) SELECT id FROM unnest(%s::uuid[]) AS given (id)"
        " WHERE NOT EXISTS (SELECT FROM memories WHERE memories.id = given.id) ORDER BY id ON CONFLICT DO NOTHING",
        (sorted(ids),),
    )
