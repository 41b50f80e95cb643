"""The schema on a real PostgreSQL: made once, whoever asks at once, and never for other vectors."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import psycopg
import pytest

from services.errors import EmbeddingDimensionMismatch
from services.long_term_memory.migrations import MIGRATIONS, Migration, migrate

WORKERS = 8


def schema(url: str) -> list[tuple[Any, ...]]:
    """Every column and index of ours, and which steps have been applied when."""
    with psycopg.connect(url) as connection:
        columns = connection.execute(
            "SELECT table_name, column_name, data_type, is_nullable FROM information_schema.columns"
            " WHERE table_schema = 'public' ORDER BY 1, 2"
        ).fetchall()
        indexes = connection.execute(
            "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1, 2"
        ).fetchall()
        applied = connection.execute("SELECT version, applied_at FROM schema_migrations ORDER BY 1").fetchall()
    return [*columns, *indexes, *applied]


def versions(url: str) -> list[int]:
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute("SELECT version FROM schema_migrations ORDER BY 1")]


def migrated(url: str, dimensions: int = 384) -> None:
    with psycopg.connect(url) as connection:
        migrate(connection, dimensions)


def test_an_empty_database_gets_every_step(empty_database: str) -> None:
    """Given an empty database, I expect every step applied, in order."""
    migrated(empty_database)

    assert versions(empty_database) == list(range(1, len(MIGRATIONS) + 1))


def test_many_workers_may_start_at_once(empty_database: str) -> None:
    """Given eight workers that migrate an empty database at once, I expect all to succeed, and one schema."""
    together = Barrier(WORKERS)

    def start(_: int) -> None:
        with psycopg.connect(empty_database) as connection:
            together.wait(timeout=30)
            migrate(connection, 384)

    with ThreadPoolExecutor(WORKERS) as workers:
        list(workers.map(start, range(WORKERS)))

    assert versions(empty_database) == list(range(1, len(MIGRATIONS) + 1))


def test_migrating_twice_changes_nothing(database: str) -> None:
    """Given a migrated database, I expect migrating it again to leave it as it is."""
    before = schema(database)

    migrated(database)

    assert schema(database) == before


def test_migrating_twice_keeps_what_is_stored(database: str) -> None:
    """Given a profile in a migrated database, I expect it there after migrating again."""
    with psycopg.connect(database) as connection:
        connection.execute("INSERT INTO profiles VALUES ('u1', '{}', 1, now())")

    migrated(database)

    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT user_id FROM profiles").fetchall() == [("u1",)]


@pytest.mark.parametrize("dimensions", [8, 383, 1_536])
def test_another_embedder_is_refused(database: str, dimensions: int) -> None:
    """Given a table for vectors of 384 and an embedder of another size, I expect an error that says both sizes."""
    with pytest.raises(EmbeddingDimensionMismatch, match=f"gives {dimensions} dimensions .* holds 384"):
        migrated(database, dimensions)


def test_a_refused_embedder_changes_nothing(database: str) -> None:
    """Given an embedder that is refused, I expect the database as it was."""
    before = schema(database)

    with pytest.raises(EmbeddingDimensionMismatch):
        migrated(database, 8)

    assert schema(database) == before


def test_a_fresh_database_takes_any_embedder(empty_database: str) -> None:
    """Given a fresh database and an embedder of another size, I expect it to be taken, again and again."""
    migrated(empty_database, 8)
    migrated(empty_database, 8)


def test_a_step_that_fails_leaves_nothing(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a step that breaks half way, I expect the steps before it undone too: the next start tries all of them."""
    broken = (*MIGRATIONS, Migration("CREATE TABLE half (id int); SELECT no_such_function()"))
    monkeypatch.setattr("services.long_term_memory.migrations.MIGRATIONS", broken)
    with pytest.raises(psycopg.errors.UndefinedFunction):
        migrated(empty_database)
    monkeypatch.undo()

    migrated(empty_database)

    assert versions(empty_database) == list(range(1, len(MIGRATIONS) + 1))


def test_a_new_step_is_applied_alone(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a database of an older release, I expect the new step applied and the old ones left alone."""
    monkeypatch.setattr(
        "services.long_term_memory.migrations.MIGRATIONS", (*MIGRATIONS, Migration("CREATE TABLE newcomers (id int)"))
    )

    migrated(database)

    assert versions(database)[-1] == len(MIGRATIONS) + 1


def test_reads_of_one_user_go_through_an_index(database: str) -> None:
    """Given many users' memories, I expect PostgreSQL to find one user's through an index, not by reading all."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("INSERT INTO users (user_id) SELECT 'u' || n FROM generate_series(1, 500) AS n")
        connection.execute(
            "INSERT INTO memories (id, user_number, session, said_at, source, content, payload, terms, traits, vector)"
            " SELECT gen_random_uuid(), 1 + n % 500, 0, now(), 'user', 'tea', '{}', '', '',"
            " array_fill(0.05::real, ARRAY[384])::halfvec(384) FROM generate_series(1, 5000) AS n"
        )
        connection.execute("ANALYZE memories")
        plan = connection.execute("EXPLAIN SELECT id FROM memories WHERE user_number = 7").fetchall()

    assert any("memories_of_user" in line for (line,) in plan), plan


def test_there_is_no_approximate_index(database: str) -> None:
    """Given the schema, I expect no index across users' vectors: filtered afterwards it finds next to nothing."""
    with psycopg.connect(database) as connection:
        methods = connection.execute(
            "SELECT DISTINCT amname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid"
            " JOIN pg_am ON pg_am.oid = relam WHERE indrelid = 'memories'::regclass"
        ).fetchall()

    assert not {name for (name,) in methods} & {"hnsw", "ivfflat"}
