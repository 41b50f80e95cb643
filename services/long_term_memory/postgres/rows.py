"""Rows: one memory as the table holds it; the features of its text are computed once, when it is stored."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from keepsake_client.times import parse_timestamp
from numpy.typing import NDArray
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from services.long_term_memory.postgres import float_arrays  # noqa: F401 - of the vectors
from services.long_term_memory.retrieval import tokenizer, utterances
from services.long_term_memory.retrieval.columns import hashed, hashed_terms
from services.long_term_memory.retrieval.fingerprints import fingerprint

#: (d,) numbers: an embedder's list, or an array of float32.
Vector = Sequence[float] | NDArray[np.float32]

#: Terms of a memory that can be found by word, the first ones: an index row of PostgreSQL holds 2,704 bytes.
MAX_TERMS = 400

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

_COLUMN_NAMES = ("session", "said_at", "source", "content", "payload", "terms", "traits", "analysis", "vector")
_VALUES = ", ".join(f"%({name})s" + ("::halfvec" if name == "vector" else "") for name in _COLUMN_NAMES)
#: The types of the columns that are sent as one array each.
_ARRAYS = {
    "id": "uuid",
    "user_id": "text",
    "session": "bigint",
    "said_at": "timestamptz",
    "source": "text",
    "content": "text",
    "payload": "jsonb",
    "terms": "bytea",
    "traits": "bytea",
    "analysis": "smallint",
}
_ADD_USERS = (
    "INSERT INTO users (user_id) SELECT user_id FROM unnest(%(users)b::text[]) AS given (user_id)"
    " WHERE NOT EXISTS (SELECT FROM users WHERE users.user_id = given.user_id) ORDER BY user_id ON CONFLICT DO NOTHING"
)
# The number orders turns of the same time, so it must follow the order of the rows, not that of insertion; that is by
# id, so that two concurrent batches cannot deadlock. A user who is missing makes a NULL, which the table refuses.
_GIVEN = ", ".join(f"%({name})b::{kind}[]" for name, kind in _ARRAYS.items())
_ADD_MEMORIES = (
    f"WITH given AS MATERIALIZED (SELECT nextval('memories_number_seq') AS number, * FROM unnest({_GIVEN})"  # noqa: S608 - constants
    f" WITH ORDINALITY AS rows ({', '.join(_ARRAYS)}, place)), added AS ("
    f"INSERT INTO memories (number, id, user_number, {', '.join(_COLUMN_NAMES)}) OVERRIDING SYSTEM VALUE"
    " SELECT number, id, (SELECT users.number FROM users WHERE users.user_id = given.user_id),"
    f" {', '.join(_COLUMN_NAMES[:-1])},"
    " (%(vectors)b)[(place - 1) * %(dimensions)s + 1 : place * %(dimensions)s]::halfvec"
    " FROM given ORDER BY id ON CONFLICT (id) DO NOTHING RETURNING id)"
)
_ADD_HISTORY = (
    ", changes AS (INSERT INTO memory_history"
    " (id, memory_id, new_memory, event, created_at, updated_at, is_deleted, role)"
    " SELECT gen_random_uuid(), id::text, content, 'ADD', payload ->> 'created_at', payload ->> 'updated_at', false,"
    " payload ->> 'role' FROM given JOIN added USING (id) ORDER BY number)"
)
_IDS = " SELECT id::text FROM added"
_INSERT, _INSERT_WITH_HISTORY = _ADD_MEMORIES + _IDS, _ADD_MEMORIES + _ADD_HISTORY + _IDS
#: For the second migration, whose table has no `analysis` yet.
_INSERT_UNVERSIONED = _INSERT.replace(", %(analysis)b::smallint[]", "").replace(", analysis", "")
UPDATE = f"UPDATE memories SET ({', '.join(_COLUMN_NAMES)}) = ROW ({_VALUES}) WHERE id = %(id)s"  # noqa: S608 - constants


def memory_row(memory_id: str, vector: Vector, payload: dict[str, Any]) -> dict[str, Any]:
    """One memory as `insert_memories` takes it, and `UPDATE` as its parameters.

    Args:
        vector: (d,) numbers, the embedding of its text.
        payload: Mem0's, as `MemoryStore.insert` takes it.
    """
    content = payload["data"]
    source = _source(payload)
    said_at = _said_at(payload)
    terms, traits = analyse(content, from_ai=source == "ai", added="request_id" in payload)
    return {
        "id": memory_id,
        "user_id": payload["user_id"],
        "session": _session(payload, said_at),
        "said_at": said_at,
        "source": source,
        "content": content,
        "payload": Jsonb(stored_payload(payload)),
        "terms": terms,
        "traits": traits,
        "analysis": ANALYSIS,
        "vector": np.asarray(vector, np.float32),
    }


def analyse(content: str, *, from_ai: bool, added: bool) -> tuple[bytes, bytes]:
    """What is computed from a text: the columns `terms` and `traits`."""
    terms = hashed_terms(tokenizer.terms(content)[:MAX_TERMS])
    traits = (
        from_ai,
        utterances.asks(content, from_ai=from_ai) + (ADDED if added else 0),
        utterances.script(content),
        len(terms),
        hashed(utterances.speaker(content)),
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
    return hashed(f"day {said_at:%Y-%m-%d}", person=b"day")


def insert_memories(
    connection: Connection[TupleRow], rows: Sequence[dict[str, Any]], *, history: bool = False, versioned: bool = True
) -> set[str]:
    """Insert rows of `memory_row`, numbered in their order, in one round trip; the ids that are new.

    Outside of a transaction it is one of its own: all of it is stored, or nothing.

    Args:
        history: whether the history of a new memory begins with it, in the same statement.
        versioned: whether the table has the column `analysis`, as it has since the fifth migration; without a history.
    """
    if not rows:
        return set()
    vectors = np.stack([row["vector"] for row in rows])
    given = {name: [row[name] for row in rows] for name in _ARRAYS}
    statement = (_INSERT_WITH_HISTORY if history else _INSERT) if versioned else _INSERT_UNVERSIONED
    with connection.pipeline():
        connection.execute(_ADD_USERS, {"users": list({row["user_id"] for row in rows})})
        added = connection.execute(statement, {**given, "vectors": vectors, "dimensions": vectors.shape[1]})
    return {memory_id for (memory_id,) in added.fetchall()}


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
    # Fields with a column of their own are not stored twice, and Mem0's lemmas serve only its own keyword search.
    return {name: value for name, value in payload.items() if name not in {"data", "user_id", "text_lemmatized"}}
