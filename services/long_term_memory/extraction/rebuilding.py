"""Rebuilding: deletes what extraction found of a user, and has all the user's messages read again."""

from __future__ import annotations

from keepsake_client.fields import encode_user_id
from psycopg import Connection
from psycopg.rows import TupleRow

from services.long_term_memory.extraction.operations import SAID
from services.long_term_memory.known_profile import owners_with_slots, remove_evidence
from services.long_term_memory.known_slots import EVIDENCE_OF_SLOTS
from services.long_term_memory.postgres.deletions import lock_user
from services.long_term_memory.postgres.pending import TOKENS, recount

_OWNERS = "SELECT number, kind FROM users WHERE user_id = %s ORDER BY number FOR UPDATE"
# In this order: the last statement takes away what the others find them by. No tombstones: found again, they are new.
_DELETE_FACTS = (
    "DELETE FROM fact_evidence WHERE fact_number IN (SELECT number FROM memories WHERE user_number = ANY(%s))",
    "DELETE FROM superseded_facts WHERE fact_number IN (SELECT number FROM memories WHERE user_number = ANY(%s))",
    "DELETE FROM memory_history WHERE memory_id IN (SELECT id::text FROM memories WHERE user_number = ANY(%s))",
    "DELETE FROM memories WHERE user_number = ANY(%s)",
)
# Whose words fill the slots, or filled them: of the profile, and of each version of its history.
_EVIDENCE = (
    f"SELECT said.id #>> '{{}}' FROM profiles, {EVIDENCE_OF_SLOTS} WHERE (user_id, agent_id) = (%s, %s)"  # noqa: S608 - constants
    " UNION SELECT unnest(evidence)::text FROM profile_history WHERE (user_id, agent_id) = (%s, %s)"
)
# What a call reads meanwhile gets another revision, so its result is dropped.
_READ_AGAIN = (
    "INSERT INTO to_extract (memory_number, user_number, tokens, from_user)"  # noqa: S608 - constants
    f" SELECT number, user_number, {TOKENS}, source = 'user' FROM memories WHERE user_number = ANY(%s) AND {SAID}"
    " ORDER BY number"
)


def rebuild(connection: Connection[TupleRow], user_id: str) -> int:
    """Delete a user's facts and the slots that extraction filled, of all characters; how many messages are read again.

    In one transaction: a call that is under way finds its messages in another revision, and its result is dropped.
    """
    user = encode_user_id(user_id)
    with connection.transaction():
        owners = connection.execute(_OWNERS, (user,)).fetchall()
        of_facts = [number for number, kind in owners if kind != "message"]
        of_messages = [number for number, kind in owners if kind == "message"]
        for statement in _DELETE_FACTS:
            connection.execute(statement, (of_facts,))
        _remove_slots(connection, user, of_messages)
        connection.execute("DELETE FROM to_extract WHERE user_number = ANY(%s)", (of_messages,))
        number = connection.execute(_READ_AGAIN, (of_messages,)).rowcount
        recount(connection, of_messages)
    return number


def _remove_slots(connection: Connection[TupleRow], user: str, owners: list[int]) -> None:
    """Remove what extraction wrote into the owners' profiles and their histories; what a service wrote stays."""
    lock_user(connection, user)
    for owner in owners_with_slots(connection, owners):
        claims = connection.execute(_EVIDENCE, (*owner, *owner)).fetchall()
        remove_evidence(connection, owner, {one for (one,) in claims})
