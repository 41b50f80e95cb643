"""Facts in PostgreSQL: memories of an owner of their own, each with its evidence; what replaced them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal

from psycopg import Connection
from psycopg.rows import TupleRow

from services.long_term_memory.postgres.history import insert_history
from services.long_term_memory.postgres.rows import Inserted, Vector, insert_memories, memory_row
from services.long_term_memory.postgres.scope import Owner

#: `state`: true until changed; `event`: happened once; `plan`: is to happen; `promise`: the AI said that it would.
FactKind = Literal["state", "event", "plan", "promise"]

_ARRIVALS = "SELECT number, arrived_at FROM memories WHERE number = ANY(%s)"
#: Names in the `metadata` of a fact that are Keepsake's alone, also where the fact has none of them.
FACT_METADATA: Final = frozenset({"fact_kind", "evidence", "superseded_by", "superseded_at"})
#: What a response says of a fact beside its row, as SQL of the relation `memory` and its owner `users`; else NULL.
ABOUT_FACTS: Final = (
    "CASE WHEN users.kind <> 'message' THEN jsonb_strip_nulls(jsonb_build_object("
    "'fact_kind', {memory}.payload -> 'fact_kind', 'evidence', coalesce("
    "(SELECT jsonb_agg(said.id ORDER BY said.said_at, said.number) FROM fact_evidence e"
    " JOIN memories said ON said.number = e.memory_number AND said.user_hash = {memory}.user_hash"
    " WHERE e.fact_number = {memory}.number), '[]'),"
    "'superseded_by', (SELECT new.id FROM superseded_facts s JOIN memories new ON new.number = s.superseded_by"
    " AND new.user_hash = {memory}.user_hash WHERE s.fact_number = {memory}.number),"
    "'superseded_at', (SELECT round(extract(epoch FROM superseded_at), 3) FROM superseded_facts s"
    " WHERE s.fact_number = {memory}.number))) END"
)

_ADD_EVIDENCE = (
    "INSERT INTO fact_evidence (fact_number, memory_number)"
    " SELECT f.number, e.memory_number FROM unnest(%(ids)s::uuid[], %(memories)s::bigint[]) AS e (id, memory_number)"
    " JOIN memories f ON f.id = e.id ON CONFLICT DO NOTHING"
)
# Of two, what was said later holds, as of slots, in whatever order they are read: a rebuild after an import, or a
# message that was late, reads the older one last.
_SUPERSEDE = (
    "WITH replaced AS (SELECT CASE WHEN later THEN new.number ELSE old.number END AS number,"
    " CASE WHEN later THEN old.number ELSE new.number END AS superseded_by"
    " FROM unnest(%(ids)s::uuid[], %(replaced)s::bigint[]) AS r (id, number)"
    " JOIN memories new ON new.id = r.id JOIN memories old ON old.number = r.number"
    " CROSS JOIN LATERAL (SELECT old.said_at > new.said_at AS later) AS compared"
    " JOIN users ON users.number = old.user_number AND (user_id, agent_id, kind) = (%(user)s, %(agent)s, 'fact')),"
    " noted AS (INSERT INTO superseded_facts (fact_number, superseded_by) SELECT number, superseded_by FROM replaced"
    " ON CONFLICT (fact_number) DO NOTHING RETURNING fact_number)"
    " UPDATE memories SET user_number = (SELECT number FROM users"
    " WHERE (user_id, agent_id, kind) = (%(user)s, %(agent)s, 'superseded'))"
    " WHERE number IN (SELECT fact_number FROM noted)"
    " RETURNING id::text, content, (SELECT id::text FROM memories m JOIN replaced r ON m.number = r.superseded_by"
    " WHERE r.number = memories.number LIMIT 1)"
)


@dataclass(frozen=True, slots=True)
class NewFact:
    """A fact to be stored.

    Args:
        id: derived from its batch: stored again, it is the same one.
        content: one sentence that stands alone.
        vector: (d,) numbers, the embedding of the content.
        kind: what kind of fact.
        about: `user`, `ai`, or the name of whom it is about.
        when: the date or span that it is about (YYYY-MM-DD, YYYY-MM, YYYY or A/B); None where none is known.
        said_at: the time of the last message of its evidence, in seconds since 1970.
        source: `user`, or `ai` where only messages of the AI say it.
        session_id: of that message.
        speaker: of that message: an `id`, a `name` or both.
        evidence: numbers of the messages that say it, at least one.
        replaces: numbers of the facts that are no longer true because of it; one that was said later replaces it.
        more: further fields of its payload.
    """

    id: str
    content: str
    vector: Vector
    kind: FactKind
    about: str
    when: str | None
    said_at: float
    source: Literal["user", "ai"]
    session_id: str | None
    speaker: dict[str, str] | None
    evidence: Sequence[int]
    replaces: Sequence[int] = ()
    more: dict[str, Any] = field(default_factory=dict)


def insert_facts(connection: Connection[TupleRow], owner: Owner, facts: Sequence[NewFact]) -> Inserted:
    """Insert facts with evidence and history in one transaction; what they replace is superseded. Idempotent.

    A fact arrived with the last message of its evidence: one that meets a deletion after that is refused.

    Args:
        owner: whose they are; that of the messages which they were found in.
    """
    if not facts:
        return Inserted(set(), set())
    with connection.transaction():
        said = {number for fact in facts for number in fact.evidence}
        arrivals: dict[int, datetime | None] = dict(connection.execute(_ARRIVALS, (list(said),)).fetchall())
        rows = []
        for fact in facts:
            times = [arrivals.get(number) for number in fact.evidence]
            known = [time for time in times if time is not None]
            arrived_at = max(known) if len(known) == len(times) else None
            # Of what was imported its arrival alone counts, and so it does of a fact.
            rows.append({**_row(owner, fact), "arrived_at": arrived_at, "imported": True})
        inserted = insert_memories(connection, rows, history=True, kind="fact")
        evidence = [(fact.id, number) for fact in facts for number in fact.evidence]
        connection.execute(_ADD_EVIDENCE, _columns(evidence, "memories"))
        replaced = [(fact.id, number) for fact in facts for number in fact.replaces]
        if replaced:
            _supersede(connection, owner, replaced)
    return inserted


def add_evidence(connection: Connection[TupleRow], fact_number: int, memory_numbers: Sequence[int]) -> None:
    """Add messages that say the same as a fact, those that there still are."""
    connection.execute(
        # A deletion of the fact, or of a message, waits for it, or has been.
        "WITH fact AS MATERIALIZED (SELECT number FROM memories WHERE number = %s FOR KEY SHARE),"
        " said AS MATERIALIZED (SELECT number FROM memories WHERE number = ANY(%s) ORDER BY number FOR KEY SHARE)"
        " INSERT INTO fact_evidence (fact_number, memory_number)"
        " SELECT fact.number, said.number FROM fact, said ON CONFLICT DO NOTHING",
        (fact_number, list(memory_numbers)),
    )


def _row(owner: Owner, fact: NewFact) -> dict[str, Any]:
    known = {
        "when": fact.when,
        "session_id": fact.session_id,
        "speaker": fact.speaker,
        "agent_id": owner.agent or None,
    }
    created_at = datetime.fromtimestamp(fact.said_at, UTC).isoformat()
    payload = {
        **{name: value for name, value in known.items() if value is not None},
        "data": fact.content,
        "user_id": owner.user,
        "role": "assistant" if fact.source == "ai" else "user",
        "source": fact.source,
        "timestamp": fact.said_at,
        "created_at": created_at,
        "updated_at": created_at,
        "fact_kind": fact.kind,
        "about": fact.about,
        **fact.more,
    }
    return memory_row(fact.id, fact.vector, payload)


def _supersede(connection: Connection[TupleRow], owner: Owner, replaced: Sequence[tuple[str, int]]) -> None:
    """Give the replaced facts to the owner of the superseded ones; the history of each says by which fact."""
    connection.execute(
        "INSERT INTO users (user_id, agent_id, kind) VALUES (%s, %s, 'superseded') ON CONFLICT DO NOTHING", owner
    )
    changed = connection.execute(
        _SUPERSEDE, {**_columns(replaced, "replaced"), "user": owner.user, "agent": owner.agent}
    ).fetchall()
    with connection.cursor() as cursor:
        insert_history(
            cursor,
            [
                {"memory_id": fact, "old_memory": content, "new_memory": content, "event": "SUPERSEDE", "actor_id": by}
                for fact, content, by in changed
            ],
        )


def _columns(pairs: Sequence[tuple[str, int]], name: str) -> dict[str, Any]:
    return {"ids": [fact for fact, _ in pairs], name: [number for _, number in pairs]}
