"""Removal of memories with their history, leaving tombstones, so that the same events do not bring them back.

What was derived from messages goes with them: the facts that no other messages say, and what the profile has of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from psycopg import Connection
from psycopg.rows import TupleRow

from services.long_term_memory.extraction.outbox import remove_messages
from services.long_term_memory.known_profile import owners_with_slots, remove_evidence
from services.long_term_memory.postgres.derived import facts_found_in, release_superseded, remove_evidence_rows
from services.long_term_memory.postgres.scope import Owner
from services.long_term_memory.storing import event_ids

#: Memories that are deleted by one transaction: a fifth of a second, for which their owners' insertions wait.
BATCH = 1_000

# A deletion locks the owners, in the order of their numbers, before its next statement takes its snapshot; of messages,
# the owners of their facts too.
_LOCK_OWNERS = (
    "SELECT number FROM users WHERE (user_id, agent_id) IN (SELECT user_id, agent_id FROM users"
    " WHERE number IN (SELECT user_number FROM memories WHERE number = ANY(%s))) ORDER BY number FOR UPDATE"
)
# By these ids facts and slots name a memory.
_IDS = "array_remove(ARRAY[m.id::text, m.payload ->> 'exported_id'], NULL)"
# The content that a memory first had identifies the event that it came from.
_EVENTS = (
    f"SELECT m.number, m.user_number, u.kind <> 'message', {_IDS},"  # noqa: S608 - constants
    " m.id::text, u.user_id, u.agent_id, m.source, m.payload ->> 'message_id',"
    " coalesce(CASE WHEN m.payload ? 'message_id' THEN ("
    "SELECT CASE event WHEN 'ADD' THEN new_memory ELSE old_memory END FROM memory_history"
    " WHERE memory_id = m.id::text ORDER BY memory_history.number LIMIT 1) END, m.content)"
    " FROM memories m JOIN users u ON u.number = m.user_number WHERE m.number = ANY(%s) ORDER BY m.number"
)


def remove(connection: Connection[TupleRow], numbers: Sequence[int]) -> int:
    """Delete memories, by their numbers, in one transaction; how many there were, without the facts that follow."""
    if not numbers:
        return 0
    with connection.transaction():
        with connection.pipeline():
            connection.execute(_LOCK_OWNERS, (list(numbers),))
            remove_messages(connection, list(numbers))
            derived = facts_found_in(connection, numbers)
        removed = _delete(connection, [*numbers, *derived])
    return len(removed.intersection(numbers))


def remove_derived(connection: Connection[TupleRow], number: int) -> None:
    """Delete what was found in a message that has another content now, in the transaction of the connection.

    Without tombstones: it may be found again in the new content.
    """
    derived = facts_found_in(connection, [number])
    remove_evidence_rows(connection, [number])
    _delete(connection, derived, tombstones=False)
    row = connection.execute(
        f"SELECT user_number, {_IDS} FROM memories m WHERE number = %s",  # noqa: S608 - constants
        (number,),
    ).fetchone()
    if row is not None:
        for owner in owners_with_slots(connection, [row[0]]):
            remove_evidence(connection, owner, row[1])


def add_tombstones(connection: Connection[TupleRow], ids: Iterable[str]) -> None:
    """Keep the ids of deleted memories, but for those that a memory has, in an order that cannot deadlock."""
    connection.execute(
        "INSERT INTO tombstones (memory_id) SELECT id FROM unnest(%s::uuid[]) AS given (id)"
        " WHERE NOT EXISTS (SELECT FROM memories WHERE memories.id = given.id) ORDER BY id ON CONFLICT DO NOTHING",
        (sorted(ids),),
    )


def _delete(connection: Connection[TupleRow], numbers: Sequence[int], *, tombstones: bool = True) -> set[int]:
    """Delete memories and facts whose owners are locked; the numbers of those that there were."""
    if not numbers:
        return set()
    found = connection.execute(_EVENTS, (list(numbers),)).fetchall()
    events: set[str] = set()
    for _, _, _, _, memory_id, user, agent, source, message_id, original in found:
        events |= event_ids(memory_id, Owner(user, agent), source, message_id, original)
    removed = [number for number, *_ in found]
    with connection.pipeline():
        connection.execute("DELETE FROM memories WHERE number = ANY(%s)", (removed,))
        # After it: a correction that the deletion waited for has added to the history meanwhile.
        connection.execute("DELETE FROM memory_history WHERE memory_id = ANY(%s::text[])", ([row[4] for row in found],))
        if tombstones:
            add_tombstones(connection, events)
        remove_evidence_rows(connection, removed)
        with_slots = owners_with_slots(connection, list({owner for _, owner, *_ in found}))
    if facts := [number for number, _, is_fact, *_ in found if is_fact]:
        release_superseded(connection, facts)
    for owner in with_slots:
        remove_evidence(connection, owner, {one for _, _, _, ids, *_ in found for one in ids})
    return set(removed)
