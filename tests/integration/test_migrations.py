"""The schema on a real PostgreSQL: migrated once, also by concurrent processes, and for one size of vectors."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from threading import Barrier
from typing import Any

import psycopg
import pytest
from keepsake_client.protocol import SearchData
from psycopg import sql
from psycopg.types.json import Jsonb

from services.long_term_memory.mem0_bridge import Mem0Memory
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.postgres import analysis as analysis_module
from services.long_term_memory.postgres import schema as schema_module
from services.long_term_memory.postgres.history import PostgresHistory
from services.long_term_memory.postgres.pool import migrating, open_pool
from services.long_term_memory.postgres.rows import TRAITS, analyse, memory_row
from services.long_term_memory.postgres.schema import Migration, migrate, read_migrations
from services.long_term_memory.postgres.scope import Owner
from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.removal import remove
from services.long_term_memory.retrieval.columns import hashed
from services.runtime.errors import EmbeddingDimensionMismatch
from tests.integration.conftest import DIMENSIONS, WordEmbedder
from tests.old_schemas import insert_as_then

WORKERS = 8
STEPS = read_migrations()
#: SHA-256 of the steps that have been released: they are never edited.
RELEASED = {
    "0001_mem0_tables.sql": "671cb8559e3d95c95529a6d7d0786ebe49d583341689bcf06fe5021d316063ec",
    "0002_memories_as_columns.sql": "11eefaafeb2e5ac0df929a946365e335e29b5e3da0972489625eb1d485f2a7a3",
    "0003_packed_head.sql": "b8ac7655582fb361340022d551a603b846744e34573dc7a88b96fd1017bd0f27",
}


def schema(url: str) -> list[tuple[Any, ...]]:
    """Every column and index, and which steps have been applied when."""
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


def migrated(url: str, dimensions: int = 384, steps: Sequence[Migration] = STEPS) -> None:
    with psycopg.connect(url) as connection:
        migrate(connection, dimensions, steps)


def start(url: str) -> None:
    """Migrate as a process that starts does."""
    with psycopg.connect(url) as connection:
        migrate(connection, DIMENSIONS)


def store_unversioned(url: str, *contents: str, **more: Any) -> None:
    """Store memories of user u1 as a release without the column `analysis` does, with other terms and traits."""
    rows = [
        memory_row(str(uuid.uuid4()), WordEmbedder().embed(content), {"data": content, "user_id": "u1", **more})
        for content in contents
    ]
    other = {"terms": b"", "traits": b"\0" * TRAITS.itemsize}
    with psycopg.connect(url) as connection:
        insert_as_then(connection, [row | other for row in rows], without="analysis")


def test_released_steps_are_unchanged_and_none_is_missing() -> None:
    """Given the files of the steps, I expect numbers without a gap, and the released ones byte for byte."""
    files = sorted(Path(schema_module.__file__).with_name("migrations").glob("*.sql"))

    assert [int(file.name[:4]) for file in files] == list(range(1, len(files) + 1))
    assert {file.name: sha256(file.read_bytes()).hexdigest() for file in files[: len(RELEASED)]} == RELEASED


@pytest.mark.parametrize("version", range(1, len(STEPS) + 1))
def test_a_database_of_any_version_gets_the_same_schema(empty_database: str, database: str, version: int) -> None:
    """Given a database of an older release, I expect the columns and indexes of a new one."""
    migrated(empty_database, steps=STEPS[:version])
    applied = schema(empty_database)[-version:]

    migrated(empty_database)

    assert versions(empty_database) == list(range(1, len(STEPS) + 1))
    assert schema(empty_database)[: -len(STEPS)] == schema(database)[: -len(STEPS)]
    assert schema(empty_database)[-len(STEPS) :][:version] == applied


def test_memories_of_the_second_version_are_found(empty_database: str) -> None:
    """Given a memory that was stored before columns were packed, I expect it packed and found."""
    migrated(empty_database, steps=STEPS[:2])
    store_unversioned(empty_database, OLD[0][0], **OLD[0][2])

    start(empty_database)

    with open_pool(empty_database, 2) as pool:
        store = MemoryStore(pool)
        columns = store.columns.read(Owner("u1"), WordEmbedder().embed(OLD[0][0]))
    assert (len(columns), columns.session.tolist()) == (1, [hashed("s1")])
    assert columns.cosine == pytest.approx(1, abs=1e-3)


def test_what_there_was_before_facts_is_messages(empty_database: str) -> None:
    """Given a memory and a profile from before facts, I expect its owner to be one of messages, nothing to wait for an
    LLM, and a deletion to delete it."""
    migrated(empty_database, steps=STEPS[:8])
    with psycopg.connect(empty_database) as connection:
        row = memory_row(str(uuid.uuid4()), WordEmbedder().embed("tea"), {"data": "tea", "user_id": "u1"})
        insert_as_then(connection, [row])
        connection.execute("INSERT INTO profiles VALUES ('u1', '{\"a\": 1}', 1, now())")
        connection.execute("INSERT INTO profile_history VALUES ('u1', 1, '{\"a\": 1}', NULL, now())")

    migrated(empty_database)

    with psycopg.connect(empty_database) as connection:
        assert connection.execute("SELECT user_id, kind FROM users").fetchall() == [("u1", "message")]
        assert connection.execute("SELECT source, evidence FROM profile_history").fetchall() == [(None, None)]
        assert connection.execute("SELECT count(*) FROM to_extract").fetchone() == (0,)
        numbers = [number for (number,) in connection.execute("SELECT number FROM memories").fetchall()]
        assert remove(connection, numbers) == 1
        assert connection.execute("SELECT count(*) FROM memories").fetchone() == (0,)


# Processes of release 0.2 beside this one

#: What its writers execute first, to index, to add and to update a profile.
WRITES_OF_0_2 = (
    "INSERT INTO users (user_id) SELECT unnest(ARRAY['u1']) ON CONFLICT DO NOTHING",
    "INSERT INTO profiles VALUES ('u1', '{}', 0, clock_timestamp()) ON CONFLICT DO NOTHING",
)


@pytest.mark.parametrize("statement", WRITES_OF_0_2)
@pytest.mark.parametrize("known", [True, False])
def test_a_writer_of_release_0_2_is_refused_with_what_it_retries(database: str, statement: str, *, known: bool) -> None:
    """Given a migrated database, and a user that it knows or not, I expect an error that release 0.2 takes for a
    transient one, with what to do."""
    with psycopg.connect(database, autocommit=True) as connection:
        if known:
            connection.execute("INSERT INTO users (user_id, agent_id) VALUES ('u1', '')")
            connection.execute("INSERT INTO profiles VALUES ('u1', '{}', 0, now(), '')")
        with pytest.raises(psycopg.OperationalError, match="stop this process of release 0"):
            connection.execute(statement)


# What is computed from texts

TEXTS = ("I write C++", "我養了一隻烏龜")


def stored_analyses(url: str) -> dict[str, tuple[bytes, bytes]]:
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT content, terms, traits FROM memories").fetchall()
    return {content: (terms, traits) for content, terms, traits in found}


def test_what_an_earlier_release_computed_from_a_text_is_computed_again(empty_database: str) -> None:
    """Given memories of the release before, said by the AI, I expect terms and traits of this release, and no more."""
    migrated(empty_database, steps=STEPS[:4])
    store_unversioned(empty_database, *TEXTS, source="ai")
    untouched = "SELECT id, vector::text, payload, said_at, session FROM memories ORDER BY id"
    with psycopg.connect(empty_database) as connection:
        before = connection.execute(untouched).fetchall()

    start(empty_database)

    assert stored_analyses(empty_database) == {text: analyse(text, from_ai=True, added=False) for text in TEXTS}
    with psycopg.connect(empty_database) as connection:
        assert connection.execute(untouched).fetchall() == before


def test_what_was_added_stays_known_as_added(empty_database: str) -> None:
    """Given a memory of the release before that was added by request, I expect its traits to say so still."""
    migrated(empty_database, steps=STEPS[:4])
    store_unversioned(empty_database, TEXTS[0], request_id="r1")

    start(empty_database)

    assert stored_analyses(empty_database)[TEXTS[0]] == analyse(TEXTS[0], from_ai=False, added=True)


def test_the_next_start_renews_what_a_writer_of_the_release_before_still_stores(database: str) -> None:
    """Given a migrated database and a writer that knows no `analysis`, I expect the next start to renew them."""
    store_unversioned(database, *TEXTS)

    start(database)

    assert stored_analyses(database) == {text: analyse(text, from_ai=False, added=False) for text in TEXTS}


def test_a_renewal_that_is_cut_off_is_taken_up_again(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a process that dies in its second batch, I expect the first batch to stay, and the next start to go on."""
    store_unversioned(database, *TEXTS)
    monkeypatch.setattr(analysis_module, "BATCH_ROWS", 1)

    def dies_at_the_second(text: str, **more: Any) -> tuple[bytes, bytes]:
        if text == TEXTS[1]:
            raise KeyboardInterrupt
        return analyse(text, **more)

    with monkeypatch.context() as dying:
        dying.setattr(analysis_module, "analyse", dies_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            start(database)
    after_death = stored_analyses(database)
    start(database)

    expected = {text: analyse(text, from_ai=False, added=False) for text in TEXTS}
    assert (after_death[TEXTS[0]], after_death[TEXTS[1]][0]) == (expected[TEXTS[0]], b"")
    assert stored_analyses(database) == expected


def test_others_see_that_a_renewal_is_under_way(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given memories to renew, I expect others to see that the database is being migrated, and not afterwards."""
    store_unversioned(database, *TEXTS)
    seen: list[bool] = []

    def looks(text: str, **more: Any) -> tuple[bytes, bytes]:
        seen.append(migrating(database))
        return analyse(text, **more)

    monkeypatch.setattr(analysis_module, "analyse", looks)
    start(database)

    assert (seen, migrating(database)) == ([True, True], False)


def test_an_empty_database_gets_every_step(empty_database: str) -> None:
    """Given an empty database, I expect every step applied, in order."""
    migrated(empty_database)

    assert versions(empty_database) == list(range(1, len(STEPS) + 1))


def test_concurrent_migrations_apply_each_step_once(empty_database: str) -> None:
    """Given eight workers that migrate an empty database at once, I expect all to succeed, and one schema."""
    together = Barrier(WORKERS)

    def start(_: int) -> None:
        with psycopg.connect(empty_database) as connection:
            together.wait(timeout=60)
            migrate(connection, 384)

    with ThreadPoolExecutor(WORKERS) as workers:
        list(workers.map(start, range(WORKERS)))

    assert versions(empty_database) == list(range(1, len(STEPS) + 1))


def test_migrating_is_idempotent(database: str) -> None:
    """Given a migrated database, I expect migrating it again to leave it as it is."""
    before = schema(database)

    migrated(database)

    assert schema(database) == before


def test_migrating_twice_keeps_what_is_stored(database: str) -> None:
    """Given a profile in a migrated database, I expect it there after migrating again."""
    with psycopg.connect(database) as connection:
        connection.execute("INSERT INTO profiles VALUES ('u1', '{}', 1, now(), '')")

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


def test_a_step_that_fails_leaves_nothing_of_it(empty_database: str) -> None:
    """Given a step that breaks half way, I expect nothing of it, the steps before it done, and the rest later."""
    broken = [*STEPS, Migration("CREATE TABLE half (id int); SELECT no_such_function()")]
    with pytest.raises(psycopg.errors.UndefinedFunction):
        migrated(empty_database, steps=broken)

    assert versions(empty_database) == list(range(1, len(STEPS) + 1))
    mended = [*STEPS, Migration("CREATE TABLE half (id int)")]
    migrated(empty_database, steps=mended)
    assert versions(empty_database) == list(range(1, len(mended) + 1))


def test_a_new_step_is_applied_alone(database: str) -> None:
    """Given a database of an older release, I expect the new step applied and the old ones left alone."""
    migrated(database, steps=[*STEPS, Migration("CREATE TABLE newcomers (id int)")])

    assert versions(database)[-1] == len(STEPS) + 1


def test_a_step_may_take_longer_than_a_statement(database: str) -> None:
    """Given a step over very many memories, and a connection that ends slow statements, I expect the step done."""
    slow = [*STEPS, Migration("SELECT pg_sleep(0.3)")]

    with psycopg.connect(database, options="-c statement_timeout=100") as connection:
        migrate(connection, DIMENSIONS, slow)
        connection.commit()
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("SELECT pg_sleep(20)")

    assert versions(database)[-1] == len(slow)


def test_searches_go_on_while_a_step_waits_for_a_backup(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a backup that reads the memories of an earlier release, I expect its searches to go on, and the steps that
    lock the table to be applied after it."""
    with psycopg.connect(empty_database) as connection:
        migrate(connection, DIMENSIONS, STEPS[:10])
    found = list[int]()
    with psycopg.connect(empty_database) as backup, psycopg.connect(empty_database, autocommit=True) as search:
        backup.execute("SELECT FROM memories")

        def pause(_: float) -> None:
            found.append(search.execute("SELECT FROM memories").rowcount)
            backup.rollback()

        monkeypatch.setattr("services.long_term_memory.postgres.locking.time.sleep", pause)
        with psycopg.connect(empty_database) as connection:
            migrate(connection, DIMENSIONS)

    assert found == [0]
    assert versions(empty_database) == list(range(1, len(STEPS) + 1))


def test_other_processes_see_that_a_step_is_under_way(empty_database: str) -> None:
    """Given a database in the midst of a step, I expect others to see that, and not before or after it."""
    seen: list[bool] = []
    looking = Migration("SELECT 1", hook=lambda *_: seen.append(migrating(empty_database)))

    before = migrating(empty_database)
    migrated(empty_database, steps=[*STEPS, looking])

    assert (before, seen, migrating(empty_database)) == (False, [True], False)


def test_a_pool_that_is_older_than_the_extension_stores_and_finds(empty_database: str) -> None:
    """Given a pool opened on an empty database and migrated through it, I expect vectors on every connection of it."""
    with open_pool(empty_database, 2) as pool:
        with pool.connection() as connection:
            migrate(connection, DIMENSIONS)
        store, vector = MemoryStore(pool), WordEmbedder().embed("tea")
        with pool.connection():  # the pool's first one: the next is newer
            store.insert([vector], [{"data": "tea", "user_id": "u1"}], [str(uuid.UUID(int=1))])

        assert store.columns.read(Owner("u1"), vector).cosine == pytest.approx(1, abs=1e-3)


def test_a_restored_database_is_used_on_by_the_same_connections(database: str) -> None:
    """Given a database whose types get other OIDs, as a restored dump's do, I expect an open pool to store and find."""
    with open_pool(database, 1) as pool:
        store, vector = MemoryStore(pool), WordEmbedder().embed("tea")

        def stores_and_finds() -> None:
            store.insert([vector], [{"data": "tea", "user_id": "u1"}], [str(uuid.uuid4())])
            assert store.columns.read(Owner("u1"), vector).cosine == pytest.approx(1, abs=1e-3)

        stores_and_finds()
        with pool.connection() as connection:
            connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
            migrate(connection, DIMENSIONS)

        stores_and_finds()


def test_reads_of_one_user_go_through_an_index(database: str) -> None:
    """Given many users' memories, I expect PostgreSQL to find one user's through an index, not by reading all."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO users (user_id, agent_id) SELECT 'u' || n, '' FROM generate_series(1, 500) AS n"
        )
        connection.execute(
            "INSERT INTO memories (id, user_number, user_hash, session, said_at, source, content, payload, terms,"
            " traits, vector) SELECT gen_random_uuid(), users.number, user_hash, 0, now(), 'user', 'tea', '{}', '', '',"
            " array_fill(0.05::real, ARRAY[384])::halfvec(384) FROM generate_series(1, 5000) AS n"
            " JOIN users ON users.number = 1 + n % 500"
        )
        connection.execute("VACUUM ANALYZE memories")
        plan = connection.execute(
            "EXPLAIN SELECT head, terms, vector FROM memories WHERE user_number = 7"
            " AND user_hash = hashtextextended('u7', 0) ORDER BY session, said_at, number"
        ).fetchall()

    scans = [line for (line,) in plan if " on memories" in line]
    assert len(scans) == 1, plan
    assert "Index Only Scan using memories_" in scans[0], plan


def test_there_is_no_approximate_index(database: str) -> None:
    """Given the schema, I expect no index across users' vectors: filtered afterwards it finds next to nothing."""
    with psycopg.connect(database) as connection:
        methods = connection.execute(
            "SELECT DISTINCT amname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid"
            " JOIN pg_am ON pg_am.oid = relam WHERE indrelid = 'memories'::regclass"
        ).fetchall()

    assert not {name for (name,) in methods} & {"hnsw", "ivfflat"}


# From the first release's table to the present one


def as_mem0_stored_it(url: str) -> dict[str, dict[str, Any]]:
    """A database as the first step left it, with memories as Mem0's own store has them; payloads by id."""
    payloads = {
        str(uuid.UUID(int=number)): {"data": content, "user_id": user_id, "hash": "h", "text_lemmatized": "l", **more}
        for number, (content, user_id, more) in enumerate(OLD, start=1)
    }
    with psycopg.connect(url) as connection:
        connection.execute(
            "CREATE TABLE schema_migrations (version int PRIMARY KEY, applied_at timestamptz DEFAULT now())"
        )
        connection.execute(sql.SQL(STEPS[0].statements).format(dimensions=sql.Literal(DIMENSIONS)))
        connection.execute("INSERT INTO schema_migrations (version) VALUES (1)")
        for memory_id, payload in payloads.items():
            vector = json.dumps(WordEmbedder().embed(payload["data"]))
            connection.execute(
                "INSERT INTO memories (id, vector, payload) VALUES (%s, %s, %s)", (memory_id, vector, Jsonb(payload))
            )
    return payloads


OLD: list[tuple[str, str, dict[str, Any]]] = [
    (
        "My cat is called Tofu",
        "u1",
        {
            "role": "user",
            "source": "user",
            "timestamp": 1_712_345_678.5,
            "session_id": "s1",
            "message_id": "m1",
            "meta": {"session_id": "s1", "mood": "calm"},
            "created_at": "2024-04-05T19:34:38.500000+00:00",
            "updated_at": "2024-04-05T19:34:38.500000+00:00",
        },
    ),
    ("What a name", "u1", {"role": "assistant", "source": "ai", "timestamp": 1_712_345_679, "meta": {}}),
    ("我喜欢绿茶", "anna%20lee", {"role": "user", "source": "user", "timestamp": 1_712_345_680, "meta": {}}),
    ("Said to Mem0 itself", "u3", {"created_at": "2024-04-05T19:34:38+00:00"}),
]


def test_old_memories_become_columns(empty_database: str) -> None:
    """Given memories of the first release, I expect user, session, time, source and text in columns."""
    as_mem0_stored_it(empty_database)

    migrated(empty_database)

    with psycopg.connect(empty_database) as connection:
        found = connection.execute(
            "SELECT u.user_id, session, extract(epoch FROM said_at)::float, source, content"
            " FROM memories JOIN users u ON u.number = user_number ORDER BY id"
        ).fetchall()
    assert [(row[0], *row[2:]) for row in found] == [
        ("u1", 1_712_345_678.5, "user", "My cat is called Tofu"),
        ("u1", 1_712_345_679, "ai", "What a name"),
        ("anna%20lee", 1_712_345_680, "user", "我喜欢绿茶"),
        ("u3", 1_712_345_678, "user", "Said to Mem0 itself"),
    ]
    assert found[0][1] == hashed("s1")


def test_nothing_of_old_memories_is_lost(empty_database: str) -> None:
    """Given the same, I expect Mem0 to be handed the payloads that it stored, less its own lemmas."""
    payloads = as_mem0_stored_it(empty_database)

    migrated(empty_database)

    with open_pool(empty_database, 2) as pool:
        found = {memory_id: MemoryStore(pool).get(memory_id) for memory_id in payloads}
    assert {memory_id: memory and memory.payload for memory_id, memory in found.items()} == {
        memory_id: {name: value for name, value in payload.items() if name != "text_lemmatized"}
        for memory_id, payload in payloads.items()
    }


@pytest.mark.parametrize(
    ("user_id", "query", "expected"),
    [
        ("u1", "my cat", "My cat is called Tofu"),
        ("anna lee", "绿茶", "我喜欢绿茶"),
        ("u3", "Mem0", "Said to Mem0 itself"),
    ],
)
def test_old_memories_are_found(empty_database: str, user_id: str, query: str, expected: str) -> None:
    """Given the same, I expect a search to find them."""
    as_mem0_stored_it(empty_database)

    migrated(empty_database)

    with open_pool(empty_database, 2) as pool:
        store = MemoryStore(pool)
        service = MemoryService(Mem0Memory(WordEmbedder(), store, PostgresHistory(pool), None), store)
        found = service.search(user_id, SearchData(query=query, min_score=0, limit=1))
    assert [memory.content for memory in found] == [expected]


def test_old_vectors_are_the_same(empty_database: str) -> None:
    """Given the same, I expect the vectors in half precision, which leaves a cosine of 1 to what they were."""
    as_mem0_stored_it(empty_database)

    migrated(empty_database)

    with open_pool(empty_database, 2) as pool:
        cosine = MemoryStore(pool).columns.read(Owner("u3"), WordEmbedder().embed(OLD[3][0])).cosine
    assert cosine == pytest.approx(1, abs=1e-4)


def test_the_old_table_is_gone(empty_database: str) -> None:
    """Given the same, I expect nothing of Mem0's own table left."""
    as_mem0_stored_it(empty_database)

    migrated(empty_database)

    assert not [row for row in schema(empty_database) if "mem0" in str(row)]


def test_an_old_event_that_comes_again_is_no_second_memory(empty_database: str) -> None:
    """Given a memory of the first release, I expect its id taken: what is stored again under it stays one."""
    payloads = as_mem0_stored_it(empty_database)
    migrated(empty_database)

    with open_pool(empty_database, 2) as pool:
        new = MemoryStore(pool).insert([[0.1] * DIMENSIONS], [next(iter(payloads.values()))], [next(iter(payloads))])

    assert new == set()
