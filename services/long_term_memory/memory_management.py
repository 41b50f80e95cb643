"""MemoryManagement: list, show, correct and delete the memories of one user; list users."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Any, Final

from keepsake_client.errors import InvalidMessage, MessageTooLarge
from keepsake_client.protocol import (
    MAX_MESSAGE_BYTES,
    Memory,
    MemoryChange,
    MemoryDeleteData,
    MemoryListData,
    MemoryUpdateData,
    UserListData,
    UserSummary,
    encode_user_id,
)
from mem0.vector_stores.pgvector import OutputData
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool

from services.long_term_memory.deleting import count_ids, count_matching, delete_ids, delete_matching
from services.long_term_memory.extraction.outbox import add_again
from services.long_term_memory.memory_fields import memory_of
from services.long_term_memory.postgres.conditions import Conditions
from services.long_term_memory.postgres.facts import ABOUT_FACTS
from services.long_term_memory.postgres.history import insert_history
from services.long_term_memory.postgres.listing import Place, read_page
from services.long_term_memory.postgres.noted_writes import NoteWrites, no_notes
from services.long_term_memory.postgres.pool import database_errors
from services.long_term_memory.postgres.replica import Reads, Replica
from services.long_term_memory.postgres.rows import Vector, memory_row
from services.long_term_memory.postgres.scope import ALL_KINDS, Scope
from services.long_term_memory.postgres.store import stored_memory
from services.long_term_memory.postgres.user_listing import is_place, read_users
from services.long_term_memory.profile_service import merge_patch
from services.long_term_memory.removal import remove_derived
from services.long_term_memory.storing import MemoryWriter
from services.runtime.errors import MemoryNotFound

#: A page ends behind so much content and metadata: 32 MB are what Redis keeps for a subscriber at most, by default, and
#: a character takes up to 12 bytes of a response, in which a content comes twice.
MAX_PAGE_CHARS: Final = 1_000_000

_MEMORY = (
    "SELECT m.id::text, m.payload || CASE WHEN m.expires_at IS NULL THEN '{}'"  # noqa: S608 - constants
    " ELSE jsonb_build_object('expires_at', extract(epoch FROM m.expires_at)) END, m.content, m.source,"
    f" extract(epoch FROM m.said_at)::float8, users.user_id, users.agent_id, {ABOUT_FACTS.format(memory='m')}"
    " FROM memories m JOIN users ON users.number = m.user_number"
    " WHERE users.user_id = %(user)s AND m.id = %(id)s::uuid"
)
# As a deletion does, before anything of the user's: what is found in the memory meanwhile is stored before, or after.
_LOCK_OWNERS = "SELECT FROM users WHERE user_id = %(user)s ORDER BY number FOR UPDATE"
_MESSAGE = (
    "SELECT m.number FROM memories m JOIN users ON users.number = m.user_number"
    " WHERE m.id = %s::uuid AND users.kind = 'message'"
)
_HISTORY = (
    "SELECT event, old_memory, new_memory, coalesce(updated_at, created_at) FROM memory_history"
    " WHERE memory_id = %(id)s ORDER BY number"
)
#: What a change of the content changes.
_OF_CONTENT: Final = ("content", "terms", "traits", "analysis", "vector")


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a list.

    Args:
        next_cursor: of the next page; None for the last one.
    """

    memories: list[Memory]
    next_cursor: str | None


class MemoryManagement:
    """List, show, correct and delete the memories of one user at a time; list users.

    Args:
        writer: embeds corrected contents.
        zone: of the users, for the dates that memories name.
        extract: whether an LLM finds facts in messages.
        replica: of the pool's database, which answers `page` and `get`; None for none.
        note: of the writes of users.
        erase_turns: erases what is recorded, besides the database, of what a user was told.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        writer: MemoryWriter,
        zone: tzinfo = UTC,
        *,
        extract: bool = False,
        replica: Replica | None = None,
        note: NoteWrites = no_notes,
        erase_turns: Callable[[str], None] | None = None,
    ) -> None:
        self._pool = pool
        self._erase_turns = erase_turns
        self._reads = Reads(pool, lambda other: other, replica)
        self._note = note
        self._writer = writer
        self._zone = zone
        self._extract = extract

    def page(self, user_id: str, query: MemoryListData) -> Page:
        """A page of the user's memories, in the order of time.

        Raises:
            InvalidMessage: the cursor is none.
            Unavailable: the database does not answer.
        """
        kinds = (query.filters.kind,)
        scope = Scope.of(user_id, query.agent_id, all_agents=query.all_agents, kinds=kinds)
        after = None if query.cursor is None else Place.of(query.cursor, query.order)
        conditions = Conditions.of(query.filters)

        def read(pool: ConnectionPool) -> list[tuple[Place, TupleRow]]:
            with pool.connection() as connection:
                return read_page(connection, scope, conditions, query.order, query.limit + 1, after)

        with database_errors():
            rows = self._reads.read(scope.users, read)
        memories: list[Memory] = []
        chars = 0
        for _, row in rows[: query.limit]:
            memories.append(self._memory(stored_memory(*row)))
            chars += len(memories[-1].content) + len(json.dumps(memories[-1].metadata))
            if chars > MAX_PAGE_CHARS:
                break
        more = len(rows) > len(memories)
        return Page(memories, rows[len(memories) - 1][0].cursor if more else None)

    def users(self, query: UserListData) -> tuple[list[UserSummary], str | None]:
        """A page of users, in the order of their encoded ids, and the cursor of the next one where more follow.

        Raises:
            InvalidMessage: the cursor is none of this prefix.
            Unavailable: the database does not answer.
        """
        after = query.cursor or ""
        if after and not is_place(after, query.prefix):
            raise InvalidMessage("data.cursor: is no cursor of this prefix")
        with database_errors(), self._pool.connection() as connection:
            found = read_users(connection, query.prefix, after, query.limit + 1)
        page = found[: query.limit]
        return page, encode_user_id(page[-1].user_id) if len(found) > len(page) else None

    def get(self, user_id: str, memory_id: str) -> tuple[Memory, list[MemoryChange]]:
        """One of the user's memories, of whatever character, and every change of its content, oldest first.

        Raises:
            MemoryNotFound: the user has none of this id.
            Unavailable: the database does not answer.
        """
        key = _key(user_id, memory_id)

        def read(pool: ConnectionPool) -> tuple[TupleRow | None, list[TupleRow]]:
            with pool.connection() as connection, connection.pipeline():
                found = connection.execute(_MEMORY, key)
                changes = connection.execute(_HISTORY, key)
                return found.fetchone(), changes.fetchall()

        with database_errors():
            row, history = self._reads.read([key["user"]], read)
        if row is None:
            raise MemoryNotFound
        return self._memory(stored_memory(*row)), [
            MemoryChange(event=event, old_content=old, new_content=new, changed_at=at)
            for event, old, new, at in history
        ]

    def update(self, user_id: str, update: MemoryUpdateData, at: float) -> Memory:
        """Correct the content or the metadata of a memory; idempotent.

        What was found in the old content of a message, and nothing else says, is deleted; the LLM reads the new one.

        Args:
            at: when it was asked for, in seconds since 1970.

        Returns:
            The memory as it is now.

        Raises:
            MemoryNotFound: the user has none of this id, or no longer.
            MessageTooLarge: its metadata would be larger than a message may be.
            Unavailable: the database or the embedder does not answer.
        """
        key = _key(user_id, update.id)
        vector = None if update.content is None else self._writer.embed([update.content])[0]
        with database_errors(), self._pool.connection() as connection, connection.transaction():
            connection.execute(_LOCK_OWNERS, key)
            row = connection.execute(f"{_MEMORY} FOR UPDATE OF m", key).fetchone()
            if row is None:
                raise MemoryNotFound
            before = stored_memory(*row)
            payload = {**before.payload, "data": update.content or before.payload["data"]}
            if update.metadata is not None:
                payload = _patched(payload, update.metadata, self._memory(before).metadata)
            if payload != before.payload:
                payload["updated_at"] = datetime.fromtimestamp(at, UTC).isoformat()
                _write(connection, before, payload, vector)
            if payload["data"] != before.payload["data"]:
                self._read_again(connection, before)
        self._note([key["user"]])
        return self._memory(OutputData(id=before.id, score=None, payload=payload))

    def delete(self, user_id: str, deletion: MemoryDeleteData, at: float) -> int:
        """Delete memories and, by filters, what arrived before `at` and is not indexed yet; idempotent.

        What is recorded of the user's turns goes, too, also where nothing was left to delete: an interrupted deletion
        is completed.

        Args:
            at: when it was asked for, in seconds since 1970.

        Returns:
            How many memories there were.

        Raises:
            Unavailable: the database does not answer. What is deleted by then stays deleted.
            redis.RedisError: Redis does not answer, or refuses writes.
        """
        count = self._delete(user_id, deletion, at)
        if not deletion.dry_run:
            self._note([encode_user_id(user_id)])
            if self._erase_turns:
                self._erase_turns(user_id)
        return count

    def _delete(self, user_id: str, deletion: MemoryDeleteData, at: float) -> int:
        # An id says what is meant: without an agent, it may be of any.
        any_agent = deletion.all_agents or (deletion.ids is not None and deletion.agent_id is None)
        scope = Scope.of(user_id, deletion.agent_id, all_agents=any_agent, kinds=ALL_KINDS)
        moment = datetime.fromtimestamp(at, UTC)
        with database_errors():
            if deletion.ids is not None:
                ids = [memory_id for given in deletion.ids if (memory_id := _uuid(given))]
                if not deletion.dry_run:
                    return delete_ids(self._pool, scope, ids)
                with self._pool.connection() as connection:
                    return count_ids(connection, scope, ids)
            assert deletion.filters is not None  # noqa: S101 - validated
            conditions = Conditions.of(deletion.filters)
            if not deletion.dry_run:
                return delete_matching(self._pool, scope, conditions, moment)
            with self._pool.connection() as connection:
                return count_matching(connection, scope, conditions, moment)

    def _read_again(self, connection: Connection[TupleRow], corrected: OutputData) -> None:
        """Delete what was found in a message before it was corrected, and let it be read again; not of a fact."""
        row = connection.execute(_MESSAGE, (corrected.id,)).fetchone()
        if row is None:
            return
        remove_derived(connection, row[0])
        if self._extract and "request_id" not in corrected.payload:
            add_again(connection, row[0])

    def _memory(self, stored: OutputData) -> Memory:
        return memory_of(stored.id, stored.payload, self._zone)


def _uuid(memory_id: str) -> str | None:
    """The id as PostgreSQL writes it; None for what is no id of a memory."""
    try:
        return str(uuid.UUID(memory_id))
    except ValueError:
        return None


def _key(user_id: str, memory_id: str) -> dict[str, str]:
    """The parameters of `_MEMORY`."""
    known = _uuid(memory_id)
    if known is None:
        raise MemoryNotFound
    return {"user": encode_user_id(user_id), "id": known}


def _patched(payload: dict[str, Any], patch: dict[str, Any], shown: dict[str, Any]) -> dict[str, Any]:
    """A payload after a JSON Merge Patch of its `meta`, its session with it.

    Args:
        shown: the metadata as responses have it. What is sent back as it was shown, such as `source` or `dates`, is no
            change: the publisher has not put it there.
    """
    meta = payload["meta"]
    changes = {
        name: value for name, value in patch.items() if name in meta or name not in shown or shown[name] != value
    }
    patched = merge_patch(meta, changes)
    size = len(json.dumps(patched).encode())
    if size > MAX_MESSAGE_BYTES:
        raise MessageTooLarge(f"the metadata would have {size} bytes; {MAX_MESSAGE_BYTES} are allowed")
    if "session_id" not in changes:
        return {**payload, "meta": patched}
    session = patched.get("session_id")
    others = {name: value for name, value in payload.items() if name != "session_id"}
    return {**others, **({} if session is None else {"session_id": str(session)}), "meta": patched}


def _write(
    connection: Connection[TupleRow], before: OutputData, payload: dict[str, Any], vector: Vector | None
) -> None:
    """Update a memory that is locked.

    Args:
        vector: of the content, where that may be another one.
    """
    old, new = before.payload["data"], payload["data"]
    row = memory_row(before.id, [] if vector is None else vector, payload)
    columns = ("payload", "session", *(_OF_CONTENT if new != old else ()))
    assignments = ", ".join(f"{name} = %({name})s{'::halfvec' if name == 'vector' else ''}" for name in columns)
    connection.execute(f"UPDATE memories SET {assignments} WHERE id = %(id)s", row)  # noqa: S608 - names of columns
    if new != old:
        change = {
            "memory_id": before.id,
            "old_memory": old,
            "new_memory": new,
            "event": "UPDATE",
            "created_at": payload.get("created_at"),
            "updated_at": payload["updated_at"],
            "role": payload.get("role"),
        }
        with connection.cursor() as cursor:
            insert_history(cursor, [change])
