"""Rows: one memory as the table holds it; the features of its text are computed once, when it is stored."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any

import numpy as np
from keepsake_client.times import parse_timestamp
from numpy.typing import NDArray
from pgvector import HalfVector
from psycopg import Cursor
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

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
_INSERT = (
    f"INSERT INTO memories (number, id, user_number, {', '.join(_COLUMN_NAMES)}) OVERRIDING SYSTEM VALUE"  # noqa: S608 - constants
    f" SELECT %(number)s, %(id)s, number, {_VALUES} FROM users WHERE user_id = %(user_id)s"
    " ON CONFLICT (id) DO NOTHING RETURNING id"
)
#: For the second migration, whose table has no `analysis` yet.
_INSERT_UNVERSIONED = _INSERT.replace(", analysis", "").replace(", %(analysis)s", "")
UPDATE = f"UPDATE memories SET ({', '.join(_COLUMN_NAMES)}) = ROW ({_VALUES}) WHERE id = %(id)s"  # noqa: S608 - constants


def memory_row(memory_id: str, vector: Vector, payload: dict[str, Any]) -> dict[str, Any]:
    """The parameters of the statements that insert or update one memory.

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
        "vector": halfvec(vector),
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


def insert_memories(cursor: Cursor[TupleRow], rows: Sequence[dict[str, Any]], *, versioned: bool = True) -> set[str]:
    """Insert rows of `memory_row`, numbered in their order, and return the ids that are new.

    Args:
        versioned: whether the table has the column `analysis`, as it has since the fifth migration.
    """
    # Sorted, so that two concurrent batches cannot deadlock.
    users = sorted({row["user_id"] for row in rows})
    cursor.execute("INSERT INTO users (user_id) SELECT unnest(%s::text[]) ON CONFLICT DO NOTHING", (users,))
    # The number orders turns of the same time, so it must follow the order of the rows, not that of insertion.
    cursor.execute("SELECT nextval('memories_number_seq') FROM generate_series(1, %s)", (len(rows),))
    numbered = [{**row, "number": number} for row, (number,) in zip(rows, cursor.fetchall(), strict=True)]
    cursor.executemany(
        _INSERT if versioned else _INSERT_UNVERSIONED, sorted(numbered, key=itemgetter("id")), returning=True
    )
    return {str(row[0]) for result in cursor.results() for row in result}


def stored_events(cursor: Cursor[TupleRow], ids: Sequence[str]) -> set[tuple[str, str, str]]:
    """Id, source and content of memories: the present content and, of one that was changed, the original too."""
    cursor.execute(
        "SELECT id::text, source, content FROM memories WHERE id = ANY(%(ids)s::uuid[])"
        " UNION SELECT memory_id, source, new_memory FROM memory_history JOIN memories ON memories.id::text = memory_id"
        " WHERE memory_id = ANY(%(ids)s::text[]) AND event = 'ADD' AND memories.id = ANY(%(ids)s::uuid[])",
        {"ids": list(ids)},
    )
    return {(row[0], row[1], row[2]) for row in cursor.fetchall()}


def stored_payload(payload: dict[str, Any]) -> dict[str, Any]:
    """The part of Mem0's payload that the column `payload` holds."""
    # Fields with a column of their own are not stored twice, and Mem0's lemmas serve only its own keyword search.
    return {name: value for name, value in payload.items() if name not in {"data", "user_id", "text_lemmatized"}}


def halfvec(vector: Vector) -> str:
    """A vector as pgvector's text literal in half precision, to be cast by the statement: `%s::halfvec`.

    As text, not as pgvector's registered type: a connection that knows the type by its OID fails after a restore of the
    database, which gives the type another one.
    """
    # By way of float32, as pgvector itself reads numbers.
    text: str = HalfVector(np.asarray(vector, np.float32)).to_text()
    return text
