"""Portability: everything that is kept of a user as records, and records back into memories."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from keepsake_client.errors import InvalidMessage
from keepsake_client.fields import clean
from keepsake_client.protocol import decode_user_id, encode_user_id, json_number
from keepsake_client.records import FactRecord, MemoryRecord, ProfileChangeRecord, ProfileRecord, Record, parse_record
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool
from pydantic import AfterValidator, Field, TypeAdapter

from services.long_term_memory.fact_import import import_facts
from services.long_term_memory.known_slots import KNOWN, evidence_of, slots_of, without_evidence
from services.long_term_memory.postgres import portable
from services.long_term_memory.postgres.deletions import forgotten_after, lock_user
from services.long_term_memory.postgres.noted_writes import NoteWrites, no_notes
from services.long_term_memory.postgres.pool import database_errors
from services.long_term_memory.postgres.portable import BEGINNING_US, Place
from services.long_term_memory.postgres.portable_facts import CURRENT_US, FactPlace, facts_of, uuids
from services.long_term_memory.postgres.rows import stored_events
from services.long_term_memory.postgres.scope import encode_agent_id
from services.long_term_memory.storing import MemoryWriter, Utterance, embedded, of_record


def _storable(text: str) -> str:
    if clean(text) != text:
        raise ValueError("PostgreSQL cannot store it")
    return text


#: A page ends before it has more bytes of JSON: it is to fit into one `user_import`.
MAX_PAGE_BYTES = 500_000
_PROFILES: Literal["profiles"] = "profiles"
_CHANGES: Literal["changes"] = "changes"
_MEMORIES: Literal["memories"] = "memories"
_FACTS: Literal["facts"] = "facts"
#: Times are in PostgreSQL's range.
_Number = Annotated[int, Field(strict=True, ge=BEGINNING_US, lt=2**62)]
_Agent = Annotated[str, AfterValidator(_storable)]
#: What a cursor holds.
_PLACE: TypeAdapter[tuple[Any, ...]] = TypeAdapter(
    tuple[Literal["changes"], _Agent, _Number]
    | tuple[Literal["memories"], _Agent, _Number, _Number, _Number]
    | tuple[Literal["facts"], _Number, _Number]
)


@dataclass(frozen=True, slots=True)
class ImportOutcome:
    """Numbers of imported memories: new ones, those that were there, and those that stay deleted."""

    new: int = 0
    known: int = 0
    deleted: int = 0


class Portability:
    """Exports and imports one user at a time.

    Args:
        max_content_chars: no content of a record is longer.
        note: of the writes of users.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        writer: MemoryWriter,
        max_content_chars: int,
        *,
        note: NoteWrites = no_notes,
    ) -> None:
        self._note = note
        self._pool = pool
        self._writer = writer
        self._max_content_chars = max_content_chars

    def export(self, user_id: str, limit: int, cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
        """A page of records, and the cursor of the next one; None for the last one.

        First the profiles, then their changes, then the memories of each owner by time, then the facts. What is stored
        meanwhile, with an earlier time, may be missing.

        Raises:
            InvalidMessage: the cursor is none of this method's.
            Unavailable: the database does not answer.
        """
        stage, *place = _read_cursor(cursor)
        user = encode_user_id(user_id)
        with database_errors(), self._pool.connection() as connection:
            if stage == _PROFILES:
                profiles = portable.profiles_of(connection, user)
                return [_profile_record(row) for row in profiles], _cursor(_CHANGES, "", 0)
            if stage == _CHANGES:
                agent, version = place
                changes = portable.profile_changes_of(connection, user, agent, version, limit)
                items = [(_change_record(row), _cursor(_CHANGES, row["agent_id"], row["version"])) for row in changes]
                return _page(items, limit, _cursor(_MEMORIES, *Place()))
            if stage == _FACTS:
                facts = facts_of(connection, user, FactPlace(*place), limit)
                items = [(_fact_record(row), _cursor(_FACTS, *at)) for at, row in facts]
                return _page(items, limit, None)
            found = portable.memories_of(connection, user, Place(*place), limit)
        if found is None:
            return [], _cursor(_FACTS, *FactPlace())
        agent, memories = found
        items = [(_memory_record(agent, row), _cursor(_MEMORIES, *at)) for at, row in memories]
        return _page(items, limit, _cursor(_MEMORIES, *Place(agent, is_done=1)))

    def import_records(
        self, user_id: str, records: Sequence[dict[str, Any]], at: float, *, restore_deleted: bool = False
    ) -> ImportOutcome:
        """Store records; idempotent: what is there is left as it is.

        Args:
            at: when the import arrived, in seconds since 1970: what was deleted after that stays deleted.
            restore_deleted: stores what was deleted, too.

        Raises:
            InvalidMessage: a record is none, and nothing was stored; it names the record.
            Unavailable: the database or the embedder does not answer; a part may be stored.
        """
        parsed = [
            parse_record(record, self._max_content_chars, f"records.{place}") for place, record in enumerate(records)
        ]
        self._add_profiles(encode_user_id(user_id), parsed, at, restore_deleted=restore_deleted)
        memories = [record for record in parsed if isinstance(record, MemoryRecord)]
        utterances = [of_record(user_id, record, at) for record in memories]
        with database_errors(), self._pool.connection() as connection:
            ids = [one for utterance in utterances for one in (utterance.id, utterance.event_id) if one]
            deleted = portable.deleted_ids(connection, ids)
            if restore_deleted and deleted:
                portable.drop_tombstones(connection, ids)
                deleted = set()
            stored = stored_events(connection, ids)
        stored_ids = {memory_id for memory_id, _, _ in stored}
        new = [
            (utterance, record)
            for utterance, record in zip(utterances, memories, strict=True)
            if utterance.event not in stored and utterance.event_id not in stored_ids
            if (utterance.event_id or utterance.id) not in deleted
        ]
        gone = sum((utterance.event_id or utterance.id) in deleted for utterance in utterances)
        dropped = self._store_new(new)
        facts = self._add_facts(user_id, parsed, restore_deleted=restore_deleted)
        self._note([encode_user_id(user_id)])
        return ImportOutcome(
            len(new) - dropped + facts["new"],
            len(memories) - len(new) - gone + facts["known"],
            gone + dropped + facts["deleted"],
        )

    def _add_facts(self, user_id: str, records: Sequence[Record], *, restore_deleted: bool) -> Counter[str]:
        facts = [record for record in records if isinstance(record, FactRecord)]
        if not facts:
            return Counter()
        vectors = self._writer.embed([fact.content for fact in facts])
        with database_errors(), self._pool.connection() as connection:
            pairs = list(zip(facts, vectors, strict=True))
            return import_facts(connection, user_id, pairs, restore_deleted=restore_deleted)

    def _store_new(self, new: Sequence[tuple[Utterance, MemoryRecord]]) -> int:
        """Store what was not there; how many of it were deleted meanwhile."""
        for utterance, record in new:
            utterance.content = record.content  # its id is that of the original
        vectors = self._writer.embed([utterance.content for utterance, _ in new])
        self._writer.insert([embedded(utterance, vector) for (utterance, _), vector in zip(new, vectors, strict=True)])
        corrected = [(utterance, record) for utterance, record in new if record.history and not utterance.deleted]
        if corrected:
            with database_errors(), self._pool.connection() as connection:
                for utterance, record in corrected:
                    portable.replace_history(connection, utterance.id, utterance.payload["role"], record.history)
        return sum(utterance.deleted for utterance, _ in new)

    def _add_profiles(self, user: str, records: Sequence[Record], at: float, *, restore_deleted: bool) -> None:
        if not any(isinstance(record, ProfileRecord | ProfileChangeRecord) for record in records):
            return
        with database_errors(), self._pool.connection() as connection, connection.transaction():
            lock_user(connection, user)
            if forgotten_after(connection, user, at):
                return
            for record in records:
                agent = encode_agent_id(record.agent_id)
                if isinstance(record, ProfileRecord):
                    profile = record.profile if restore_deleted else _without_deleted(connection, record.profile)
                    portable.add_profile(connection, user, agent, record.model_copy(update={"profile": profile}))
                elif isinstance(record, ProfileChangeRecord):
                    patch = record.patch if restore_deleted else _without_deleted(connection, record.patch)
                    portable.add_profile_change(connection, user, agent, record.model_copy(update={"patch": patch}))


def _page(
    items: Sequence[tuple[dict[str, Any], str]], limit: int, then: str | None
) -> tuple[list[dict[str, Any]], str | None]:
    """The records that a page holds, and the cursor of the next one.

    Args:
        items: records, each with the cursor of what follows it.
        limit: how many were asked for: fewer are the last ones of their stage or owner.
        then: the cursor of the next stage or owner; None for none.
    """
    size, records, after = 0, list[dict[str, Any]](), then
    for record, cursor in items:
        size += len(json.dumps(record))
        if records and size > MAX_PAGE_BYTES:
            return records, after
        records.append(record)
        after = cursor
    return records, then if len(items) < limit else after


def _memory_record(agent: str, row: dict[str, Any]) -> dict[str, Any]:
    payload, changes = row["payload"], row["changes"] or []
    original = changes[0]["new_content"] if changes else None
    fields = {
        "kind": "memory",
        "id": row["id"],
        "content": row["content"],
        "source": row["source"],
        "timestamp": json_number(row["said_at_us"] / 1e6),
        **{name: payload.get(name) for name in ("session_id", "message_id", "request_id", "speaker")},
        "agent_id": decode_user_id(agent) or None,
        "meta": payload.get("meta") or None,
        "expires_at": row["expires_at"],
        "original": original if original != row["content"] else None,
        "history": changes or None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _without_deleted(connection: Connection[TupleRow], profile: dict[str, Any]) -> dict[str, Any]:
    """A profile, or a patch of one, without the slots that only messages say that were deleted here."""
    evidence = evidence_of(profile)
    deleted = portable.deleted_ids(connection, uuids(evidence)) if evidence else set()
    return {**profile, KNOWN: without_evidence(slots_of(profile), deleted)} if deleted else profile


def _fact_record(row: dict[str, Any]) -> dict[str, Any]:
    payload, superseded_us = row["payload"], row["superseded_us"]
    fields = {
        "kind": "fact",
        "id": row["id"],
        "content": row["content"],
        "source": row["source"],
        "timestamp": json_number(row["said_at"]),
        **{name: payload.get(name) for name in ("fact_kind", "about", "when", "session_id", "speaker")},
        "agent_id": decode_user_id(row["agent_id"]) or None,
        "meta": payload.get("meta") or None,
        "evidence": row["evidence"],
        "superseded_by": row["superseded_by"],
        "superseded_at": None if superseded_us == CURRENT_US else superseded_us / 1e6,
        "history": row["changes"],
    }
    return {name: value for name, value in fields.items() if value is not None}


def _profile_record(row: dict[str, Any]) -> dict[str, Any]:
    own = {name: row[name] for name in ("profile", "version", "updated_at")}
    return {"kind": "profile", **_agent(row), **own}


def _change_record(row: dict[str, Any]) -> dict[str, Any]:
    own = {name: row[name] for name in ("version", "patch", "changed_at", "source") if row[name] is not None}
    return {"kind": "profile_change", **_agent(row), **own}


def _agent(row: dict[str, Any]) -> dict[str, str]:
    return {"agent_id": decode_user_id(row["agent_id"])} if row["agent_id"] else {}


def _cursor(*place: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


def _read_cursor(cursor: str | None) -> tuple[Any, ...]:
    if cursor is None:
        return (_PROFILES,)
    try:
        return _PLACE.validate_python(json.loads(base64.urlsafe_b64decode(cursor)))
    except ValueError:
        raise InvalidMessage("data.cursor: is no next_cursor of a user_export") from None
