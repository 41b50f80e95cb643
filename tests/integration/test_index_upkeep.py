"""Upkeep of indexes on a real PostgreSQL: half-full pages are filled, one index at a time, and no other is touched."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from services.long_term_memory.index_upkeep import UPKEEP_LOCK, IndexUpkeep
from services.long_term_memory.postgres.rows import insert_memories, memory_row
from tests.integration.conftest import WordEmbedder
from tests.support import wait_until

#: Of one user, so that one partition has them all.
MEMORIES = 2_000


def select(url: str, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(statement, values)
        return found.fetchall() if found.description else []


def sizes(url: str) -> dict[str, int]:
    """The sizes of the indexes of all partitions that have rows."""
    return dict(
        select(
            url,
            "SELECT relname::text, pg_relation_size(oid) FROM pg_class WHERE relkind = 'i' AND reltuples > 0"
            " AND relname LIKE 'memories\\_%%'",
        )
    )


@pytest.fixture
def talkative(database: str) -> str:
    """The URL of a database with a user whose memories have come in the order of no index: the pages are half full."""
    vector = WordEmbedder().embed("tea")
    with psycopg.connect(database) as connection:
        for begin in range(0, MEMORIES, 200):
            fields = [
                {"data": f"tea {number}", "user_id": "u1", "session_id": f"s{number % 97}", "timestamp": number}
                for number in range(begin, begin + 200)
            ]
            insert_memories(connection, [memory_row(str(uuid.uuid4()), vector, payload) for payload in fields])
    select(database, "VACUUM ANALYZE memories")
    return database


def upkeep(url: str, factor: float = 1.3) -> IndexUpkeep:
    return IndexUpkeep(url, factor, min_bytes=1 << 20)


def test_the_half_full_index_is_built_anew(talkative: str) -> None:
    """Given memories of a talkative user, I expect the index that searches read built anew, smaller, and no other."""
    before = sizes(talkative)
    passes = upkeep(talkative)

    name = passes.run_once()

    assert name is not None
    assert name.endswith("_of_user")
    after = sizes(talkative)
    assert after[name] < before[name] / 1.2
    assert {other for other in before if after[other] != before[other]} == {name}
    assert select(talkative, "SELECT count(*) FROM pg_index WHERE NOT indisvalid") == [(0,)]
    assert passes.run_once() is None


def test_an_index_is_found_in_whatever_schema_it_is(talkative: str) -> None:
    """Given the tables in a schema whose name needs quotes, I expect an index built anew there as well."""
    select(talkative, 'CREATE SCHEMA "My own"')
    tables = select(talkative, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    for (table,) in tables:
        select(talkative, f'ALTER TABLE public.{table} SET SCHEMA "My own"')

    name = upkeep(f"{talkative}&options=-c%20search_path%3D%22My%5C%20own%22%2Cpublic").run_once()

    assert name is not None
    assert name.endswith("_of_user")


def test_nothing_is_built_where_nothing_is_to_be_gained(talkative: str) -> None:
    """Given a factor that nothing reaches, or none, or small indexes, I expect none built."""
    before = sizes(talkative)

    assert upkeep(talkative, 50).run_once() is None
    assert upkeep(talkative, 0).run_once() is None
    assert IndexUpkeep(talkative, 1.3).run_once() is None
    assert sizes(talkative) == before


@pytest.mark.parametrize(
    "busy",
    [
        lambda connection: connection.execute("SELECT pg_advisory_lock(%s)", (UPKEEP_LOCK,)),
        lambda connection: connection.execute("CREATE TABLE memories_next ()"),
    ],
    ids=["another process", "the table is replaced"],
)
def test_one_does_it_at_a_time(talkative: str, busy: Callable[[Any], Any]) -> None:
    """Given another process at it, or `ltm partition` under way, I expect nothing done."""
    with psycopg.connect(talkative, autocommit=True) as other:
        busy(other)

        assert upkeep(talkative).run_once() is None


def test_a_rebuild_that_fails_is_told_and_leaves_nothing(talkative: str) -> None:
    """Given a rebuild that PostgreSQL ends, as for want of disk, I expect its error, which is counted as a failed pass,
    and no half-built index, which would take room until the next one."""
    building = "SELECT pid FROM pg_stat_progress_create_index WHERE phase LIKE 'waiting%%'"
    with ThreadPoolExecutor(1) as thread, psycopg.connect(talkative) as writer:
        writer.execute("UPDATE memories SET analysis = analysis")
        rebuild = thread.submit(upkeep(talkative).run_once)
        wait_until(lambda: select(talkative, building), description="the rebuild to wait for the writer")
        assert select(talkative, "SELECT count(*) FROM pg_index WHERE NOT indisvalid") == [(1,)]

        select(talkative, f"SELECT pg_cancel_backend(pid) FROM ({building}) AS rebuild")
        writer.rollback()

        with pytest.raises(psycopg.errors.QueryCanceled):
            rebuild.result()
    assert select(talkative, "SELECT count(*) FROM pg_index WHERE NOT indisvalid") == [(0,)]


def test_what_a_rebuild_has_left_that_was_ended_is_removed(talkative: str) -> None:
    """Given an index that a killed rebuild has left invalid, I expect it dropped by the next pass."""
    [(table,)] = select(talkative, "SELECT tableoid::regclass::text FROM memories LIMIT 1")
    select(talkative, f"CREATE INDEX {table}_of_user_ccnew ON {table} (number)")
    select(talkative, f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{table}_of_user_ccnew'::regclass")

    upkeep(talkative, 50).run_once()

    assert select(talkative, "SELECT to_regclass(%s)", f"{table}_of_user_ccnew") == [(None,)]
