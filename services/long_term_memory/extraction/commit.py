"""The commit of what was found in a batch: one transaction, fenced by the batch itself.

It takes the messages of the batch out of the outbox, and is rolled back unless that were all of them, in the revision
that was read. So of two that have read the same messages one commits, whatever each of them found, and nothing is
stored of a message that was corrected or deleted meanwhile.

Locks are taken in one order, by all who take several: users, memories, the outbox, facts, the profile, then the rows of
`extraction`, of the usage and of the state.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from psycopg import Connection, Rollback
from psycopg.rows import TupleRow

from services.long_term_memory.extraction import outbox, state
from services.long_term_memory.extraction.batch import Batch, Confirmation, Extraction, FoundFact, Message
from services.long_term_memory.extraction.budget import Reservation, settle
from services.long_term_memory.extraction.outbox import Lease
from services.long_term_memory.extraction.reading import FORGOTTEN
from services.long_term_memory.known_profile import NewSlot, write_slots
from services.long_term_memory.postgres.deletions import lock_user
from services.long_term_memory.postgres.facts import NewFact, add_evidence, insert_facts
from services.long_term_memory.postgres.history import insert_history
from services.long_term_memory.postgres.rows import Vector
from services.long_term_memory.storing import derived_id

# A deletion of messages locks their owner: it is over, or waits and then finds the facts by their evidence.
_LOCK_OWNER = "SELECT FROM users WHERE number = %s FOR KEY SHARE"
# A correction locks the message before its place in the outbox.
_LOCK_MESSAGES = "SELECT FROM memories WHERE number = ANY(%s) ORDER BY number FOR KEY SHARE"
_LOCK_BATCH = "SELECT FROM to_extract WHERE memory_number = ANY(%s) ORDER BY memory_number FOR UPDATE"
_TAKE = (
    "WITH batch AS (SELECT * FROM unnest(%(numbers)s::bigint[], %(revisions)s::bigint[]) AS given (number, revision))"  # noqa: S608 - constants
    " DELETE FROM to_extract t USING batch, memories m WHERE t.memory_number = batch.number"
    " AND t.revision = batch.revision AND t.set_aside IS NULL AND m.number = batch.number"
    f" AND NOT {FORGOTTEN} RETURNING t.memory_number"
)
_CONFIRMED = (
    "SELECT m.number, m.id::text, m.content FROM memories m JOIN users u ON u.number = m.user_number"
    " WHERE m.number = ANY(%(numbers)s) AND (user_id, agent_id, kind) = (%(user)s, %(agent)s, 'fact')"
    " FOR KEY SHARE OF m"
)
_STORED = (
    "SELECT count(DISTINCT number), count(fact_number) FROM memories"
    " LEFT JOIN superseded_facts ON number IN (superseded_by, fact_number) WHERE id = ANY(%s::uuid[])"
)


@dataclass(frozen=True, slots=True)
class Committed:
    """What a commit stored, as numbers.

    Args:
        dropped: facts that were deleted before, and slots that a service wrote or the profile has no room for.
    """

    facts: int = 0
    superseded: int = 0
    confirmed: int = 0
    dropped: int = 0


def commit(
    connection: Connection[TupleRow],
    batch: Batch,
    lease: Lease,
    found: Extraction,
    vectors: Sequence[Vector],
    reservation: Reservation,
) -> Committed | None:
    """Store what was found in a batch, and settle what it cost; None, with nothing done, where the batch has changed.

    Args:
        vectors: of the texts of the facts.
    """
    numbers = [message.number for message in batch.messages]
    values = {"numbers": numbers, "revisions": [message.revision for message in batch.messages]}
    with connection.transaction() as transaction:
        lock_user(connection, batch.owner.user)
        connection.execute(_LOCK_OWNER, (batch.user_number,))
        connection.execute(_LOCK_MESSAGES, (numbers,))
        connection.execute(_LOCK_BATCH, (numbers,))
        taken = connection.execute(_TAKE, {**values, "user": batch.owner.user}).fetchall()
        confirmed = _confirm(connection, batch, found.confirmations) if len(taken) == len(numbers) else None
        if confirmed is None:
            raise Rollback(transaction)
        facts = [_new_fact(batch, place, *pair) for place, pair in enumerate(zip(found.facts, vectors, strict=True))]
        inserted = insert_facts(connection, batch.owner, facts)
        stored, superseded = connection.execute(_STORED, ([fact.id for fact in facts],)).fetchone() or (0, 0)
        slots = write_slots(connection, batch.owner, _slots(batch, found))
        outbox.end(connection, lease)
        settle(connection, reservation, found.usage)
        state.succeeded(connection)
        dropped = len(inserted.refused) + slots.of_service + slots.too_large + slots.deleted
        return Committed(stored, superseded, confirmed, dropped)
    return None


def _confirm(connection: Connection[TupleRow], batch: Batch, confirmations: Sequence[Confirmation]) -> int | None:
    """Give stored facts further evidence, with an entry of their history; None where one is no longer there."""
    if not confirmations:
        return 0
    by_fact: dict[int, set[int]] = {}
    for confirmation in confirmations:
        by_fact.setdefault(confirmation.fact_number, set()).update(confirmation.evidence)
    values = {"numbers": list(by_fact), "user": batch.owner.user, "agent": batch.owner.agent}
    facts = connection.execute(_CONFIRMED, values).fetchall()
    if len(facts) < len(by_fact):
        return None
    for number, fact_id, content in facts:
        add_evidence(connection, number, sorted(by_fact[number]))
        last = _last(batch, by_fact[number])
        said_at = datetime.fromtimestamp(last.said_at, UTC).isoformat()
        texts = {"old_memory": content, "new_memory": content}
        change = {"memory_id": fact_id, **texts, "event": "CONFIRM", "updated_at": said_at, "actor_id": last.memory_id}
        with connection.cursor() as cursor:
            insert_history(cursor, [change])
    return len(facts)


def _new_fact(batch: Batch, place: int, found: FoundFact, vector: Vector) -> NewFact:
    """A found fact as it is stored.

    Its id is that of its place in the answer to this batch. A message that is read again has another revision, so that
    what is found then is not taken for what was deleted before.
    """
    last = _last(batch, found.evidence)
    read = [[message.memory_id, message.revision] for message in batch.messages]
    of_user = any(message.source == "user" for message in batch.messages if message.number in found.evidence)
    return NewFact(
        id=derived_id(*batch.owner, "fact", read, place),
        content=found.text,
        vector=vector,
        kind=found.kind,
        about=found.about,
        when=found.when,
        said_at=last.said_at,
        source="user" if of_user else "ai",
        session_id=last.session_id,
        speaker=last.speaker,
        evidence=found.evidence,
        replaces=found.replaces,
    )


def _slots(batch: Batch, found: Extraction) -> list[NewSlot]:
    ids = {message.number: message.memory_id for message in batch.messages}
    return [
        NewSlot(
            slot=change.slot,
            value=change.value,
            evidence=[ids[number] for number in change.evidence],
            said_at=_last(batch, change.evidence).said_at,
        )
        for change in found.slots
    ]


def _last(batch: Batch, evidence: Iterable[int]) -> Message:
    """The last message of some evidence; the batch is in the order in which it was said."""
    numbers = set(evidence)
    return next(message for message in reversed(batch.messages) if message.number in numbers)
