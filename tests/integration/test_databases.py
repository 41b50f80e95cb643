"""The database of a test: as if no test had used it before."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest

from tests.integration.conftest import drop_database, emptied, schema_of


@pytest.fixture
def url(create_database: Callable[..., str], migrated_template: str, database_url: str) -> Iterator[str]:
    """The URL of a migrated database that no other test gets."""
    url = create_database(migrated_template)
    yield url
    drop_database(database_url, url)


def run(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def test_no_row_and_no_number_is_left(url: str) -> None:
    """Given a test that stored something, and deleted other things, I expect the next to find nothing, and to count
    from one."""
    run(
        url,
        "INSERT INTO users (user_id, agent_id) VALUES ('anna', '')",
        "INSERT INTO profiles VALUES ('anna', '{}', 1, now(), '')",
    )
    run(url, "INSERT INTO deletions (user_digest, deleted_at) VALUES ('', now())", "DELETE FROM deletions")

    emptied(url)

    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT FROM users UNION ALL SELECT FROM profiles").fetchall() == []
        for added in (
            "users (user_id, agent_id) VALUES ('ben', '')",
            "deletions (user_digest, deleted_at) VALUES ('', now())",
        ):
            assert connection.execute(f"INSERT INTO {added} RETURNING number").fetchone() == (1,)


def test_no_connection_is_left(url: str) -> None:
    """Given a test that left a connection open, I expect it to be ended."""
    with psycopg.connect(url) as left:
        emptied(url)
        with pytest.raises(psycopg.OperationalError):
            left.execute("SELECT 1")


@pytest.mark.parametrize(
    "change",
    [
        "CREATE TABLE more (a int)",
        "ALTER TABLE users ADD COLUMN more int",
        "ALTER TABLE users ALTER COLUMN agent_id DROP DEFAULT",
        "ALTER TABLE memories_00 SET (autovacuum_enabled = false)",
        "DROP INDEX memories_by_time",
        "CREATE SCHEMA more",
        "DELETE FROM schema_migrations WHERE version = 1",
        "DO $$BEGIN EXECUTE format('ALTER DATABASE %I SET statement_timeout = 1000', current_database()); END$$",
        "DROP TABLE schema_migrations",
    ],
)
def test_a_database_whose_schema_was_changed_is_told(url: str, change: str) -> None:
    """Given a test that changed anything but rows, I expect its database to differ from a new one."""
    with psycopg.connect(url) as connection:
        new = schema_of(connection)

    assert emptied(url) == new
    run(url, change)
    assert emptied(url) != new
