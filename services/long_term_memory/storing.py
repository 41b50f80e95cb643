"""Storing of memories: their identity, their payload, and the statement that inserts them; idempotent."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from keepsake_client.protocol import AddData, MemoryUpdateMessage, Speaker, encode_user_id
from keepsake_client.records import MemoryRecord

from services.long_term_memory.mem0_bridge import Mem0Memory, provider_errors
from services.long_term_memory.postgres.noted_writes import NoteWrites, no_notes
from services.long_term_memory.postgres.pool import database_errors
from services.long_term_memory.postgres.rows import Vector, memory_row
from services.long_term_memory.postgres.scope import Owner, encode_agent_id
from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.retrieval.features import ECHO_WINDOW_S, LIVE_S

#: The version of the UUIDs that are derived from an event (RFC 9562).
DERIVED = 8
#: What identifies an event: an id, the source and the content. One that is delivered twice is stored once.
Event = tuple[str, str, str]


@dataclass(slots=True)
class Utterance:
    """One memory to be stored.

    Args:
        id: the memory's. That of a message with a message_id is a hash of user and message_id alone, as in all earlier
            versions, whose memories are recognised by it.
        payload: Mem0's, without the content.
        event_id: of such a message, a hash of source and content too: the id of its memory where another message has
            the same message_id.
        arrived_at: when its event arrived, in seconds since 1970: what was deleted after that stays deleted. None for
            what is no event.
        imported: whether it came by a `user_import`, with a time of its own.
        reused_id: set by `MemoryWriter.store` where the memory is new and another message had its message_id.
        deleted: set by it where it was not stored, because it was deleted before.
    """

    id: str
    content: str
    payload: dict[str, Any]
    event_id: str | None = None
    arrived_at: float | None = None
    imported: bool = False
    reused_id: bool = False
    deleted: bool = False

    @property
    def event(self) -> Event:
        """What identifies the event."""
        return self.id, self.payload["source"], self.content


def of_update(update: MemoryUpdateMessage, arrived_at: float | None = None) -> Utterance:
    """The memory of an event.

    Args:
        arrived_at: in seconds since 1970. It is stored where the event is live and dated differently: such a message
            was said just now all the same.
    """
    key, agent = encode_user_id(update.user_id), encode_agent_id(update.agent_id)
    role = "assistant" if update.source == "ai" else "user"
    late = arrived_at is not None and ECHO_WINDOW_S < abs(update.timestamp - arrived_at) <= LIVE_S
    known = {
        "source": update.source,
        "session_id": update.session_id or None,
        "message_id": update.message_id,
        "arrived_at": arrived_at if late else None,
        "agent_id": agent or None,
        "speaker": _speaker(update.speaker),
        "expires_at": _expires_at(update.timestamp, update.ttl_days),
    }
    payload = _payload(key, role, update.timestamp, known, update.meta)
    if update.message_id is None:
        by = () if update.speaker is None else (update.speaker.key,)
        event: tuple[object, ...] = (update.source, update.content, update.timestamp, *by)
        return Utterance(derived_id(key, agent, *event), update.content, payload, arrived_at=arrived_at)
    memory_id, event_id = message_ids(key, agent, update.message_id, update.source, update.content)
    return Utterance(memory_id, update.content, payload, event_id, arrived_at)


def message_ids(user_key: str, agent_key: str, message_id: str, source: str, content: str) -> tuple[str, str]:
    """The two ids that the memory of a message may have: by its message_id, and where another message has that one.

    Args:
        user_key, agent_key: encoded.
    """
    named = ("message", message_id)
    return derived_id(user_key, agent_key, *named), derived_id(user_key, agent_key, *named, source, content)


def of_request(user_id: str, add: AddData, request_id: str, timestamp: float) -> Utterance:
    """The memory of an `add`. Its request_id and content identify it."""
    key, agent, session = encode_user_id(user_id), encode_agent_id(add.agent_id), add.metadata.get("session_id")
    known = {
        "source": "user",
        "session_id": None if session is None else str(session),
        "request_id": request_id,
        "agent_id": agent or None,
        "speaker": _speaker(add.speaker),
        "expires_at": _expires_at(timestamp, add.ttl_days),
    }
    payload = _payload(key, "user", timestamp, known, add.metadata)
    memory_id = derived_id(key, agent, "request", request_id, add.content)
    return Utterance(memory_id, add.content, payload, arrived_at=timestamp)


def event_ids(memory_id: str, owner: Owner, source: str, message_id: str | None, original: str) -> set[str]:
    """The ids under which the event of a stored memory would be stored again: of a deleted one, all are tombstones.

    Those are its own and, of a message with a message_id, the one by source and content too. A fact that an LLM found
    has a random id; its event is known by its message_id alone.

    Args:
        original: the content before it was corrected.
    """
    if message_id is None:
        return {memory_id}
    by_id, by_content = message_ids(*owner, message_id, source, original)
    derived = uuid.UUID(memory_id).version == DERIVED
    return {memory_id, by_content} if derived else {memory_id, by_content, by_id}


def fact_id(owner: Owner, exported_id: str) -> str:
    """The id of an imported fact: of its owner, so that no import can take the id of another user's."""
    return derived_id(owner.user, owner.agent, "fact", exported_id)


def of_record(user_id: str, record: MemoryRecord, arrived_at: float) -> Utterance:
    """The memory of a record, with the id that its event or request gave it.

    Args:
        arrived_at: when the import arrived, in seconds since 1970.
    """
    content = record.content if record.original is None else record.original
    if record.request_id is not None:
        add = AddData(content=content, metadata=record.meta, agent_id=record.agent_id, speaker=record.speaker)
        utterance = of_request(user_id, add, record.request_id, record.timestamp)
    else:
        utterance = of_update(
            MemoryUpdateMessage(
                user_id=user_id,
                content=content,
                source=record.source,
                timestamp=record.timestamp,
                meta=record.meta,
                message_id=record.message_id,
                agent_id=record.agent_id,
                speaker=record.speaker,
            )
        )
    known = {"source": record.source, "session_id": record.session_id, "expires_at": record.expires_at}
    # By which facts name it. Of two messages of one message_id, the one that is imported first has the id by that.
    if utterance.event_id is not None or record.id != utterance.id:
        known["exported_id"] = record.id
    utterance.payload |= {name: value for name, value in known.items() if value is not None}
    utterance.arrived_at, utterance.imported = arrived_at, True
    return utterance


def _speaker(speaker: Speaker | None) -> dict[str, str] | None:
    return None if speaker is None else {name: value for name, value in speaker if value is not None}


def _expires_at(timestamp: float, ttl_days: float | None) -> float | None:
    return None if ttl_days is None else timestamp + ttl_days * 86_400


@dataclass(frozen=True, slots=True)
class Embedded:
    """An utterance and its row, with the vector of its content."""

    utterance: Utterance
    row: dict[str, Any]


class MemoryWriter:
    """Embeds memories, and inserts them with their history.

    Args:
        note: of the writes of users.
    """

    def __init__(self, mem0: Mem0Memory, store: MemoryStore, note: NoteWrites = no_notes) -> None:
        self._mem0 = mem0
        self._store = store
        self._note = note

    def store(self, utterances: Sequence[Utterance]) -> None:
        """Embed and insert utterances, as `insert` does."""
        vectors = self.embed([utterance.content for utterance in utterances])
        self.insert([embedded(*pair) for pair in zip(utterances, vectors, strict=True)])

    def embed(self, contents: Sequence[str]) -> list[list[float]]:
        """The vectors of contents."""
        distinct = list(dict.fromkeys(contents))
        with provider_errors():
            vectors = dict(zip(distinct, self._mem0.embedding_model.embed_batch(distinct, "add"), strict=True))
        return [vectors[content] for content in contents]

    def insert(self, memories: Sequence[Embedded], *, extract: bool = False) -> list[Utterance]:
        """Insert those that are new, with their history; the utterances, the `id` of each now that of its memory.

        Mem0's `add(infer=False)` does this for one message at a time, and inserts a repeated one again.

        Args:
            extract: whether an LLM is to read those that are new.
        """
        distinct: dict[Event, Embedded] = {}
        for memory in memories:
            distinct.setdefault(memory.utterance.event, memory)
        with database_errors():
            stored = self._insert(distinct, extract=extract)
        # Also of what was stored before: its first delivery may have ended before its note.
        self._note({memory.utterance.payload["user_id"] for memory in memories})
        for memory in memories:
            event = memory.utterance.event
            memory.utterance.deleted = distinct[event].utterance.deleted
            memory.utterance.id = stored[event]
        return [memory.utterance for memory in memories]

    def _insert(self, memories: dict[Event, Embedded], *, extract: bool) -> dict[Event, str]:
        """Insert what is new of different events; the ids of all memories by event."""
        first: dict[str, Event] = {}
        for event in memories:
            first.setdefault(event[0], event)
        # A memory and its history are one statement: one left without its history would never get it, as it exists.
        new, deleted = self._store.insert_rows(
            [memories[event].row for event in first.values()], history=True, extract=extract
        )
        created = {first[memory_id] for memory_id in new}
        stored = {event: event[0] for event in memories}

        # Of the others, those that are no repetition have the message_id of another message. A crash before they are
        # inserted leaves them to the next delivery, which finds that other message stored.
        others = [event for event, memory in memories.items() if memory.utterance.event_id and event not in created]
        known = self._store.stored_events([event[0] for event in others]) if others else set()
        reused = {
            event: event_id
            for event in others
            if event not in known and (event_id := memories[event].utterance.event_id)
        }
        if reused:
            again = [{**memories[event].row, "id": event_id} for event, event_id in reused.items()]
            new, deleted_again = self._store.insert_rows(again, history=True, extract=extract)
            for event, event_id in reused.items():
                memories[event].utterance.reused_id = event_id in new
            deleted = (deleted - {event[0] for event in reused}) | deleted_again
        stored |= reused
        for event, memory in memories.items():
            memory.utterance.deleted = stored[event] in deleted
        return stored


def embedded(utterance: Utterance, vector: Vector) -> Embedded:
    """An utterance with the vector of its content."""
    arrived = {"event_arrived_at": utterance.arrived_at, "imported": utterance.imported}
    return Embedded(
        utterance, memory_row(utterance.id, vector, {**utterance.payload, **arrived, "data": utterance.content})
    )


def derived_id(user_key: str, agent_key: str, *event: object) -> str:
    """A memory's id, derived from its event, which makes storing it idempotent, concurrently and after a crash.

    A version 8 UUID (RFC 9562) of the SHA-256 of user and event as JSON; where there is an agent, of both as a list in
    place of the user.
    """
    owner = [user_key, agent_key] if agent_key else user_key
    digest = bytearray(sha256(json.dumps([owner, *event]).encode()).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    return str(uuid.UUID(bytes=bytes(digest)))


def _payload(user_key: str, role: str, timestamp: float, known: dict[str, Any], meta: dict[str, Any]) -> dict[str, Any]:
    """Mem0's payload of one memory. The publisher's fields are nested in `meta`, where they overwrite nothing."""
    created_at = datetime.fromtimestamp(timestamp, UTC).isoformat()
    return {
        **{name: value for name, value in known.items() if value is not None},
        "user_id": user_key,
        "role": role,
        "timestamp": timestamp,
        "created_at": created_at,
        "updated_at": created_at,
        "meta": meta,
    }
