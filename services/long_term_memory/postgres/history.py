"""PostgresHistory: Mem0's change history and last messages, in PostgreSQL instead of one SQLite file per process."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from psycopg import Connection, Cursor
from psycopg.rows import TupleRow, dict_row
from psycopg_pool import ConnectionPool

_COLUMNS = (
    "id",
    "memory_id",
    "old_memory",
    "new_memory",
    "event",
    "created_at",
    "updated_at",
    "is_deleted",
    "actor_id",
    "role",
)
_INSERT = f"INSERT INTO memory_history ({', '.join(_COLUMNS)}) VALUES ({', '.join(f'%({c})s' for c in _COLUMNS)})"  # noqa: S608 - constants

#: Messages of a scope that are kept as context for the extraction of facts; as many as in Mem0's own SQLite store.
MAX_LAST_MESSAGES = 10


class PostgresHistory:
    """The interface of Mem0's `SQLiteManager`, on the connection pool of the memories."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

    def add_history(
        self,
        memory_id: str,
        old_memory: str | None,
        new_memory: str | None,
        event: str,
        **details: Any,
    ) -> None:
        """Insert one change of a memory."""
        self.batch_add_history(
            [{"memory_id": memory_id, "old_memory": old_memory, "new_memory": new_memory, "event": event, **details}]
        )

    def batch_add_history(self, records: Sequence[dict[str, Any]]) -> None:
        """Insert changes of memories in one transaction."""
        with self._pool.connection() as connection, connection.transaction(), connection.cursor() as cursor:
            insert_history(cursor, records)

    def get_history(self, memory_id: str) -> list[dict[str, Any]]:
        """Every change of a memory, oldest first."""
        with self._pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            rows = cursor.execute(
                f"SELECT id::text AS id, {', '.join(_COLUMNS[1:])} FROM memory_history"  # noqa: S608 - constants
                " WHERE memory_id = %s ORDER BY number",
                (memory_id,),
            )
            return rows.fetchall()

    def save_messages(self, messages: Sequence[dict[str, Any]], session_scope: str) -> None:
        """Append messages to a scope and delete all but its last `MAX_LAST_MESSAGES`."""
        now = datetime.now(UTC).isoformat()
        with self._pool.connection() as connection, connection.transaction(), connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO last_messages (session_scope, role, content, name, created_at)"
                " VALUES (%s, %s, %s, %s, %s)",
                [(session_scope, m.get("role"), m.get("content"), m.get("name"), now) for m in messages],
            )
            cursor.execute(
                "DELETE FROM last_messages WHERE session_scope = %(scope)s AND number <= ("
                " SELECT number FROM last_messages WHERE session_scope = %(scope)s"
                " ORDER BY number DESC OFFSET %(kept)s LIMIT 1)",
                {"scope": session_scope, "kept": MAX_LAST_MESSAGES},
            )

    def get_last_messages(self, session_scope: str, limit: int = MAX_LAST_MESSAGES) -> list[dict[str, Any]]:
        """The last messages of a scope, oldest first."""
        with self._pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            rows = cursor.execute(
                "SELECT role, content, name, created_at FROM last_messages"
                " WHERE session_scope = %s ORDER BY number DESC LIMIT %s",
                (session_scope, limit),
            )
            return rows.fetchall()[::-1]

    def reset(self) -> None:
        """Delete the history and the last messages of all users."""
        with self._pool.connection() as connection:
            connection.execute("TRUNCATE memory_history, last_messages")

    def close(self) -> None:
        """Do nothing: the pool is closed by its owner."""


def insert_history(cursor: Cursor[TupleRow], records: Sequence[dict[str, Any]]) -> None:
    """Insert changes of memories in the cursor's transaction.

    Args:
        records: as Mem0's `batch_add_history` takes them.
    """
    cursor.executemany(
        _INSERT,
        [
            {**dict.fromkeys(_COLUMNS), **record, "id": uuid.uuid4(), "is_deleted": bool(record.get("is_deleted"))}
            for record in records
        ],
    )


def remove_last_messages(connection: Connection[TupleRow], user: str) -> None:
    """Delete the last messages that Mem0 keeps of a user, by the encoded id, in all of its scopes."""
    escaped = user.replace("%", "%25").replace("&", "%26").replace("=", "%3D")
    # A scope names its ids in alphabetical order, and `user_id` is the last of them.
    connection.execute(
        "DELETE FROM last_messages WHERE right('&' || session_scope, length(%(end)s)) = %(end)s",
        {"end": f"&user_id={escaped}"},
    )
