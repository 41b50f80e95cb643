"""Profiles: one JSON object a user, patched atomically, every change kept."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from keepsake_client.errors import MessageTooLarge
from keepsake_client.protocol import encode_user_id
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb
from psycopg_pool import ConnectionPool

from services.long_term_memory.postgres.pool import database_errors
from services.runtime.errors import ProfileConflict

#: A profile is read before every reply and held by every asker; this is a long one.
MAX_PROFILE_BYTES = 65_536
#: A request that comes again within this time, among so many of the profile's last changes, is the same request.
SAME_REQUEST_WITHIN = timedelta(minutes=10)
SAME_REQUEST_AMONG = 1_000


@dataclass(frozen=True)
class Profile:
    """A user's profile; version 0 is the empty one nobody has written to."""

    values: dict[str, Any] = field(default_factory=dict)
    version: int = 0
    updated_at: datetime | None = None


def merge_patch(target: Any, patch: Any) -> Any:
    """JSON Merge Patch as RFC 7386, section 2, words it: null removes, objects merge, the rest replaces."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


class ProfileService:
    """Get and update profiles."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

    def get(self, user_id: str) -> Profile:
        """The user's profile; an unknown user has an empty one.

        Raises:
            Unavailable: the database does not answer.
        """
        with database_errors(), self._pool.connection() as connection:
            row = connection.execute(
                "SELECT profile, version, updated_at FROM profiles WHERE user_id = %s", (encode_user_id(user_id),)
            ).fetchone()
        return Profile(*row) if row else Profile()

    def update(
        self, user_id: str, patch: dict[str, Any], expected_version: int | None = None, request_id: str | None = None
    ) -> Profile:
        """Apply a JSON Merge Patch; of two at once, one waits for the other and both survive.

        Args:
            expected_version: refuse the patch unless the profile is at this version; 0 for one not yet written.
            request_id: kept with the change. The same one with the same patch soon after is the same request, handed
                over again after somebody died on the way: it is not applied twice, and answered with the profile.

        Raises:
            ProfileConflict: the profile is at another version.
            MessageTooLarge: the patched profile would be over `MAX_PROFILE_BYTES` of JSON.
            Unavailable: the database does not answer.
        """
        key = encode_user_id(user_id)
        with database_errors(), self._pool.connection() as connection, connection.transaction():
            # The row exists before it is locked, so two first patches at once queue up like any others.
            connection.execute(
                "INSERT INTO profiles VALUES (%s, '{}', 0, clock_timestamp()) ON CONFLICT DO NOTHING", (key,)
            )
            row = connection.execute(
                "SELECT profile, version, updated_at FROM profiles WHERE user_id = %s FOR UPDATE", (key,)
            ).fetchone()
            assert row is not None  # noqa: S101 - inserted above, and never deleted
            values, version, _ = row
            request = request_id and encode_user_id(request_id)
            if request and _is_applied(connection, key, version, request, patch):
                return Profile(*row)
            if expected_version is not None and expected_version != version:
                raise ProfileConflict(expected_version, version)
            values = merge_patch(values, patch)
            size = len(json.dumps(values).encode())
            if size > MAX_PROFILE_BYTES:
                raise MessageTooLarge(f"the profile would have {size} bytes; {MAX_PROFILE_BYTES} are allowed")
            updated = connection.execute(
                "UPDATE profiles SET profile = %s, version = version + 1, updated_at = clock_timestamp()"
                " WHERE user_id = %s RETURNING profile, version, updated_at",
                (Jsonb(values), key),
            ).fetchone()
            assert updated is not None  # noqa: S101 - locked above
            profile = Profile(*updated)
            connection.execute(
                "INSERT INTO profile_history VALUES (%s, %s, %s, %s, %s)",
                (key, profile.version, Jsonb(patch), request, profile.updated_at),
            )
        return profile


def _is_applied(
    connection: Connection[TupleRow], user_key: str, version: int, request: str, patch: dict[str, Any]
) -> bool:
    row = connection.execute(
        "SELECT EXISTS (SELECT FROM profile_history WHERE user_id = %s AND version > %s AND request_id = %s"
        " AND patch = %s AND changed_at > clock_timestamp() - %s::interval)",
        (user_key, version - SAME_REQUEST_AMONG, request, Jsonb(patch), SAME_REQUEST_WITHIN),
    ).fetchone()
    return bool(row and row[0])
