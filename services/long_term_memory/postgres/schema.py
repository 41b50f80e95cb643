"""The schema, in numbered steps that are applied once, in order, under a lock."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple

from psycopg import Connection, sql
from psycopg.rows import TupleRow

from services.long_term_memory.postgres.pool import MIGRATION_LOCK
from services.long_term_memory.postgres.rows import insert_memories, memory_row
from services.runtime.errors import EmbeddingDimensionMismatch


class Migration(NamedTuple):
    """One step: statements, and what SQL alone cannot say."""

    schema: str
    then: Callable[[Connection[TupleRow]], None] | None = None


def _move_mem0_rows(connection: Connection[TupleRow]) -> None:
    """Carry what Mem0's own store held over into columns."""
    with connection.cursor("mem0_rows") as old, connection.cursor() as new:
        for memory_id, vector, payload in old.execute("SELECT id::text, vector::text, payload FROM memories_of_mem0"):
            insert_memories(new, [memory_row(memory_id, json.loads(vector), payload)])
    connection.execute("DROP TABLE memories_of_mem0")


#: A step that has been released is never edited: append another one. `{dimensions}` is the embedder's.
MIGRATIONS: tuple[Migration, ...] = (
    Migration("""
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
    """),
    Migration(
        """
    CREATE TABLE users (number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, user_id text NOT NULL UNIQUE);

    DROP INDEX memories_of_user;
    ALTER TABLE memories RENAME TO memories_of_mem0;
    ALTER INDEX memories_pkey RENAME TO memories_of_mem0_pkey;

    CREATE TABLE memories (
        number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        id uuid NOT NULL UNIQUE,
        user_number bigint NOT NULL REFERENCES users,
        session bigint NOT NULL,
        said_at timestamptz NOT NULL,
        source text NOT NULL CHECK (source IN ('user', 'ai')),
        content text NOT NULL,
        payload jsonb NOT NULL,
        terms bytea NOT NULL,
        traits bytea NOT NULL,
        vector halfvec({dimensions}) NOT NULL
    ) WITH (
        toast_tuple_target = 8160,  -- vectors stay beside their rows, where a scan finds them
        -- Searches read the index alone where the pages are known to be visible to all; vacuum is what knows.
        autovacuum_vacuum_insert_scale_factor = 0.01,
        autovacuum_vacuum_scale_factor = 0.02
    );

    -- What a search reads, in the order of the conversation: its place in this index is a memory's position in its
    -- session. An index row holds 2,704 bytes: larger vectors than these stay in the table.
    DO $$ BEGIN
        EXECUTE 'CREATE INDEX memories_of_user ON memories (user_number, session, said_at, number)'
            ' INCLUDE (traits, terms'
            || CASE WHEN {dimensions} <= 480 THEN ', vector)' ELSE ')' END;
        -- One in conversation.SAMPLE memories, for users with more than a search can read.
        EXECUTE 'CREATE INDEX memories_sample ON memories (user_number, session, said_at, number)'
            ' INCLUDE (traits, terms'
            || CASE WHEN {dimensions} <= 480 THEN ', vector)' ELSE ')' END
            || ' WHERE number % 7 = 0';
    END $$;
    """,
        then=_move_mem0_rows,
    ),
    Migration("""
    -- Of 50,000 memories, putting the columns together one by one took longer than finding them: what ranks a memory
    -- and has a fixed size is one value, as rows.HEAD reads it.
    ALTER TABLE memories ADD COLUMN head bytea NOT NULL
        GENERATED ALWAYS AS (int8send(number) || int8send(session) || timestamptz_send(said_at) || traits) STORED;

    DROP INDEX memories_of_user, memories_sample;
    DO $$ DECLARE included text := 'head, terms' || CASE WHEN {dimensions} <= 480 THEN ', vector' ELSE '' END;
    BEGIN
        EXECUTE 'CREATE INDEX memories_of_user ON memories (user_number, session, said_at, number) INCLUDE ('
            || included || ')';
        EXECUTE 'CREATE INDEX memories_sample ON memories (user_number, session, said_at, number) INCLUDE ('
            || included || ') WHERE number % 7 = 0';
    END $$;
    """),
)


def migrate(connection: Connection[TupleRow], dimensions: int) -> None:
    """Bring the schema up to date; many workers may call this at once.

    Args:
        dimensions: how many numbers the embedder's vectors have.

    Raises:
        EmbeddingDimensionMismatch: the table holds vectors of another size.
    """
    with connection.transaction():
        # A pool's connections end statements after 30 s; a million memories take longer, and whoever waits for them.
        connection.execute("SET LOCAL statement_timeout = 0")
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
        connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations"
            " (version int PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        row = connection.execute("SELECT coalesce(max(version), 0) FROM schema_migrations").fetchone()
        applied = row[0] if row else 0
        for version, step in enumerate(MIGRATIONS[applied:], start=applied + 1):
            connection.execute(sql.SQL(step.schema).format(dimensions=sql.Literal(dimensions)))
            if step.then:
                step.then(connection)
            connection.execute("INSERT INTO schema_migrations (version) VALUES (%s)", (version,))
    _check_dimensions(connection, dimensions)


def _check_dimensions(connection: Connection[TupleRow], dimensions: int) -> None:
    # pgvector keeps a column's dimensions as its type modifier.
    row = connection.execute(
        "SELECT atttypmod FROM pg_attribute WHERE attrelid = 'memories'::regclass AND attname = 'vector'"
    ).fetchone()
    if row and row[0] != dimensions:
        raise EmbeddingDimensionMismatch(embedder=dimensions, table=row[0])
