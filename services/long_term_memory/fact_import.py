"""Import of facts: each is stored where a message that says it is there; idempotent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from keepsake_client.protocol import encode_user_id
from keepsake_client.records import FactRecord
from psycopg import Connection
from psycopg.rows import TupleRow

from services.long_term_memory.postgres import portable
from services.long_term_memory.postgres.facts import NewFact, add_evidence, insert_facts
from services.long_term_memory.postgres.portable_facts import numbers_of, supersede, uuids
from services.long_term_memory.postgres.rows import Vector
from services.long_term_memory.postgres.scope import Owner, encode_agent_id
from services.long_term_memory.storing import fact_id


def import_facts(
    connection: Connection[TupleRow],
    user_id: str,
    facts: Sequence[tuple[FactRecord, Vector]],
    *,
    restore_deleted: bool = False,
) -> Counter[str]:
    """Store facts with their vectors; how many are `new`, `known`, or stay `deleted`.

    The latter are those that were deleted, or that no message says which is there.
    """
    outcome: Counter[str] = Counter()
    user = encode_user_id(user_id)
    for record, vector in facts:  # in their order: what replaced a fact is before it
        owner = Owner(user, encode_agent_id(record.agent_id))
        with connection.transaction():
            outcome[_import(connection, owner, record, vector, restore_deleted)] += 1
            if record.superseded_by and record.superseded_at is not None:  # perhaps since an earlier import
                numbers = numbers_of(connection, owner, [record.id, record.superseded_by], messages=False)
                if len(numbers) == 2:
                    supersede(
                        connection, owner, numbers[record.id], numbers[record.superseded_by], record.superseded_at
                    )
    return outcome


def _import(
    connection: Connection[TupleRow], owner: Owner, record: FactRecord, vector: Vector, restore_deleted: bool
) -> str:
    said = numbers_of(connection, owner, record.evidence, messages=True)
    if known := numbers_of(connection, owner, [record.id], messages=False):
        add_evidence(connection, known[record.id], list(said.values()))
        return "known"
    own_id = fact_id(owner, record.id)
    ids = [own_id, *uuids([record.id])]
    if restore_deleted:
        portable.drop_tombstones(connection, ids)
    if not said or portable.deleted_ids(connection, ids):
        return "deleted"
    inserted = insert_facts(connection, owner, [_fact(own_id, record, vector, list(said.values()))])
    if own_id not in inserted.new:
        return "deleted" if own_id in inserted.refused else "known"
    if record.history:
        role = "assistant" if record.source == "ai" else "user"
        portable.replace_history(connection, own_id, role, record.history)
    return "new"


def _fact(own_id: str, record: FactRecord, vector: Vector, evidence: list[int]) -> NewFact:
    return NewFact(
        id=own_id,
        content=record.content,
        vector=vector,
        kind=record.fact_kind,
        about=record.about,
        when=record.when,
        said_at=record.timestamp,
        source=record.source,
        session_id=record.session_id,
        speaker=None if record.speaker is None else record.speaker.model_dump(exclude_none=True),
        evidence=evidence,
        more={"exported_id": record.id, **({"meta": record.meta} if record.meta else {})},
    )
