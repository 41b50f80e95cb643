"""Rows of memories in a database that an earlier release has migrated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg import Connection, sql
from psycopg.rows import TupleRow


def add_users_as_then(connection: Connection[TupleRow], user_ids: Sequence[str]) -> None:
    """Insert users, each as the shared owner where the table has several of a user."""
    agents = connection.execute("SELECT FROM pg_attribute WHERE attrelid = 'users'::regclass AND attname = 'agent_id'")
    columns, shared = ("user_id, agent_id", ", ''") if agents.rowcount else ("user_id", "")
    connection.execute(
        f"INSERT INTO users ({columns}) SELECT unnest(%s::text[]){shared} ON CONFLICT DO NOTHING",
        (list(user_ids),),
    )


def insert_as_then(connection: Connection[TupleRow], rows: Sequence[dict[str, Any]], without: str = "") -> None:
    """Insert rows of `memory_row`, with those of their columns that the table has, for their shared owners.

    Args:
        without: a column that gets its default.
    """
    add_users_as_then(connection, [row["user_id"] for row in rows])
    present = connection.execute("SELECT attname FROM pg_attribute WHERE attrelid = 'memories'::regclass").fetchall()
    columns = [column for (column,) in present if rows and column in rows[0] and column not in ("id", without)]
    of_owner = ["number AS user_number", *(["user_hash"] if ("user_hash",) in present else [])]
    for row in rows:
        connection.execute(
            sql.SQL(
                "INSERT INTO memories (id, {owner}, {columns}) SELECT %(id)s, {of_owner}, {values}"
                " FROM users WHERE user_id = %(user_id)s"
            ).format(
                owner=sql.SQL(", ".join(name.split()[-1] for name in of_owner)),
                of_owner=sql.SQL(", ".join(of_owner)),
                columns=sql.SQL(", ").join(map(sql.Identifier, columns)),
                values=sql.SQL(", ").join(
                    sql.Placeholder(column) + sql.SQL("::halfvec" if column == "vector" else "") for column in columns
                ),
            ),
            row,
        )
