"""Rows: one memory as the table holds it; the features of its text are computed once, when it is stored."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
from keepsake_client.times import parse_timestamp
from numpy.typing import NDArray
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from services.long_term_memory.postgres import float_arrays  # noqa: F401 - of the vectors
from services.long_term_memory.postgres.deletions import DELETED, DIGEST, USER_LOCK, remove_empty_owners
from services.long_term_memory.postgres.pending import TO_EXTRACT
from services.long_term_memory.postgres.pool import PREPARED
from services.long_term_memory.postgres.scope import SHARED, Kind
from services.long_term_memory.retrieval import tokenizer, utterances
from services.long_term_memory.retrieval.columns import hashed, hashed_terms
from services.long_term_memory.retrieval.fingerprints import fingerprint
from services.long_term_memory.retrieval.speakers import speaker_hash

#: (d,) numbers: an embedder's list, or an array of float32.
Vector = Sequence[float] | NDArray[np.float32]

#: Terms of a memory that can be found by word, the first ones: an index row of PostgreSQL holds 2,704 bytes.
MAX_TERMS = 400

#: Fields of a payload with a column of their own, and Mem0's lemmas, which serve only its own keyword search.
_NOT_IN_PAYLOAD = {
    "data",
    "user_id",
    "agent_id",
    "expires_at",
    "event_arrived_at",
    "imported",
    "fact",
    "text_lemmatized",
}

#: The version of `analyse`, as the column `analysis` holds it. What has an earlier one is renewed (analysis.py);
#: another version needs a migration with its index. 1: up to release 0.2.
ANALYSIS = 2

#: Added to `asks` in the traits of a memory that was added by request. These are negative, and from the end of an array
#: of three they are the same question: version 0.2 reads them as such.
ADDED = -3
#: The features of a memory's text, as the column `traits` holds them.
TRAITS = np.dtype(
    [("from_ai", "?"), ("asks", "i1"), ("script", "i1"), ("length", "<u2"), ("speaker", "<i8"), ("fingerprint", "<i8")]
)

#: All features of a memory that have a fixed size, as the generated column `head` holds them: in PostgreSQL's binary
#: format (big-endian, `said_at` in microseconds since 2000) but for the traits.
HEAD = np.dtype([("number", ">i8"), ("session", ">i8"), ("said_at", ">i8"), *TRAITS.descr])

_COLUMN_NAMES = (
    "session",
    "said_at",
    "source",
    "content",
    "payload",
    "terms",
    "traits",
    "analysis",
    "expires_at",
    "vector",
)
_VALUES = ", ".join(f"%({name})s" + ("::halfvec" if name == "vector" else "") for name in _COLUMN_NAMES)
#: The types of the columns that are sent as one array each.
_ARRAYS = {
    "id": "uuid",
    "user_id": "text",
    "agent_id": "text",
    "arrived_at": "timestamptz",
    "imported": "boolean",
    "session": "bigint",
    "said_at": "timestamptz",
    "source": "text",
    "content": "text",
    "payload": "jsonb",
    "terms": "bytea",
    "traits": "bytea",
    "analysis": "smallint",
    "expires_at": "timestamptz",
}
# An owner's row is locked before the snapshot of the next statement is taken: a deletion, which locks it exclusively,
# is then either seen by that statement, or waits and sees what it inserts. In the order of deletions, by number. A new
# owner has no row yet, and is locked by the user's id.
_ADD_OWNERS = (
    "WITH given AS MATERIALIZED"  # noqa: S608 - constants
    " (SELECT * FROM unnest(%(users)b::text[], %(agents)b::text[]) AS pairs (user_id, agent_id)),"
    " locked AS MATERIALIZED (SELECT users.user_id, users.agent_id FROM users JOIN given USING (user_id, agent_id)"
    " WHERE users.kind = %(kind)b ORDER BY users.number FOR KEY SHARE OF users)"
    f" INSERT INTO users (user_id, agent_id, kind) SELECT user_id, agent_id, %(kind)b FROM"
    f" (SELECT user_id, agent_id, pg_advisory_xact_lock_shared({USER_LOCK.format('user_id')}) FROM given"
    " WHERE NOT EXISTS (SELECT FROM locked WHERE (locked.user_id, locked.agent_id) = (given.user_id, given.agent_id))"
    " OFFSET 0) AS new ORDER BY user_id, agent_id ON CONFLICT DO NOTHING"
)
_GIVEN = ", ".join(f"%({name})b::{kind}[]" for name, kind in _ARRAYS.items())
# What was deleted stays deleted: by its id, or because it arrived before a deletion that it meets the conditions of.
# The latter gets a tombstone too: handed over again, it arrives after that deletion.
_REFUSED = (
    "refused AS MATERIALIZED (SELECT id FROM given WHERE"  # noqa: S608 - constants
    " EXISTS (SELECT FROM tombstones WHERE memory_id = given.id) OR given.arrived_at IS NOT NULL AND"
    f" EXISTS (SELECT FROM deletions d WHERE d.user_digest = {DIGEST.format('given.user_id')} AND {DELETED})),"
    " marked AS (INSERT INTO tombstones (memory_id) SELECT id FROM refused"
    " WHERE NOT EXISTS (SELECT FROM memories WHERE memories.id = refused.id) ORDER BY id ON CONFLICT DO NOTHING)"
)
# The number orders turns of the same time, so it must follow the order of the rows, not that of insertion; that is by
# id, so that two concurrent batches cannot deadlock. A user who is missing makes a NULL, which the table refuses.
_ADD_MEMORIES = (
    f"WITH given AS MATERIALIZED (SELECT nextval('memories_number_seq') AS number, * FROM unnest({_GIVEN})"  # noqa: S608 - constants
    f" WITH ORDINALITY AS rows ({', '.join(_ARRAYS)}, place)), {_REFUSED}, added AS ("
    f"INSERT INTO memories (number, id, user_number, user_hash, arrived_at, {', '.join(_COLUMN_NAMES)})"
    " OVERRIDING SYSTEM VALUE SELECT given.number, id, owners.number, owners.user_hash,"
    f" arrived_at, {', '.join(_COLUMN_NAMES[:-1])},"
    " (%(vectors)b)[(place - 1) * %(dimensions)s + 1 : place * %(dimensions)s]::halfvec"
    " FROM given LEFT JOIN users AS owners"
    " ON (owners.user_id, owners.agent_id, owners.kind) = (given.user_id, given.agent_id, %(kind)b)"
    # By whatever key the table has: an id is that of one user's memory alone, as it is derived from the user's.
    " WHERE id NOT IN (SELECT id FROM refused) ORDER BY id ON CONFLICT DO NOTHING RETURNING id"
)
_ADD_HISTORY = (
    ", changes AS (INSERT INTO memory_history"
    " (id, memory_id, new_memory, event, created_at, updated_at, is_deleted, role)"
    " SELECT gen_random_uuid(), id::text, content, 'ADD', payload ->> 'created_at', payload ->> 'updated_at', false,"
    " payload ->> 'role' FROM given JOIN added USING (id) ORDER BY number)"
)
_OUTCOME = " SELECT id::text, true FROM added UNION ALL SELECT id::text, false FROM refused"
_INSERT, _INSERT_WITH_HISTORY = _ADD_MEMORIES + ")" + _OUTCOME, _ADD_MEMORIES + ")" + _ADD_HISTORY + _OUTCOME
_INSERT_TO_EXTRACT = _ADD_MEMORIES + ", user_number)" + _ADD_HISTORY + TO_EXTRACT + _OUTCOME
UPDATE = f"UPDATE memories SET ({', '.join(_COLUMN_NAMES)}) = ROW ({_VALUES}) WHERE id = %(id)s"  # noqa: S608 - constants


class Inserted(NamedTuple):
    """The outcome of an insertion, as ids of memories; the others were there.

    Args:
        new: those that are new.
        refused: those that were deleted before.
    """

    new: set[str]
    refused: set[str]


def memory_row(memory_id: str, vector: Vector, payload: dict[str, Any]) -> dict[str, Any]:
    """One memory as `insert_memories` takes it, and `UPDATE` as its parameters.

    Args:
        vector: (d,) numbers, the embedding of its text.
        payload: Mem0's, as `MemoryStore.insert` takes it.
    """
    content = payload["data"]
    source = _source(payload)
    said_at = _said_at(payload)
    terms, traits = analyse(
        content, from_ai=source == "ai", added="request_id" in payload, speaker=payload.get("speaker")
    )
    return {
        "id": memory_id,
        "user_id": payload["user_id"],
        "agent_id": payload.get("agent_id") or SHARED,
        "arrived_at": _moment(payload.get("event_arrived_at")),
        "imported": bool(payload.get("imported")),
        "session": _session(payload, said_at),
        "said_at": said_at,
        "source": source,
        "content": content,
        "payload": Jsonb(stored_payload(payload)),
        "terms": terms,
        "traits": traits,
        "analysis": ANALYSIS,
        "expires_at": _moment(payload.get("expires_at")),
        "vector": np.asarray(vector, np.float32),
    }


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def analyse(content: str, *, from_ai: bool, added: bool, speaker: dict[str, str] | None = None) -> tuple[bytes, bytes]:
    """What is computed from a text: the columns `terms` and `traits`.

    Args:
        speaker: who said it, with an `id`, a `name` or both; None where only the text may tell.
    """
    # A name is found by its words where it stands before the text, and so it is where it is a field.
    named = f"{speaker['name']}: {content}" if speaker and "name" in speaker else content
    terms = hashed_terms(tokenizer.terms(named)[:MAX_TERMS])
    traits = (
        from_ai,
        utterances.asks(content, from_ai=from_ai) + (ADDED if added else 0),
        utterances.script(content),
        len(terms),
        speaker_hash(speaker, utterances.speaker(content)),
        hashed(fingerprint(content)),
    )
    return terms.tobytes(), np.array(traits, TRAITS).tobytes()


def memory_rows(
    ids: Sequence[str], vectors: Sequence[Sequence[float]], payloads: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The parameters of many memories, as `memory_row` gives them for one."""
    return [memory_row(*row) for row in zip(ids, vectors, payloads, strict=True)]


def _source(payload: dict[str, Any]) -> str:
    # Mem0's own callers name a role and may mean anything by "source".
    source = payload.get("source")
    if source in {"user", "ai"}:
        return str(source)
    return "ai" if payload.get("role") == "assistant" else "user"


def _said_at(payload: dict[str, Any]) -> datetime:
    for name in ("timestamp", "created_at"):
        moment = payload.get(name)
        try:
            seconds = float(moment) if isinstance(moment, int | float) else parse_timestamp(moment)
            return datetime.fromtimestamp(seconds, UTC)
        except (ValueError, OverflowError, OSError):
            continue  # absent, or in another form from Mem0's own callers
    return datetime.now(UTC)


def _session(payload: dict[str, Any], said_at: datetime) -> int:
    """The hash of the session that was given or, since the messages of one day belong together, of the day in UTC."""
    if session_id := payload.get("session_id"):
        return hashed(str(session_id))
    return day_session(said_at)


def day_session(moment: datetime) -> int:
    """The session of what is said on that day in UTC without one."""
    return hashed(f"day {moment:%Y-%m-%d}", person=b"day")


def insert_memories(
    connection: Connection[TupleRow],
    rows: Sequence[dict[str, Any]],
    *,
    history: bool = False,
    extract: bool = False,
    kind: Kind = "message",
) -> Inserted:
    """Insert rows of `memory_row`, numbered in their order, in one round trip.

    Outside of a transaction it is one of its own: all of it is stored, or nothing.

    Args:
        history: whether the history of a new memory begins with it, in the same statement.
        extract: whether a new memory, whose history begins with it too, is put into the outbox of extraction by it.
        kind: of all of them.
    """
    if not rows:
        return Inserted(set(), set())
    insert = _INSERT_TO_EXTRACT if extract else _INSERT_WITH_HISTORY if history else _INSERT
    vectors = np.stack([row["vector"] for row in rows])
    given = {name: [row[name] for row in rows] for name in _ARRAYS}
    # The user's shared owner too, which every deletion locks: it could not lock an owner that is yet to come.
    owners = {(row["user_id"], agent) for row in rows for agent in (row["agent_id"], SHARED)}
    with connection.pipeline():
        connection.execute(
            _ADD_OWNERS,
            {"users": [user for user, _ in owners], "agents": [agent for _, agent in owners], "kind": kind},
            prepare=PREPARED,
        )
        outcome = connection.execute(
            insert,
            {**given, "kind": kind, "vectors": vectors, "dimensions": vectors.shape[1]},
            prepare=PREPARED,
        )
    by_id: dict[str, bool] = dict(outcome.fetchall())
    refused = {memory_id for memory_id, added in by_id.items() if not added}
    if refused:  # an owner that is new has nothing
        remove_empty_owners(connection, {row["user_id"] for row in rows if row["id"] in refused})
    return Inserted(by_id.keys() - refused, refused)


def stored_events(connection: Connection[TupleRow], ids: Sequence[str]) -> set[tuple[str, str, str]]:
    """Id, source and content of memories: the present content and, of one that was changed, the original too."""
    found = connection.execute(
        "SELECT id::text, source, content FROM memories WHERE id = ANY(%(ids)s::uuid[])"
        " UNION SELECT memory_id, source, new_memory FROM memory_history JOIN memories ON memories.id::text = memory_id"
        " WHERE memory_id = ANY(%(ids)s::text[]) AND event = 'ADD' AND memories.id = ANY(%(ids)s::uuid[])",
        {"ids": list(ids)},
    )
    return {(row[0], row[1], row[2]) for row in found.fetchall()}


def stored_payload(payload: dict[str, Any]) -> dict[str, Any]:
    """The part of Mem0's payload that the column `payload` holds."""
    return {name: value for name, value in payload.items() if name not in _NOT_IN_PAYLOAD}
