"""The schema, in numbered steps that are applied once, in order, under a lock."""

from __future__ import annotations

from psycopg import Connection, sql
from psycopg.rows import TupleRow

from services.errors import EmbeddingDimensionMismatch

#: Any number will do as long as every Keepsake takes the same one: "keepsake" in ASCII.
ADVISORY_LOCK = 0x6B656570_73616B65

#: A step that has been released is never edited: append another one. `{dimensions}` is the embedder's.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE EXTENSION IF NOT EXISTS vector;

    -- The shape of Mem0's own pgvector store, without its HNSW index: filtered afterwards it finds next to nothing of
    -- one user among many.
    CREATE TABLE memories (id uuid PRIMARY KEY, vector vector({dimensions}), payload jsonb);
    CREATE INDEX memories_of_user ON memories ((payload ->> 'user_id'));

    CREATE TABLE memory_history (
        number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        id uuid NOT NULL,
        memory_id text NOT NULL,
        old_memory text,
        new_memory text,
        event text NOT NULL,
        created_at text,
        updated_at text,
        is_deleted boolean NOT NULL,
        actor_id text,
        role text
    );
    CREATE INDEX memory_history_of_memory ON memory_history (memory_id, number);

    CREATE TABLE last_messages (
        number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        session_scope text NOT NULL,
        role text,
        content text,
        name text,
        created_at text NOT NULL
    );
    CREATE INDEX last_messages_of_scope ON last_messages (session_scope, number);

    CREATE TABLE profiles (
        user_id text PRIMARY KEY,
        profile jsonb NOT NULL,
        version bigint NOT NULL,
        updated_at timestamptz NOT NULL
    );
    CREATE TABLE profile_history (
        user_id text NOT NULL,
        version bigint NOT NULL,
        patch jsonb NOT NULL,
        request_id text,
        changed_at timestamptz NOT NULL,
        PRIMARY KEY (user_id, version)
    );
    """,
)


def migrate(connection: Connection[TupleRow], dimensions: int) -> None:
    """Bring the schema up to date; many workers may call this at once.

    Args:
        dimensions: how many numbers the embedder's vectors have.

    Raises:
        EmbeddingDimensionMismatch: the table holds vectors of another size.
    """
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (ADVISORY_LOCK,))
        connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations"
            " (version int PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        row = connection.execute("SELECT coalesce(max(version), 0) FROM schema_migrations").fetchone()
        applied = row[0] if row else 0
        for version, step in enumerate(MIGRATIONS[applied:], start=applied + 1):
            connection.execute(sql.SQL(step).format(dimensions=sql.Literal(dimensions)))
            connection.execute("INSERT INTO schema_migrations (version) VALUES (%s)", (version,))
    _check_dimensions(connection, dimensions)


def _check_dimensions(connection: Connection[TupleRow], dimensions: int) -> None:
    # pgvector keeps a column's dimensions as its type modifier.
    row = connection.execute(
        "SELECT atttypmod FROM pg_attribute WHERE attrelid = 'memories'::regclass AND attname = 'vector'"
    ).fetchone()
    if row and row[0] != dimensions:
        raise EmbeddingDimensionMismatch(embedder=dimensions, table=row[0])
