"""Memories in partitions by user: in a new database, and put in the place of one table beside workers."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from keepsake_client.protocol import MemoryUpdateMessage, SearchData
from psycopg_pool import ConnectionPool
from pydantic import SecretStr

from services.backup.backup import back_up
from services.backup.restore import Restore
from services.long_term_memory.embeddings.identity import EmbedderIdentity
from services.long_term_memory.forgetting import Forgetting
from services.long_term_memory.mem0_bridge import Mem0Memory
from services.long_term_memory.postgres.history import PostgresHistory
from services.long_term_memory.postgres.layout import MEMORIES_TABLES as TABLES
from services.long_term_memory.postgres.layout import partitions_of
from services.long_term_memory.postgres.partitioning import BATCH_ROWS, Partitioning
from services.long_term_memory.postgres.pool import EARLIER_APPLICATION_NAME, AnsweredConnection, open_pool
from services.long_term_memory.postgres.rows import memory_row
from services.long_term_memory.postgres.schema import migrate, read_migrations
from services.long_term_memory.postgres.scope import Owner
from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.reembedding import run_alone
from services.long_term_memory.repartitioning import abandon, run
from services.runtime.errors import PartitioningRefused, ReplacementRefused
from services.runtime.settings import Settings
from tests.integration.conftest import DIMENSIONS, WordEmbedder
from tests.integration.test_embedder_change import OtherWords, fill, start
from tests.integration.test_life_of_facts import NOON, Site
from tests.integration.test_reembedding import Embed
from tests.integration.test_reembedding import Watcher as OtherWatcher
from tests.integration.test_reembedding import run as reembed
from tests.ltm_command import run_ltm_process
from tests.old_schemas import insert_as_then
from tests.support import wait_until

TEXTS = [f"word{number} said{number}" for number in range(2 * BATCH_ROWS + 10)]
#: As many as a database has that was made for eight.
EIGHT = 8


class Killed(BaseException):
    """A kill at a certain moment."""


@dataclass
class Watcher:
    """An operator that agrees, and does something of the test's at a moment."""

    at_progress: Callable[[], object] = lambda: None
    at_indexing: Callable[[], object] = lambda: None
    begins: bool = True
    reports: list[tuple[int, int]] = field(default_factory=list)
    waits: int = 0

    def accepts(self, memories: int, table_bytes: int) -> bool:
        assert (memories >= 0, table_bytes > 0) == (True, True)
        return self.begins

    def progressed(self, done: int, total: int) -> None:
        self.reports.append((done, total))
        if len(self.reports) == 1:
            self.at_progress()

    def indexing(self) -> None:
        self.at_indexing()

    def waiting(self) -> None:
        self.waits += 1


def convert(url: str, operator: Watcher | None = None, partitions: int = 16, pause: Any = lambda: None) -> int | None:
    with psycopg.connect(url, autocommit=True) as connection:
        return run(connection, partitions, operator or Watcher(), pause)


def select(url: str, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(statement, values)
        return found.fetchall() if found.description else []


def keys(url: str) -> dict[str, list[str]]:
    """The columns of every unique key and foreign key of `memories` and its partitions, by table and name."""
    return dict(
        select(
            url,
            "SELECT conrelid::regclass || '.' || conname, array_agg(attname::text ORDER BY attname) FROM pg_constraint"
            " JOIN pg_attribute ON attrelid = conrelid AND attnum = ANY(conkey)"
            f" WHERE contype IN ('p', 'u', 'f', 'x') AND conrelid IN (SELECT oid FROM pg_class WHERE {TABLES})"
            " GROUP BY conrelid, conname UNION"
            " SELECT indexrelid::regclass::text, array_agg(attname::text ORDER BY attname) FROM pg_index"
            " JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY(indkey[0:indnkeyatts - 1])"
            f" WHERE indisunique AND indrelid IN (SELECT oid FROM pg_class WHERE {TABLES}) GROUP BY indexrelid",
        )
    )


def outline(url: str) -> list[tuple[Any, ...]]:
    """Columns, indexes, and constraints of the database, with those of partitions."""
    return select(
        url,
        "SELECT table_name::text, column_name::text, concat_ws(' ', data_type, is_nullable, is_identity,"
        " column_default, generation_expression) FROM information_schema.columns WHERE table_schema = 'public'"
        " UNION ALL SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
        " UNION ALL SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) || convalidated"
        " || (conparentid <> 0) FROM pg_constraint"
        " WHERE connamespace = 'public'::regnamespace AND contype <> 'n'"
        " UNION ALL SELECT relname, relkind::text, coalesce(reloptions::text, '') FROM pg_class"
        " WHERE relnamespace = 'public'::regnamespace UNION ALL SELECT proname, 'function', '' FROM pg_proc"
        " WHERE pronamespace = 'public'::regnamespace AND prolang = (SELECT oid FROM pg_language"
        " WHERE lanname = 'plpgsql') ORDER BY 1, 2, 3",
    )


@pytest.fixture
def earlier(empty_database: str) -> str:
    """The URL of a database that an earlier release has filled, and this one has migrated: one table of memories."""
    with psycopg.connect(empty_database) as connection:
        migrate(connection, DIMENSIONS, read_migrations()[:10])
    fill(empty_database, WordEmbedder(), TEXTS)
    with psycopg.connect(empty_database) as connection:
        migrate(connection, DIMENSIONS)
    return empty_database


@pytest.fixture
def site(earlier: str) -> Iterator[Site]:
    """A user's messages and facts in that database."""
    with open_pool(earlier, 5) as pool:
        yield site_on(pool)


def site_on(pool: ConnectionPool) -> Site:
    return Site(pool, Mem0Memory(WordEmbedder(), MemoryStore(pool), PostgresHistory(pool), None))


def contents(url: str) -> list[str]:
    return [content for (content,) in select(url, "SELECT content FROM memories ORDER BY number")]


def read(pool: ConnectionPool) -> int:
    """How many messages and facts of the user a search reads."""
    columns = MemoryStore(pool).columns.read(Owner("u1"), WordEmbedder().embed("word7"))
    return int((columns.number > 0).sum())


def whole(url: str) -> list[tuple[Any, ...]]:
    """All that a memory has but its partition, of each, and the kind of its owner."""
    return select(
        url,
        "SELECT m.number, id, kind, user_id, agent_id, session, said_at, source, content, payload::text, terms,"
        " traits, vector::text, analysis, expires_at, arrived_at FROM memories m"
        " JOIN users ON users.number = user_number ORDER BY 1",
    )


# A new database


@pytest.mark.parametrize("partitions", [0, 1, 2, 16])
def test_a_new_database_has_as_many_partitions_as_are_set(empty_database: str, partitions: int) -> None:
    """Given a number of partitions, I expect so many in a new database; none for 0 and for 1."""
    with psycopg.connect(empty_database) as connection:
        migrate(connection, DIMENSIONS, partitions=partitions)
        assert len(partitions_of(connection)) == (partitions if partitions > 1 else 0)


@pytest.mark.parametrize("partitions", [0, 16])
def test_every_key_contains_the_distribution_column(empty_database: str, partitions: int) -> None:
    """Given a new database, I expect the user's hash in each unique and each foreign key of the distributed table."""
    with psycopg.connect(empty_database) as connection:
        migrate(connection, DIMENSIONS, partitions=partitions)

    found = keys(empty_database)

    assert {"memories.memories_pkey", "memories.memories_id_key", "memories.memories_user_number_fkey"} <= found.keys()
    assert {name for name, columns in found.items() if "user_hash" not in columns} == set()


def test_the_settings_of_vacuum_are_those_of_each_partition(database: str) -> None:
    """Given the migrated table's settings of autovacuum, I expect the same of each partition."""
    options = select(database, "SELECT DISTINCT reloptions FROM pg_class WHERE relispartition AND relkind = 'r'")

    [(each,)] = options
    assert {"autovacuum_vacuum_insert_scale_factor=0.01", "autovacuum_vacuum_scale_factor=0.02"} <= set(each)


def test_an_event_is_one_memory_however_often_it_arrives(pool: ConnectionPool) -> None:
    """Given the same events of several users by eight threads at once, I expect one memory of each."""
    events = [
        MemoryUpdateMessage(user_id=f"u{user}", content="tea", source="user", timestamp=NOON, message_id="m1")
        for user in range(20)
    ]
    memories = site_on(pool).memories

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: memories.index_many(events), range(8)))

    with pool.connection() as connection:
        found = connection.execute("SELECT count(*), count(DISTINCT id), count(DISTINCT user_number) FROM memories")
        assert found.fetchone() == (20, 20, 20)


def test_all_that_is_kept_of_a_user_is_in_one_partition(pool: ConnectionPool) -> None:
    """Given messages, a character's, a fact and a superseded one, I expect one partition, whatever owner they have."""
    site = site_on(pool)
    oslo, lisbon = site.say("I live in Oslo"), site.say("I moved to Lisbon", NOON + 1)
    site.say("to a character", NOON + 2, agent_id="luna")
    site.find("The user lives in Lisbon.", [lisbon], replaces=[site.find("The user lives in Oslo.", [oslo])])

    assert set(site.kinds().values()) == {"message", "fact", "superseded"}
    assert site.select("SELECT count(DISTINCT tableoid), count(DISTINCT user_number) FROM memories") == [(1, 4)]
    site.delete(lisbon)
    assert site.kinds()["The user lives in Oslo."] == "fact"


def explained(pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch, search: Callable[[], Any]) -> list[str]:
    """The generic plan of the statement by which a search reads the columns."""
    statements: list[tuple[Any, Any]] = []
    execute = AnsweredConnection.execute

    def noting(self: Any, query: Any, params: Any = None, **more: Any) -> Any:
        statements.append((query, params))
        return execute(self, query, params, **more)

    with monkeypatch.context() as patched:
        patched.setattr(AnsweredConnection, "execute", noting)
        search()
    [(query, params)] = [pair for pair in statements if "AS conversation" in getattr(pair[0], "_obj", "")][:1]
    with pool.connection() as connection:
        # A table of so few rows is read faster as it is.
        connection.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
        for _ in range(8):  # prepared after five, and planned once from then on
            plan = connection.execute("EXPLAIN (ANALYZE, COSTS OFF) " + query.as_string(), params).fetchall()
    return [line for (line,) in plan]


@pytest.mark.parametrize("layout", ["database", "earlier"])
def test_a_search_reads_one_index_alone(
    request: pytest.FixtureRequest, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given partitions, and one table, I expect a search to read one index of memories and no row of a table."""
    url = request.getfixturevalue(layout)
    with psycopg.connect(url) as connection:
        rows = [(f"u{number % 40}", text) for number, text in enumerate(TEXTS)]
        vector = WordEmbedder().embed("tea")
        insert_as_then(
            connection,
            [memory_row(str(uuid.uuid4()), vector, {"data": text, "user_id": user}) for user, text in rows],
        )
    select(url, "VACUUM ANALYZE memories")
    with open_pool(url, 2) as pool:
        memories = site_on(pool).memories
        plan = explained(pool, monkeypatch, lambda: memories.search("u7", SearchData(query="word7", min_score=0)))

    scans = [line for line in plan if " on memories" in line and "never executed" not in line]
    assert len(scans) == 1, plan
    assert "Index Only Scan" in scans[0]
    assert "Heap Fetches: 0" in "".join(plan)


def test_the_first_search_and_insertion_of_a_connection_prepare_their_statements(database: str) -> None:
    """Given a new connection, I expect its first insertion and search to be planned once, and not anew until the sixth:
    PostgreSQL plans them for all partitions."""
    with open_pool(database, 1) as pool:
        vector = WordEmbedder().embed("tea")
        row = memory_row(str(uuid.uuid4()), vector, {"data": "I like tea", "user_id": "u1"})
        MemoryStore(pool).insert_rows([row], history=True)
        found = site_on(pool).memories.search("u1", SearchData(query="tea", min_score=0))
        with pool.connection() as connection:
            prepared = connection.execute("SELECT statement FROM pg_prepared_statements").fetchall()

    assert [each.content for each in found] == ["I like tea"]
    for part in ("INSERT INTO memories", "AS conversation", "number = ANY"):
        assert any(part in statement for (statement,) in prepared), part


# Put in the place of one table


def test_a_database_of_an_earlier_release_works_as_it_is(site: Site, earlier: str) -> None:
    """Given one table, I expect messages, facts and deletions as in partitions, and the memories of before found."""
    oslo, lisbon = site.say("I live in Oslo"), site.say("I moved to Lisbon", NOON + 1)
    site.find("The user lives in Lisbon.", [lisbon], replaces=[site.find("The user lives in Oslo.", [oslo])])

    assert read(site.pool) == len(TEXTS) + 4
    assert site.say("I live in Oslo") == oslo
    site.delete(lisbon)
    assert site.facts() == {"The user lives in Oslo."}
    assert select(earlier, "SELECT DISTINCT user_hash FROM memories") == [(0,)]


@pytest.mark.parametrize("partitions", [0, 16])
def test_a_converted_database_is_like_a_new_one(earlier: str, create_database: Any, partitions: int) -> None:
    """Given a conversion, I expect the memories as they were, and the schema of a new database."""
    before = whole(earlier)
    url = create_database()
    with psycopg.connect(url) as connection:
        migrate(connection, DIMENSIONS, partitions=partitions)

    assert convert(earlier, partitions=partitions) == len(TEXTS)

    assert whole(earlier) == before
    assert outline(earlier) == outline(url)
    assert {name for name, columns in keys(earlier).items() if "user_hash" not in columns} == set()


def test_numbers_go_on(site: Site, earlier: str) -> None:
    """Given a conversion after the newest memory was deleted, I expect a number that was never given before."""
    gone = site.say("deleted")
    number = site.number(gone)
    site.delete(gone)

    convert(earlier)

    assert site.number(site.say("one more")) == number + 1


def test_what_is_done_meanwhile_is_in_the_result(site: Site, earlier: str) -> None:
    """Given messages, a correction, a deletion and facts during the run, I expect all of them in the new table."""
    oslo = site.say("I live in Oslo")
    fact = site.find("The user lives in Oslo.", [oslo])
    first, last = contents(earlier)[0], TEXTS[-1]

    def work(when: str) -> None:
        new = site.say(f"I moved to Lisbon {when}", NOON + 1)
        site.find(f"The user lives in Lisbon {when}.", [new], replaces=[fact] if when == "early" else [])
        for content in (first, last) if when == "early" else (TEXTS[5], TEXTS[-5]):
            [(number,)] = site.select("SELECT id::text FROM memories WHERE content = %s", content)
            site.delete(number)

    def keep_up() -> None:
        work("early")
        with site.pool.connection() as connection:
            statement = "UPDATE memories SET content = 'corrected' WHERE content = ANY(%s)"
            connection.execute(statement, ([TEXTS[1], TEXTS[-2]],))

    before = set(contents(earlier))
    convert(earlier, Watcher(at_progress=keep_up, at_indexing=lambda: work("late")))

    gone = {first, last, TEXTS[5], TEXTS[-5], TEXTS[1], TEXTS[-2]}
    new = {
        f"{text} {when}{end}"
        for when in ("early", "late")
        for text, end in (("I moved to Lisbon", ""), ("The user lives in Lisbon", "."))
    }
    assert set(contents(earlier)) == before - gone | new | {"corrected"}
    assert contents(earlier).count("corrected") == 2
    assert site.kinds()["The user lives in Oslo."] == "superseded"
    assert read(site.pool) == len(contents(earlier))


def test_nothing_is_lost_of_many_writers(site: Site, earlier: str) -> None:
    """Given writers, deleters and a user who is forgotten, all the time, I expect of each what was answered."""
    ended, said, deleted, found = threading.Event(), set[str](), set[str](), list[int]()

    def write(writer: int) -> None:
        turn = 0
        while not ended.is_set():
            content = f"turn{turn} of {writer}"
            memory_id = site.say(content, NOON + turn, message_id=f"{writer}-{turn}")
            said.add(content)
            if turn % 3 == 0:
                site.delete(memory_id)
                deleted.add(content)
            turn += 1

    def forget() -> None:
        while not ended.is_set():
            site.memories.index(
                MemoryUpdateMessage(user_id="gone", content=str(uuid.uuid4()), source="user", timestamp=NOON), NOON
            )
            Forgetting(site.pool).forget("gone", NOON + 1)

    def search() -> None:
        while not ended.is_set():
            found.append(read(site.pool))

    with ThreadPoolExecutor(4) as threads:
        working = [threads.submit(write, 0), threads.submit(write, 1), threads.submit(forget), threads.submit(search)]
        try:
            convert(earlier)
            size = len(said)
            wait_until(lambda: len(said) > size + 4, description="writers to go on")
        finally:
            ended.set()
        for each in working:
            each.result()

    assert set(contents(earlier)) == set(TEXTS) | (said - deleted)
    assert len(contents(earlier)) == len(set(contents(earlier)))
    assert min(found) >= len(TEXTS)
    assert select(earlier, "SELECT count(*) FROM users WHERE user_id = 'gone'") == [(0,)]


def test_a_long_transaction_delays_the_copy_and_nothing_else(earlier: str) -> None:
    """Given a transaction that has changed one memory, I expect the copy to wait, and the memories that it would copy
    with that one free to be changed meanwhile."""
    with psycopg.connect(earlier) as writer:

        def begin() -> None:
            writer.execute("UPDATE memories SET content = 'late' WHERE content = %s", (TEXTS[-1],))

        def pause() -> None:
            select(earlier, "UPDATE memories SET content = 'soon' WHERE content = %s", TEXTS[-2])
            writer.commit()

        convert(earlier, Watcher(at_progress=begin), pause=pause)

    assert contents(earlier) == [*TEXTS[:-2], "soon", "late"]


def test_a_run_that_was_ended_is_resumed(site: Site, earlier: str) -> None:
    """Given a run that ended after a batch, I expect messages stored after it, and the next run to copy the rest."""

    def die() -> None:
        raise Killed

    with pytest.raises(Killed):
        convert(earlier, Watcher(at_progress=die))
    site.say("said between")
    resumed = Watcher()

    convert(earlier, resumed)

    assert resumed.reports[0][0] == 2 * BATCH_ROWS + 1
    assert sorted(contents(earlier)) == sorted([*TEXTS, "said between"])


def test_a_run_that_was_ended_amid_the_indexes_is_resumed(earlier: str) -> None:
    """Given an index that was not finished, which PostgreSQL leaves invalid, I expect it made again."""

    def die() -> None:
        select(earlier, "CREATE INDEX next_memories_03_of_user ON next_memories_03 (number)")
        select(
            earlier, "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'next_memories_03_of_user'::regclass"
        )
        raise Killed

    with pytest.raises(Killed):
        convert(earlier, Watcher(at_indexing=die))

    convert(earlier)

    assert select(earlier, "SELECT count(*) FROM pg_index WHERE NOT indisvalid") == [(0,)]
    [(definition,)] = select(earlier, "SELECT indexdef FROM pg_indexes WHERE indexname = 'memories_03_of_user'")
    assert "INCLUDE (head, terms, vector, user_hash)" in definition


def test_a_run_with_another_number_begins_anew(earlier: str) -> None:
    """Given a run for 16 that ended, and one for 8, I expect eight partitions with all memories."""

    def die() -> None:
        raise Killed

    with pytest.raises(Killed):
        convert(earlier, Watcher(at_progress=die))

    convert(earlier, partitions=EIGHT)

    with psycopg.connect(earlier) as connection:
        assert len(partitions_of(connection)) == EIGHT
    assert sorted(contents(earlier)) == sorted(TEXTS)


def test_partitions_are_changed_again(earlier: str) -> None:
    """Given 16 partitions, I expect them to become 8, then one table, and nothing done where it is so already."""
    convert(earlier)
    before = whole(earlier)

    assert [convert(earlier, partitions=number) for number in (EIGHT, EIGHT, 0)] == [len(TEXTS), None, len(TEXTS)]
    assert whole(earlier) == before


def test_the_switch_waits_for_what_reads_the_table(earlier: str) -> None:
    """Given a reader in a transaction, I expect the switch tried again until it ends, and told once."""
    watcher = Watcher()
    with psycopg.connect(earlier) as reader:
        reader.execute("SELECT count(*) FROM memories")
        attempts: list[int] = []

        def pause() -> None:
            attempts.append(1)
            if len(attempts) == 2:
                reader.commit()

        convert(earlier, watcher, pause=pause)

    assert (watcher.waits, len(attempts)) == (1, 2)


def test_a_role_that_does_not_own_the_table_is_told_which_does(earlier: str) -> None:
    """Given the URL of another role, I expect one line that names the owner, and nothing begun."""
    select(earlier, "DROP ROLE IF EXISTS guest")
    select(earlier, "CREATE ROLE guest LOGIN")
    select(earlier, "GRANT ALL ON SCHEMA public TO guest")
    select(earlier, "GRANT ALL ON ALL TABLES IN SCHEMA public TO guest")

    with pytest.raises(ReplacementRefused, match="belongs to the role postgres"):
        convert(earlier.replace("//postgres@", "//guest@"))

    assert select(earlier, "SELECT to_regclass('memories_next')") == [(None,)]
    select(earlier, "DROP OWNED BY guest")
    select(earlier, "DROP ROLE guest")


@pytest.mark.parametrize("mode", ["SHARE UPDATE EXCLUSIVE", "ROW EXCLUSIVE"], ids=["upkeep", "import"])
def test_a_run_begins_after_what_uses_the_table(earlier: str, mode: str) -> None:
    """Given an index that is rebuilt, or a long transaction that writes, I expect a run to wait for it and say so."""
    watcher = Watcher()
    with psycopg.connect(earlier) as other:
        other.execute(f"LOCK TABLE memories IN {mode} MODE")

        assert convert(earlier, watcher, pause=other.rollback) == len(TEXTS)

    assert watcher.waits == 1


def test_searches_go_on_while_an_ended_run_waits_to_be_removed(earlier: str) -> None:
    """Given a backup, and a run that was ended, I expect its removal to wait, say so once, and let searches pass."""

    def die() -> None:
        raise Killed

    with pytest.raises(Killed):
        convert(earlier, Watcher(at_progress=die))
    watcher, found = Watcher(), list[int]()
    with psycopg.connect(earlier) as backup:
        backup.execute("SELECT count(*) FROM memories")

        def pause() -> None:
            found.append(len(contents(earlier)))
            if len(found) == 2:
                backup.rollback()

        abandon(Settings(database_url=SecretStr(earlier)), watcher.waiting, pause)

    assert (watcher.waits, found) == (1, [len(TEXTS)] * 2)
    assert select(earlier, "SELECT to_regclass('memories_next')") == [(None,)]


def test_an_ended_run_is_kept_by_a_command_that_has_nothing_to_do(earlier: str) -> None:
    """Given a run that was ended, and `ltm reembed` with the embedder of the database, I expect the run resumed."""

    def die() -> None:
        raise Killed

    with pytest.raises(Killed):
        convert(earlier, Watcher(at_progress=die))
    words = EmbedderIdentity("words", "w1", DIMENSIONS, "")
    start(earlier, WordEmbedder(), words)
    with psycopg.connect(earlier, autocommit=True) as connection:
        assert run_alone(connection, WordEmbedder(), Embed(WordEmbedder()), words, OtherWatcher()) is None
    resumed = Watcher()

    convert(earlier, resumed)

    assert resumed.reports[0][0] == 2 * BATCH_ROWS


def test_a_writer_amid_the_switch_is_not_ended(earlier: str) -> None:
    """Given a writer that has locked its user, and the switch that waits for it, I expect the writer to go on with what
    takes a stronger lock, instead of a deadlock that ends it."""
    with ThreadPoolExecutor(1) as thread, psycopg.connect(earlier) as writer:

        def begin() -> None:
            writer.execute("SELECT FROM users WHERE user_id = 'u1' FOR UPDATE")

        switch = thread.submit(convert, earlier, Watcher(at_indexing=begin))
        wait_until(
            lambda: select(
                earlier,
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
                " AND query LIKE 'LOCK TABLE%%'",
            ),
            description="the switch to wait",
        )
        writer.execute("INSERT INTO users (user_id, agent_id) VALUES ('u2', '')")
        writer.commit()

        assert switch.result() == len(TEXTS)


def test_workers_of_an_earlier_release_are_not_taken_their_table(earlier: str) -> None:
    """Given a connection of such a worker, I expect the switch refused in words, and made once it is gone."""
    with (
        psycopg.connect(earlier, application_name=EARLIER_APPLICATION_NAME),
        pytest.raises(PartitioningRefused, match="earlier release"),
    ):
        convert(earlier)
    fill(earlier, WordEmbedder(), ["said between"])

    assert convert(earlier) == len(TEXTS) + 1


def test_a_new_database_that_an_earlier_release_uses_is_left_to_it(empty_database: str) -> None:
    """Given a worker of an earlier release on an empty database, I expect one table, which that knows."""
    with psycopg.connect(empty_database) as connection:
        migrate(connection, DIMENSIONS, read_migrations()[:10])
    with (
        psycopg.connect(empty_database, application_name=EARLIER_APPLICATION_NAME),
        psycopg.connect(empty_database) as connection,
    ):
        migrate(connection, DIMENSIONS)
        assert partitions_of(connection) == []


def test_a_switch_that_would_lose_a_memory_is_refused(earlier: str) -> None:
    """Given a memory that is missing in the new table, I expect the switch refused, and the old table kept."""
    with psycopg.connect(earlier, autocommit=True) as connection:
        second = Partitioning(connection, 16)
        second.prepare()

        with pytest.raises(PartitioningRefused, match=f"0 of {len(TEXTS)}"):
            second.switch()

    assert sorted(contents(earlier)) == sorted(TEXTS)


def test_nothing_is_begun_without_consent_or_beside_a_change_of_the_embedder(earlier: str) -> None:
    """Given an operator who declines, I expect no table left."""
    with pytest.raises(PartitioningRefused, match="not begun"):
        convert(earlier, Watcher(begins=False))

    assert select(earlier, "SELECT to_regclass('memories_next')") == [(None,)]


@pytest.mark.parametrize("partitions", [None, 16])
def test_vectors_are_replaced_in_either_layout(earlier: str, partitions: int | None) -> None:
    """Given one table of an earlier release, or partitions, I expect `ltm reembed` to leave all else as it was."""
    if partitions:
        convert(earlier, partitions=partitions)
    before, rows = outline(earlier), [row[:12] for row in whole(earlier)]

    reembed(earlier, Embed(OtherWords()), EmbedderIdentity("others", "o1", DIMENSIONS, ""))

    assert outline(earlier) == before
    assert [row[:12] for row in whole(earlier)] == rows


def test_a_backup_of_one_table_is_restored_into_partitions(
    site: Site, earlier: str, create_database: Callable[[], str], tmp_path: Path
) -> None:
    """Given a backup of a database that was not converted, I expect its memories and facts in partitions."""
    oslo, lisbon = site.say("I live in Oslo"), site.say("I moved to Lisbon", NOON + 1)
    site.find("The user lives in Lisbon.", [lisbon], replaces=[site.find("The user lives in Oslo.", [oslo])])
    new = create_database()

    back_up(Settings(database_url=SecretStr(earlier)), tmp_path / "backup", lambda *_: None, database_only=True)
    Restore(tmp_path / "backup", database_only=True).run(Settings(database_url=SecretStr(new)), lambda *_: None)

    assert whole(new) == whole(earlier)
    with open_pool(new, 2) as pool:
        there = site_on(pool)
        assert read(pool) == len(TEXTS) + 4
        there.delete(lisbon)
        assert there.facts() == {"The user lives in Oslo."}
    with psycopg.connect(new) as connection:
        assert len(partitions_of(connection)) == 16


def test_a_backup_of_a_run_that_was_ended_after_its_switch_can_be_restored(
    earlier: str, create_database: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a run that ended before its foreign keys were checked, I expect a backup that is restored, and the next
    run to check them."""

    def die(_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Partitioning, "validate", die)
        with pytest.raises(Killed):
            convert(earlier)
    new = create_database()

    back_up(Settings(database_url=SecretStr(earlier)), tmp_path / "backup", lambda *_: None, database_only=True)
    Restore(tmp_path / "backup", database_only=True).run(Settings(database_url=SecretStr(new)), lambda *_: None)

    assert whole(new) == whole(earlier)
    assert convert(earlier) is None
    assert outline(earlier) == outline(new)


def test_the_command_converts_a_table_and_says_so(empty_database: str, tmp_path: Path) -> None:
    """Given a database with one table, I expect `ltm partition` to say how many memories are in four partitions, and
    that they are there already when it is run again; and that nothing is left where nothing was begun."""
    with psycopg.connect(empty_database) as connection:
        migrate(connection, DIMENSIONS, partitions=0)

    def command(*options: str) -> tuple[int, str]:
        done = run_ltm_process("partition", *options, "--data-dir", str(tmp_path), DATABASE_URL=empty_database)
        return done.returncode, done.stdout + done.stderr

    first, again, nothing = command("--partitions", "4"), command("--partitions", "4"), command("--abandon")

    assert (first[0], first[1].splitlines()[-1]) == (0, "0 memories are in 4 partitions now.")
    assert again == (0, "The memories are in 4 partitions already.\n")
    assert nothing == (0, "Nothing is left of it.\n")
