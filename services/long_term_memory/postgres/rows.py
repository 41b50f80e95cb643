"""Rows: one memory as the table holds it, judged from its text once, when it is stored."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from operator import itemgetter
from typing import Any

import numpy as np
from keepsake_client.protocol import parse_timestamp
from numpy.typing import NDArray
from psycopg import Cursor
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from services.long_term_memory.retrieval import tokenizer, utterances

#: Of a longer memory, the first so many terms can be found by word: an index row of PostgreSQL holds 2,704 bytes.
MAX_TERMS = 400

#: What is judged of a memory's text once, when it is stored, as the column `traits` holds it.
TRAITS = np.dtype(
    [("from_ai", "?"), ("asks", "i1"), ("script", "i1"), ("length", "<u2"), ("speaker", "<i8"), ("fingerprint", "<i8")]
)

#: All that ranks a memory and has a fixed size, as the column `head` holds it: sent by PostgreSQL, but for the traits.
HEAD = np.dtype([("number", ">i8"), ("session", ">i8"), ("said_at", ">i8"), *TRAITS.descr])

_COLUMN_NAMES = ("session", "said_at", "source", "content", "payload", "terms", "traits", "vector")
_VALUES = ", ".join(f"%({name})s" + ("::halfvec" if name == "vector" else "") for name in _COLUMN_NAMES)
_INSERT = (
    f"INSERT INTO memories (number, id, user_number, {', '.join(_COLUMN_NAMES)}) OVERRIDING SYSTEM VALUE"  # noqa: S608 - constants
    f" SELECT %(number)s, %(id)s, number, {_VALUES} FROM users WHERE user_id = %(user_id)s"
    " ON CONFLICT (id) DO NOTHING RETURNING id"
)
UPDATE = f"UPDATE memories SET ({', '.join(_COLUMN_NAMES)}) = ROW ({_VALUES}) WHERE id = %(id)s"  # noqa: S608 - constants


def memory_row(memory_id: str, vector: Sequence[float], payload: dict[str, Any]) -> dict[str, Any]:
    """The columns of one memory, judged from its text once, when it is stored.

    Args:
        payload: Mem0's, as `MemoryStore.insert` takes it.
    """
    content = payload["data"]
    source = _source(payload)
    said_at = _said_at(payload)
    terms = hashed_terms(tokenizer.terms(content)[:MAX_TERMS])
    judged = (
        source == "ai",
        utterances.asks(content),
        utterances.script(content),
        len(terms),
        hashed(utterances.speaker(content)),
        hashed(utterances.fingerprint(content)),
    )
    return {
        "id": memory_id,
        "user_id": payload["user_id"],
        "session": _session(payload, said_at),
        "said_at": said_at,
        "source": source,
        "content": content,
        "payload": Jsonb(kept(payload)),
        "terms": terms.tobytes(),
        "traits": np.array(judged, TRAITS).tobytes(),
        "vector": literal(vector),
    }


def memory_rows(
    ids: Sequence[str], vectors: Sequence[Sequence[float]], payloads: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """`memory_row` for many."""
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
            continue  # absent, or whatever Mem0's own callers mean by it
    return datetime.now(UTC)


def _session(payload: dict[str, Any], said_at: datetime) -> int:
    """The session that was given or, since what is said in a day hangs together, that of the day."""
    if session_id := payload.get("session_id"):
        return hashed(str(session_id))
    return hashed(f"day {said_at:%Y-%m-%d}", person=b"day")


def insert_memories(cursor: Cursor[TupleRow], rows: Sequence[dict[str, Any]]) -> set[str]:
    """Insert rows of `memory_row`, numbered in their order, and return the ids that are new."""
    # In order, so that two batches at once cannot wait for each other in a circle.
    users = sorted({row["user_id"] for row in rows})
    cursor.execute("INSERT INTO users (user_id) SELECT unnest(%s::text[]) ON CONFLICT DO NOTHING", (users,))
    # Of turns in one second the number says which came first, so it cannot follow from the order of insertion.
    cursor.execute("SELECT nextval('memories_number_seq') FROM generate_series(1, %s)", (len(rows),))
    numbered = [{**row, "number": number} for row, (number,) in zip(rows, cursor.fetchall(), strict=True)]
    cursor.executemany(_INSERT, sorted(numbered, key=itemgetter("id")), returning=True)
    return {str(row[0]) for result in cursor.results() for row in result}


def hashed(text: str, person: bytes = b"") -> int:
    """64 bits of a text's BLAKE2b, as PostgreSQL's signed bigint; 0 for the empty text.

    Args:
        person: BLAKE2's personalisation: texts of another kind, whose hashes are none of these.
    """
    if not text:
        return 0
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, person=person).digest()
    return int.from_bytes(digest, "big", signed=True)


def hashed_terms(terms: Sequence[str]) -> NDArray[np.uint32]:
    """A CRC-32 for each term, in their order. Two terms of one user meet in one hash once in four billion pairs."""
    return np.array([zlib.crc32(term.encode("utf-8", "surrogatepass")) for term in terms], dtype="<u4")


def kept(payload: dict[str, Any]) -> dict[str, Any]:
    """What of Mem0's payload goes into the column `payload`."""
    # What has a column of its own is not kept twice, and Mem0's lemmas only serve its own keyword search.
    return {name: value for name, value in payload.items() if name not in {"data", "user_id", "text_lemmatized"}}


def literal(vector: Sequence[float] | NDArray[np.float32]) -> str:
    """A vector as pgvector reads it."""
    return json.dumps(vector.tolist() if isinstance(vector, np.ndarray) else [float(x) for x in vector])
