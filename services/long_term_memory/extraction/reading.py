"""Reading of a batch: an owner's oldest pending messages, with what it takes to understand them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import tzinfo
from functools import cache
from typing import Any, Final
from zoneinfo import available_timezones

from psycopg import Connection
from psycopg.rows import TupleRow

from services.long_term_memory.extraction.batch import Batch, KnownFact, Message
from services.long_term_memory.known_profile import read_slots
from services.long_term_memory.known_slots import EVIDENCE_OF_SLOTS
from services.long_term_memory.postgres.deletions import DIGEST
from services.long_term_memory.postgres.pending import BATCH_TOKENS
from services.long_term_memory.postgres.reader import MAX_FACTS
from services.long_term_memory.postgres.scope import Owner

#: Messages before the batch, to understand its first ones by.
BEFORE: Final = 4
#: Stored facts that may be concerned: of those that slots of the profile come from, of other states, and of all others
#: those nearest to the messages of the batch, so many of each; then the newest, so many in all.
OF_SLOTS, STATES, OTHERS, SHOWN_FACTS = 6, 3, 3, 12
_COLUMNS = (
    "m.number, m.id::text, m.content, m.source, extract(epoch FROM m.said_at)::float8, m.payload ->> 'session_id',"
    " m.payload -> 'speaker', m.payload -> 'meta' ->> 'timezone'"
)
# What arrived before its user was forgotten is about to be deleted.
FORGOTTEN: Final = (
    f"EXISTS (SELECT FROM deletions WHERE user_digest = {DIGEST.format('%(user)s')} AND everything"
    " AND deleted_at >= coalesce(m.arrived_at, '-infinity'))"
)
_PENDING = (
    f"SELECT {_COLUMNS}, t.revision, t.tokens FROM (SELECT * FROM to_extract"  # noqa: S608 - constants
    " WHERE user_number = %(owner)s AND set_aside IS NULL ORDER BY memory_number LIMIT %(limit)s) AS t"
    " JOIN memories m ON m.number = t.memory_number WHERE (m.expires_at IS NULL OR m.expires_at > now())"
    f" AND NOT {FORGOTTEN} ORDER BY t.memory_number"
)
# What was deleted by Mem0's own methods, or with its owner.
_DROP_DELETED = (
    "DELETE FROM to_extract WHERE memory_number IN (SELECT memory_number FROM to_extract WHERE user_number = %(owner)s"
    " AND set_aside IS NULL ORDER BY memory_number LIMIT %(limit)s)"
    " AND NOT EXISTS (SELECT FROM memories WHERE number = memory_number)"
)
_BEFORE = (
    f"SELECT {_COLUMNS} FROM memories m WHERE user_number = %(owner)s"  # noqa: S608 - constants
    " AND (m.said_at, m.number) < (SELECT said_at, number FROM memories WHERE number = %(first)s)"
    " AND NOT m.payload ? 'request_id' AND m.number <> ALL(%(numbers)s)"
    " ORDER BY m.said_at DESC, m.number DESC LIMIT %(count)s"
)
# What a message changes is mostly a state, above all one that a slot says; what it is nearest to may be anything: by
# multilingual-e5-small "I moved to Lisbon last week!" is nearer to what was talked about on a day than to "The user
# lives in Oslo.". So each part has places of its own. In a part, each message's nearest fact goes before any second
# nearest, and of these the one that is nearer than the part is on average: twenty messages about one matter leave room
# for another. Of very many facts the newest are compared, as a search reads them: 20,000 take 0.6 s.
_FACTS = (
    "WITH of_slots AS MATERIALIZED (SELECT fact_number FROM fact_evidence JOIN memories m ON m.number = memory_number"  # noqa: S608 - constants
    " WHERE m.id = ANY(ARRAY(SELECT (said.id #>> '{}')::uuid"
    f" FROM profiles, {EVIDENCE_OF_SLOTS}"
    " WHERE (user_id, agent_id) = (%(user)s, %(agent)s)"
    " AND said.id #>> '{}' ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'))),"
    " facts AS MATERIALIZED (SELECT number, content, payload, said_at, vector,"
    " CASE WHEN number IN (SELECT fact_number FROM of_slots) THEN 'slot'"
    " WHEN payload ->> 'fact_kind' = 'state' THEN 'state' ELSE 'other' END AS part FROM memories WHERE user_number ="
    " (SELECT number FROM users WHERE (user_id, agent_id, kind) = (%(user)s, %(agent)s, 'fact'))"
    f" ORDER BY number DESC LIMIT {MAX_FACTS}),"
    " distances AS MATERIALIZED (SELECT f.number, part, m.number AS message,"
    " nullif(f.vector <=> m.vector, 'NaN') AS distance FROM facts f, memories m WHERE m.number = ANY(%(numbers)s)),"
    " compared AS (SELECT number, part,"
    " row_number() OVER (PARTITION BY message, part ORDER BY distance, number) AS place,"
    " distance - avg(distance) OVER (PARTITION BY message, part) AS above_average FROM distances),"
    " best AS (SELECT DISTINCT ON (number) * FROM compared ORDER BY number, place, above_average),"
    " nearest AS (SELECT number FROM (SELECT number, part,"
    " row_number() OVER (PARTITION BY part ORDER BY place, above_average, number) AS place FROM best) AS ordered"
    f" WHERE place <= CASE part WHEN 'slot' THEN {OF_SLOTS} WHEN 'state' THEN {STATES} ELSE {OTHERS} END),"
    " newest AS (SELECT number FROM facts WHERE number NOT IN (SELECT number FROM nearest)"
    f" ORDER BY said_at DESC, number DESC LIMIT {SHOWN_FACTS} - (SELECT count(*) FROM nearest))"
    " SELECT number, content, payload ->> 'fact_kind', payload ->> 'when' FROM facts"
    " WHERE number IN (SELECT number FROM nearest UNION ALL SELECT number FROM newest) ORDER BY said_at, number"
)


def read_batch(connection: Connection[TupleRow], owner_number: int, limit: int, zone: tzinfo) -> Batch | None:
    """The next batch of an owner, in the order in which it was said; None where nothing is pending.

    Args:
        limit: messages at most.
        zone: of the users.
    """
    connection.execute(_DROP_DELETED, {"owner": owner_number, "limit": limit})
    row = connection.execute(
        "SELECT user_id, agent_id FROM users WHERE number = %s AND kind = 'message'", (owner_number,)
    ).fetchone()
    if row is None:
        return None
    owner = Owner(*row)
    values: dict[str, Any] = {"owner": owner_number, "limit": limit, "user": owner.user, "agent": owner.agent}
    messages = _of_one_call([_message(*row) for row in connection.execute(_PENDING, values).fetchall()])
    if not messages:
        return None
    values |= {"numbers": [message.number for message in messages], "first": messages[0].number}
    before = connection.execute(_BEFORE, {**values, "count": BEFORE}).fetchall()
    facts = connection.execute(_FACTS, values).fetchall()
    return Batch(
        owner=owner,
        user_number=owner_number,
        messages=messages,
        before=[_message(*row) for row in reversed(before)],
        facts=[KnownFact(*row) for row in facts],
        slots=read_slots(connection, owner),
        zone=zone,
    )


@cache
def _zones() -> frozenset[str]:
    """The names of time zones that a message may have in its `meta.timezone`: read from files, which takes 10 ms."""
    return frozenset(available_timezones())


def _message(
    number: int,
    memory_id: str,
    content: str,
    source: str,
    said_at: float,
    session_id: str | None,
    speaker: dict[str, str] | None,
    timezone: str | None,
    revision: int = 0,
    tokens: int = 0,
) -> Message:
    known = timezone if timezone in _zones() else None
    return Message(number, memory_id, content, source, said_at, session_id, speaker, known, revision, tokens)


def _of_one_call(pending: Sequence[Message]) -> list[Message]:
    """The first messages that are no more tokens than a batch may have, at least one, in the order of their times."""
    taken: list[Message] = []
    tokens = 0
    for message in pending:
        tokens += message.tokens
        if taken and tokens > BATCH_TOKENS:
            break
        taken.append(message)
    return sorted(taken, key=lambda message: (message.said_at, message.number))
