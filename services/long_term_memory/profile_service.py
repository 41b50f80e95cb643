"""ProfileService: one JSON object a user, and one more for each character; patched atomically, with a history."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from keepsake_client.errors import InvalidMessage, MessageTooLarge
from keepsake_client.protocol import ProfileChange, encode_user_id
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb
from psycopg_pool import ConnectionPool

from services.long_term_memory.known_slots import owned_by_service
from services.long_term_memory.postgres.deletions import forgotten_after, lock_user
from services.long_term_memory.postgres.noted_writes import NoteWrites, no_notes
from services.long_term_memory.postgres.pool import database_errors
from services.long_term_memory.postgres.replica import Reads, Replica
from services.long_term_memory.postgres.scope import Owner, encode_agent_id
from services.runtime.errors import ProfileConflict

#: A profile is read before every reply, and in memory of every client; this is a long one.
MAX_PROFILE_BYTES = 65_536
#: Deduplication: a request_id is recognized for this time, among so many of the profile's last changes.
DEDUPLICATION_WINDOW = timedelta(minutes=10)
DEDUPLICATION_CHANGES = 1_000
#: Changes on a page of the history. It ends behind so many characters: one patch may be as large as a message.
HISTORY_PAGE = 100
MAX_HISTORY_CHARS = 1_000_000

_HISTORY = (
    "SELECT version, extract(epoch FROM changed_at)::float8, source, patch, evidence FROM profile_history"
    " WHERE user_id = %s AND agent_id = %s AND (%s::bigint IS NULL OR version < %s::bigint)"
    " ORDER BY version DESC LIMIT %s"
)


@dataclass(frozen=True)
class Profile:
    """A user's profile, the own or a character's; version 0 is the empty one that has never been written."""

    values: dict[str, Any] = field(default_factory=dict)
    version: int = 0
    updated_at: datetime | None = None


@dataclass(frozen=True)
class HistoryPage:
    """Changes of a profile, newest first.

    Args:
        next_cursor: of the next page; None for the last one.
    """

    changes: list[ProfileChange]
    next_cursor: str | None


def merge_patch(target: Any, patch: Any) -> Any:
    """JSON Merge Patch (RFC 7386, section 2): null removes, objects merge, all else replaces."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def locked_profile(connection: Connection[TupleRow], owner: Owner) -> Profile:
    """The profile of an owner, locked until the transaction ends; an empty one where there is none."""
    # Inserted before it is locked, so that two concurrent first patches are serialized too.
    connection.execute(
        "INSERT INTO profiles (user_id, agent_id, profile, version, updated_at)"
        " VALUES (%s, %s, '{}', 0, clock_timestamp()) ON CONFLICT DO NOTHING",
        owner,
    )
    row = connection.execute(
        "SELECT profile, version, updated_at FROM profiles WHERE user_id = %s AND agent_id = %s FOR UPDATE", owner
    ).fetchone()
    assert row is not None  # noqa: S101 - inserted above, and never deleted
    return Profile(*row)


def write_profile(
    connection: Connection[TupleRow],
    owner: Owner,
    values: dict[str, Any],
    patch: dict[str, Any],
    *,
    request_id: str | None = None,
    source: str | None = None,
    evidence: Sequence[str] | None = None,
) -> Profile:
    """Write the next version of a profile, which is locked, with its history.

    Args:
        patch: that made it these values.
        source: who wrote it; None for a service.
        evidence: ids of memories, by whose words it was written.
    """
    row = connection.execute(
        "UPDATE profiles SET profile = %s, version = version + 1, updated_at = clock_timestamp()"
        " WHERE user_id = %s AND agent_id = %s RETURNING profile, version, updated_at",
        (Jsonb(values), *owner),
    ).fetchone()
    assert row is not None  # noqa: S101 - locked by the caller
    profile = Profile(*row)
    connection.execute(
        "INSERT INTO profile_history (user_id, agent_id, version, patch, request_id, source, evidence, changed_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s::uuid[], %s)",
        (
            *owner,
            profile.version,
            Jsonb(patch),
            request_id,
            source,
            evidence and list(evidence),
            profile.updated_at,
        ),
    )
    return profile


class ProfileService:
    """Get and update profiles.

    Args:
        replica: of the pool's database, which answers `get` and `history`; None for none.
        note: of the writes of users.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        deduplication_window: timedelta = DEDUPLICATION_WINDOW,
        *,
        replica: Replica | None = None,
        note: NoteWrites = no_notes,
    ) -> None:
        self._pool = pool
        self._reads = Reads(pool, lambda other: other, replica)
        self._note = note
        self._deduplication_window = deduplication_window

    def get(self, user_id: str, agent_id: str | None = None) -> Profile:
        """The user's profile; an unknown user has an empty one.

        Args:
            agent_id: the character that keeps it; None for the user's own.

        Raises:
            Unavailable: the database does not answer.
        """
        owner = _owner(user_id, agent_id)

        def read(pool: ConnectionPool) -> Profile:
            with pool.connection() as connection:
                return self._read(connection, owner)

        with database_errors():
            return self._reads.read([owner.user], read)

    def history(self, user_id: str, agent_id: str | None = None, cursor: str | None = None) -> HistoryPage:
        """A page of the changes of a profile, newest first.

        Raises:
            InvalidMessage: the cursor is none.
            Unavailable: the database does not answer.
        """
        if cursor is not None and not re.fullmatch("[0-9]{1,18}", cursor):
            raise InvalidMessage("data.cursor: is no cursor")
        owner = _owner(user_id, agent_id)

        def read(pool: ConnectionPool) -> list[TupleRow]:
            with pool.connection() as connection:
                return connection.execute(_HISTORY, (*owner, cursor, cursor, HISTORY_PAGE + 1)).fetchall()

        with database_errors():
            rows = self._reads.read([owner.user], read)
        changes: list[ProfileChange] = []
        size = 0
        for version, changed_at, source, patch, evidence in rows[:HISTORY_PAGE]:
            changes.append(
                ProfileChange(
                    version=version,
                    changed_at=changed_at,
                    source=source or "service",
                    patch=patch,
                    evidence=list(map(str, evidence or ())),
                )
            )
            size += len(json.dumps(patch))
            if size > MAX_HISTORY_CHARS:
                break
        return HistoryPage(changes, str(changes[-1].version) if len(rows) > len(changes) else None)

    def update(
        self,
        user_id: str,
        patch: dict[str, Any],
        expected_version: int | None = None,
        request_id: str | None = None,
        agent_id: str | None = None,
        *,
        arrived_at: float | None = None,
    ) -> Profile:
        """Apply a JSON Merge Patch; concurrent patches are serialized by a row lock. Idempotent by `request_id`.

        An empty patch changes nothing, the version neither.

        Args:
            expected_version: the version that the profile must be at; 0 for one not yet written.
            request_id: stored with the change. The same id with the same patch within `DEDUPLICATION_WINDOW` is a
                redelivery, after a crash for example: it is not applied again, and answered with the profile.
            agent_id: the character that keeps it; None for the user's own.
            arrived_at: in seconds since 1970. One that arrived before the user was forgotten is not applied either.

        Raises:
            ProfileConflict: the profile is at another version.
            MessageTooLarge: the patched profile would be over `MAX_PROFILE_BYTES` of JSON.
            Unavailable: the database does not answer.
        """
        if not patch:
            current = self.get(user_id, agent_id)
            if expected_version not in (None, current.version):
                raise ProfileConflict(expected_version, current.version)
            return current
        owner = _owner(user_id, agent_id)
        profile = self._update(owner, patch, expected_version, request_id, arrived_at)
        self._note([owner.user])
        return profile

    def _update(
        self,
        owner: Owner,
        patch: dict[str, Any],
        expected_version: int | None,
        request_id: str | None,
        arrived_at: float | None,
    ) -> Profile:
        with database_errors(), self._pool.connection() as connection, connection.transaction():
            lock_user(connection, owner.user)
            if arrived_at is not None and forgotten_after(connection, owner.user, arrived_at):
                return self._read(connection, owner)
            before = locked_profile(connection, owner)
            request = request_id and encode_user_id(request_id)
            if request and self._is_applied(connection, owner, before.version, request, patch):
                return before
            if expected_version is not None and expected_version != before.version:
                raise ProfileConflict(expected_version, before.version)
            values = owned_by_service(before.values, patch, merge_patch(before.values, patch))
            size = len(json.dumps(values).encode())
            if size > MAX_PROFILE_BYTES:
                raise MessageTooLarge(f"the profile would have {size} bytes; {MAX_PROFILE_BYTES} are allowed")
            return write_profile(connection, owner, values, patch, request_id=request)

    def _read(self, connection: Connection[TupleRow], owner: Owner) -> Profile:
        row = connection.execute(
            "SELECT profile, version, updated_at FROM profiles WHERE user_id = %s AND agent_id = %s", owner
        ).fetchone()
        return Profile(*row) if row else Profile()

    def _is_applied(
        self, connection: Connection[TupleRow], owner: Owner, version: int, request: str, patch: dict[str, Any]
    ) -> bool:
        row = connection.execute(
            "SELECT EXISTS (SELECT FROM profile_history WHERE user_id = %s AND agent_id = %s AND version > %s"
            " AND request_id = %s AND patch = %s AND changed_at > clock_timestamp() - %s::interval)",
            (*owner, version - DEDUPLICATION_CHANGES, request, Jsonb(patch), self._deduplication_window),
        ).fetchone()
        return bool(row and row[0])


def _owner(user_id: str, agent_id: str | None) -> Owner:
    return Owner(encode_user_id(user_id), encode_agent_id(agent_id))
