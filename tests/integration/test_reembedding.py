"""`ltm reembed` on a real PostgreSQL, beside workers: resumed after a kill, complete, and switched at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from keepsake_client.errors import Unavailable
from keepsake_client.protocol import MemoryUpdateMessage, SearchData
from psycopg_pool import ConnectionPool

from services.long_term_memory.embedder_check import EmbedderGuard, check_embedder
from services.long_term_memory.embeddings.calibration import calibrate
from services.long_term_memory.embeddings.identity import EmbedderIdentity
from services.long_term_memory.mem0_bridge import Mem0Memory
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.postgres.embedder_record import REEMBEDDING_LOCK, read_record, write_record
from services.long_term_memory.postgres.history import PostgresHistory
from services.long_term_memory.postgres.pool import open_pool
from services.long_term_memory.postgres.schema import migrate
from services.long_term_memory.postgres.scope import Owner
from services.long_term_memory.postgres.second_table import BATCH_ROWS
from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.reembedding import Costs, Progress, Reembedding, run_alone
from services.runtime.errors import EmbedderChanged, ReembeddingRefused, ReembeddingUnderWay, ReplacementRefused
from tests.integration.conftest import DIMENSIONS, WordEmbedder
from tests.integration.test_embedder_change import OtherWords, fill, start
from tests.integration.test_life_of_facts import NOON, Site
from tests.integration.test_migrations import schema
from tests.support import wait_until

OLD = EmbedderIdentity("words", "w1", DIMENSIONS, "")
NEW = EmbedderIdentity("others", "o1", DIMENSIONS, "")
#: More than two batches, of texts that share no word.
TEXTS = [f"word{number} said{number}" for number in range(2 * BATCH_ROWS + 10)]


class Killed(BaseException):
    """A kill at a certain moment."""


class Embed:
    """The new embedder, by way of which a test sees and ends a run."""

    def __init__(self, embedder: WordEmbedder) -> None:
        self.embedder = embedder
        self.texts: list[str] = []
        self.fails_at: int | None = None
        self.error: BaseException = Killed()

    def __call__(self, texts: list[str]) -> list[list[float]]:
        if self.fails_at is not None and len(self.texts) >= self.fails_at:
            raise self.error
        self.texts += texts
        return [self.embedder.embed(text) for text in texts]


@dataclass
class Watcher:
    """An operator that agrees, notes what it is told, and does something of the test's at a moment."""

    at_progress: Callable[[], object] = lambda: None
    at_indexing: Callable[[], object] = lambda: None
    at_switch: Callable[[], object] = lambda: None
    begins: bool = True
    switched: bool = True
    costs: list[Costs] = field(default_factory=list)
    reports: list[Progress] = field(default_factory=list)
    waits: int = 0

    def accepts(self, costs: Costs) -> bool:
        self.costs.append(costs)
        return self.begins

    def progressed(self, progress: Progress) -> None:
        self.reports.append(progress)
        if len(self.reports) == 1:
            self.at_progress()

    def indexing(self) -> None:
        self.at_indexing()

    def switches(self) -> bool:
        self.at_switch()
        return self.switched

    def waiting(self) -> None:
        self.waits += 1


def run(
    url: str,
    embed: Embed,
    identity: EmbedderIdentity = NEW,
    operator: Watcher | None = None,
    pause: Callable[[], None] = lambda: None,
) -> int:
    with psycopg.connect(url, autocommit=True) as connection:
        return Reembedding(connection, embed, identity, operator or Watcher(), pause=pause).run()


def killed(url: str, *, after: int = 1) -> Embed:
    """A run that was killed after a batch, or more; its embedder."""
    embed = Embed(OtherWords())
    embed.fails_at = after
    with pytest.raises(Killed):
        run(url, embed)
    return embed


def service_on(pool: ConnectionPool, embedder: WordEmbedder) -> MemoryService:
    store = MemoryStore(pool)
    return MemoryService(Mem0Memory(embedder, store, PostgresHistory(pool), None), store, calibrate(embedder)[0])


def best(url: str, embedder: WordEmbedder, query: str) -> tuple[str, float]:
    """The best memory for a query, and the cosine that its meaning was ranked by."""
    with open_pool(url, 2) as pool:
        (memory,) = service_on(pool, embedder).search("u1", SearchData(query=query, limit=1, min_score=0))
        cosines: Any = MemoryStore(pool).columns.read(Owner("u1"), embedder.embed(memory.content)).cosine
    return memory.content, float(cosines.max())


def execute(url: str, *statements: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            found = connection.execute(statement)
        return list(found.fetchall()) if found.description else []


def vectors(url: str) -> dict[str, str]:
    """Of each content the vector, as text."""
    return dict(execute(url, "SELECT content, vector::text FROM memories"))


def expected(url: str, embedder: WordEmbedder, *contents: str) -> dict[str, str]:
    """The vectors that an embedder gives, as PostgreSQL shows them."""
    with psycopg.connect(url) as connection:
        shown = [
            connection.execute("SELECT %s::float8[]::halfvec::text", (embedder.embed(content),)).fetchone()
            for content in contents
        ]
    return {content: row[0] for content, row in zip(contents, shown, strict=True) if row}


def tables(url: str) -> set[str]:
    return {name for (name,) in execute(url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}


def details(url: str) -> list[tuple[Any, ...]]:
    """What `schema` leaves out: constraints, options, triggers and functions."""
    return execute(
        url,
        "SELECT conname, pg_get_constraintdef(oid), convalidated FROM pg_constraint"
        " WHERE conrelid = 'memories'::regclass AND contype <> 'n'"
        " UNION ALL SELECT 'option', unnest(reloptions), true FROM pg_class WHERE oid = 'memories'::regclass"
        " UNION ALL SELECT tgname, tgname, true FROM pg_trigger"
        " WHERE tgrelid = 'memories'::regclass AND NOT tgisinternal"
        " UNION ALL SELECT 'identity', attname::text || attidentity::text, true FROM pg_attribute"
        " WHERE attrelid = 'memories'::regclass AND attidentity <> '' ORDER BY 1, 2",
    )


@pytest.fixture
def filled(database: str) -> str:
    """The URL of a database that the old embedder has filled."""
    start(database, WordEmbedder(), OLD)
    fill(database, WordEmbedder(), TEXTS)
    return database


def test_every_memory_is_embedded_again_and_found(filled: str) -> None:
    """Given a changed embedder, I expect its vectors, its name in the record, and a start that is not refused."""
    with pytest.raises(EmbedderChanged):
        start(filled, OtherWords(), NEW)
    watcher = Watcher()

    assert run(filled, Embed(OtherWords()), operator=watcher) == len(TEXTS)

    assert start(filled, OtherWords(), NEW) == NEW
    content, cosine = best(filled, OtherWords(), "word77")
    assert (content, cosine) == ("word77 said77", pytest.approx(1, abs=1e-3))  # type: ignore[comparison-overlap]
    assert [progress.done for progress in watcher.reports] == [BATCH_ROWS, 2 * BATCH_ROWS, len(TEXTS)]
    assert all(progress.total == len(TEXTS) for progress in watcher.reports)
    with pytest.raises(EmbedderChanged):
        start(filled, WordEmbedder(), OLD)


def test_facts_are_embedded_again_and_keep_what_belongs_to_them(filled: str) -> None:
    """Given a fact and a superseded one, I expect new vectors of both, and each to go with its message after it."""
    with open_pool(filled, 2) as pool:
        site = Site(pool, Mem0Memory(WordEmbedder(), MemoryStore(pool), PostgresHistory(pool), None))
        oslo, lisbon = site.say("I live in Oslo"), site.say("I moved to Lisbon", NOON + 1)
        site.find("The user lives in Lisbon.", [lisbon], replaces=[site.find("The user lives in Oslo.", [oslo])])
        vectors = "SELECT vector::text FROM memories WHERE content LIKE 'The user%%' ORDER BY number"
        before = site.select(vectors)
        waiting = site.waiting()

    assert run(filled, Embed(OtherWords())) == len(TEXTS) + 4

    with open_pool(filled, 2) as pool:
        site = Site(pool, Mem0Memory(OtherWords(), MemoryStore(pool), PostgresHistory(pool), None))
        assert not set(before) & set(site.select(vectors))
        assert site.waiting() == waiting
        site.delete(lisbon)
        assert site.facts() == {"The user lives in Oslo."}
        site.delete(oslo)
        assert site.facts() == set()


def test_the_switch_leaves_the_schema_of_a_migrated_database(filled: str, create_database: Callable[..., str]) -> None:
    """Given a run, I expect columns, indexes, constraints, options and rights as before, and numbers that go on."""
    execute(
        filled,
        "DROP ROLE IF EXISTS reporting, analyst",
        "CREATE ROLE reporting",
        "CREATE ROLE analyst",
        "GRANT SELECT ON memories TO reporting WITH GRANT OPTION",
        "GRANT USAGE ON SEQUENCE memories_number_seq TO reporting",
        "GRANT SELECT (id, said_at) ON memories TO analyst",
    )
    before, others = schema(filled), details(filled)
    execute(filled, "DELETE FROM memories WHERE number = (SELECT max(number) FROM memories)")
    (sequence,) = execute(filled, "SELECT last_value FROM memories_number_seq")

    run(filled, Embed(OtherWords()))

    assert (schema(filled), details(filled)) == (before, others)
    fill(filled, OtherWords(), ["one more"])
    assert execute(filled, "SELECT number FROM memories WHERE content = 'one more'") == [(sequence[0] + 1,)]
    rights = (
        "SELECT has_table_privilege('reporting', 'memories', 'SELECT WITH GRANT OPTION'),"
        " has_sequence_privilege('reporting', 'memories_number_seq', 'USAGE'),"
        " has_column_privilege('analyst', 'memories', 'said_at', 'SELECT'),"
        " has_column_privilege('analyst', 'memories', 'content', 'SELECT')"
    )
    assert execute(filled, rights) == [(True, True, True, False)]
    execute(filled, "DROP OWNED BY reporting, analyst", "DROP ROLE reporting, analyst")


@pytest.mark.parametrize("error", [Killed(), Unavailable("the embedder does not answer")])
def test_a_run_that_was_ended_is_resumed(filled: str, error: BaseException) -> None:
    """Given a run that ended after a batch, I expect that batch not embedded again, and the same result."""
    embed = Embed(OtherWords())
    embed.fails_at, embed.error = 1, error
    with pytest.raises(type(error)):
        run(filled, embed)
    first = list(embed.texts)
    embed.fails_at, embed.texts = None, []

    run(filled, embed)

    assert len(first) == BATCH_ROWS
    assert sorted(first + embed.texts) == sorted(TEXTS)
    assert start(filled, OtherWords(), NEW) == NEW


def test_a_run_that_was_killed_while_it_made_the_indexes_is_resumed(filled: str) -> None:
    """Given an index that was not finished, which PostgreSQL leaves invalid, I expect it made again."""
    before = schema(filled)

    def die() -> None:
        statement = "CREATE INDEX next_memories_00_of_user ON next_memories_00 (number)"
        invalid = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'next_memories_00_of_user'::regclass"
        execute(filled, statement, invalid)
        raise Killed

    with pytest.raises(Killed):
        run(filled, Embed(OtherWords()), operator=Watcher(at_indexing=die))
    again = Embed(OtherWords())

    run(filled, again)

    assert again.texts == []
    assert schema(filled) == before


def test_a_run_that_was_killed_in_the_switch_changes_nothing(filled: str) -> None:
    """Given a message that arrives just before the switch, and a kill within it, I expect all as it was, resumed."""

    class KilledInTheSwitch(Embed):
        def __call__(self, texts: list[str]) -> list[list[float]]:
            if "said within" in texts:
                raise Killed
            if "said before" in texts:  # taken over before the switch, which so finds the next one
                fill(filled, WordEmbedder(), ["said within"])
            return super().__call__(texts)

    watcher = Watcher(at_switch=lambda: fill(filled, WordEmbedder(), ["said before"]))
    with pytest.raises(Killed):
        run(filled, KilledInTheSwitch(OtherWords()), operator=watcher)

    assert start(filled, WordEmbedder(), OLD) == OLD
    assert best(filled, WordEmbedder(), "word77") == ("word77 said77", pytest.approx(1, abs=1e-3))  # type: ignore[comparison-overlap]
    assert run(filled, Embed(OtherWords())) == len(TEXTS) + 2
    assert start(filled, OtherWords(), NEW) == NEW
    assert best(filled, OtherWords(), "within")[0] == "said within"


def test_a_third_embedder_does_not_resume_the_run_of_the_second(filled: str) -> None:
    """Given a run that was ended, and another embedder since, I expect every memory embedded by the last."""
    killed(filled)

    last = Embed(WordEmbedder())
    run(filled, last, EmbedderIdentity("third", "t1", DIMENSIONS, ""))

    assert sorted(last.texts) == sorted(TEXTS)


def test_a_release_that_changes_the_table_meanwhile_begins_anew(filled: str) -> None:
    """Given a run that was ended, and a column that a migration has added since, I expect it kept with its values."""
    killed(filled)
    execute(filled, "ALTER TABLE memories ADD COLUMN later int DEFAULT 7")

    again = Embed(OtherWords())
    run(filled, again)

    assert sorted(again.texts) == sorted(TEXTS)
    assert execute(filled, "SELECT DISTINCT later FROM memories") == [(7,)]


@pytest.mark.parametrize("dimensions", [8, 1_536])
def test_other_dimensions_leave_the_schema_of_a_new_database(filled: str, empty_database: str, dimensions: int) -> None:
    """Given an embedder of another size, I expect the columns and indexes that a new database has for it."""
    identity = EmbedderIdentity("others", "o1", dimensions, "")
    run(filled, Embed(WordEmbedder(dimensions)), identity)
    with psycopg.connect(empty_database) as connection:
        migrate(connection, dimensions)

    assert start(filled, WordEmbedder(dimensions), identity) == identity
    steps = len(schema(filled)) - len([row for row in schema(filled) if len(row) == 2])
    assert schema(filled)[:steps] == schema(empty_database)[:steps]
    assert details(filled) == details(empty_database)


# Beside workers


def test_what_happens_meanwhile_is_in_the_result(filled: str) -> None:
    """Given messages, a corrected text, other metadata and a deletion amid a run, I expect just these."""

    def change() -> None:
        fill(filled, WordEmbedder(), ["said meanwhile"])
        execute(
            filled,
            "UPDATE memories SET content = 'corrected' WHERE content = 'word1 said1'",
            "UPDATE memories SET payload = '{\"a\": 1}' WHERE content = 'word2 said2'",
            "DELETE FROM memories WHERE content = 'word3 said3'",
            "DELETE FROM memories WHERE content = 'word130 said130'",  # not in the second table yet
        )

    embed = Embed(OtherWords())
    run(filled, embed, operator=Watcher(at_progress=change))

    gone = {"word1 said1", "word3 said3", "word130 said130"}
    left = [*(text for text in TEXTS if text not in gone), "said meanwhile", "corrected"]
    assert vectors(filled) == expected(filled, OtherWords(), *left)
    assert execute(filled, "SELECT payload ->> 'a' FROM memories WHERE content = 'word2 said2'") == [("1",)]
    assert embed.texts.count("word2 said2") == 1
    assert best(filled, OtherWords(), "corrected")[0] == "corrected"


def test_what_is_deleted_is_at_once_in_neither_table(filled: str) -> None:
    """Given a run that was killed and is perhaps never resumed, I expect no deleted or corrected text left."""
    killed(filled)

    execute(
        filled,
        "DELETE FROM memories WHERE content = 'word1 said1'",
        "UPDATE memories SET content = 'corrected' WHERE content = 'word2 said2'",
        "UPDATE memories SET payload = '{}' WHERE content = 'word3 said3'",
    )

    left = {content for (content,) in execute(filled, "SELECT content FROM memories_next")}
    assert len(left) == BATCH_ROWS - 2
    assert left & {"word1 said1", "word2 said2", "word3 said3"} == {"word3 said3"}


def said(content: str) -> MemoryUpdateMessage:
    return MemoryUpdateMessage(user_id="u1", content=content, source="user", timestamp=1.79e9)


@contextmanager
def worker(url: str, embedder: WordEmbedder, identity: EmbedderIdentity) -> Iterator[tuple[MemoryService, list[str]]]:
    """A worker's service, and why it ends, if it does."""
    reasons: list[str] = []
    guard = EmbedderGuard(lambda error: reasons.append(str(error)))
    with open_pool(url, 3, guard=guard) as pool:
        with pool.connection() as connection:
            check_embedder(connection, embedder, identity)
            guard.arm(identity)
        yield service_on(pool, embedder), reasons


def test_workers_search_and_store_until_the_switch_and_not_after_it(filled: str) -> None:
    """Given a worker with the old embedder, I expect it answered and stored to the end, and then nothing mixed up."""
    embed = Embed(OtherWords())
    with worker(filled, WordEmbedder(), OLD) as (service, reasons):

        def search() -> None:
            (found,) = service.search("u1", SearchData(query="word77", limit=1))
            assert found.content == "word77 said77"
            service.index_many([said(f"added {len(embed.texts)}")])

        run(filled, embed, operator=Watcher(at_progress=search, at_indexing=search, at_switch=search))

        with pytest.raises(Unavailable):
            service.search("u1", SearchData(query="word77", limit=1))
        with pytest.raises(Unavailable):
            service.index(said("too late"))
        wait_until(lambda: reasons, description="the worker to notice")
        assert reasons[0].startswith(
            "the embedder is words w1 (384 dimensions) and the stored memories were embedded by"
        )

    stored = vectors(filled)
    assert stored == expected(filled, OtherWords(), *stored)
    assert {text for text in stored if text.startswith("added")} == {"added 64", "added 139", "added 140"}
    assert len(stored) == len(TEXTS) + 3


def test_a_worker_that_connects_amid_the_switch_waits_and_sees_it(filled: str) -> None:
    """Given a connection that is made while the switch is not committed, I expect it to wait, then refused."""
    reasons: list[EmbedderChanged] = []
    guard = EmbedderGuard(reasons.append)
    guard.arm(OLD)

    def connect() -> None:
        with psycopg.connect(filled) as connection:
            guard(connection)

    with psycopg.connect(filled) as switching, ThreadPoolExecutor(1) as executor:
        switching.execute("LOCK TABLE embedders IN ACCESS EXCLUSIVE MODE")
        connecting = executor.submit(connect)
        waiting = "SELECT FROM pg_locks WHERE NOT granted AND relation = 'embedders'::regclass"
        wait_until(lambda: switching.execute(waiting).fetchall(), description="the connection to wait")
        assert reasons == []
        write_record(switching, "vector", NEW)
        switching.commit()

        with pytest.raises(EmbedderChanged):
            connecting.result(timeout=60)
    with pytest.raises(EmbedderChanged):
        connect()
    assert len(reasons) == 1  # told once, however often the pool tries to connect


def test_a_worker_with_the_embedder_of_the_database_goes_on(filled: str) -> None:
    """Given the record as it was, or none, I expect every new connection to be used."""
    guard = EmbedderGuard(lambda _: pytest.fail("it has not changed"))
    with psycopg.connect(filled) as connection:
        guard(connection)  # before it knows its embedder
        guard.arm(OLD)
        guard(connection)
        connection.execute("DELETE FROM embedders")
        guard(connection)


def test_workers_start_beside_a_run(filled: str) -> None:
    """Given a run under way, I expect a worker with the old embedder to start, and one with the new to be refused."""
    killed(filled)

    assert start(filled, WordEmbedder(), OLD) == OLD
    with pytest.raises(ReembeddingUnderWay, match="has begun on this database and has not switched"):
        start(filled, OtherWords(), NEW)


def test_the_switch_waits_for_what_reads_the_table(filled: str) -> None:
    """Given a backup under way, I expect the switch tried again, told once, and done after it."""
    with psycopg.connect(filled) as reader:
        reader.execute("SELECT count(*) FROM memories")
        watcher, pauses = Watcher(), []

        def pause() -> None:
            pauses.append(True)
            if len(pauses) == 2:
                reader.rollback()

        run(filled, Embed(OtherWords()), operator=watcher, pause=pause)

    assert (watcher.waits, len(pauses)) == (1, 2)
    assert start(filled, OtherWords(), NEW) == NEW


def test_a_view_on_the_table_is_told(filled: str) -> None:
    """Given a view of another program, which the switch would drop, I expect one line and all as it was."""
    execute(filled, "CREATE VIEW mine AS SELECT content FROM memories")

    with pytest.raises(ReplacementRefused, match=r"something of yours depends on the table memories .*view mine"):
        run(filled, Embed(OtherWords()))

    assert start(filled, WordEmbedder(), OLD) == OLD
    execute(filled, "DROP VIEW mine")
    again = Embed(OtherWords())
    run(filled, again)
    assert again.texts == []


@pytest.mark.parametrize(
    ("statement", "name", "undo"),
    [
        (
            "CREATE TRIGGER told BEFORE UPDATE ON memories FOR EACH ROW"
            " EXECUTE FUNCTION suppress_redundant_updates_trigger()",
            "the trigger told",
            "DROP TRIGGER told ON memories",
        ),
        (
            "CREATE POLICY hidden ON memories USING (source = 'ai')",
            "the policy hidden",
            "DROP POLICY hidden ON memories",
        ),
        ("CREATE PUBLICATION copied FOR TABLE memories", "the publication copied", "DROP PUBLICATION copied"),
        (
            "ALTER TABLE memories ENABLE ROW LEVEL SECURITY",
            "row level security",
            "ALTER TABLE memories DISABLE ROW LEVEL SECURITY",
        ),
    ],
)
def test_what_postgresql_would_drop_without_a_word_is_told_before_anything_is_done(
    filled: str, statement: str, name: str, undo: str
) -> None:
    """Given a trigger, a policy, a publication or row level security, I expect it named, and nothing embedded."""
    execute(filled, statement)
    embed = Embed(OtherWords())

    with pytest.raises(ReplacementRefused, match=name):
        run(filled, embed)

    execute(filled, undo)
    assert embed.texts == []
    assert tables(filled) & {"memories_next", "memories_changed"} == set()


def test_a_table_that_a_newer_release_has_changed_meanwhile_is_kept(filled: str) -> None:
    """Given a column that a migration adds during the run, I expect the switch refused, and the column kept."""

    def migrate_meanwhile() -> None:
        execute(filled, "ALTER TABLE memories ADD COLUMN mood text NOT NULL DEFAULT 'calm'")

    with pytest.raises(ReplacementRefused, match="newer release"):
        run(filled, Embed(OtherWords()), operator=Watcher(at_switch=migrate_meanwhile))
    again = Embed(OtherWords())
    run(filled, again)

    assert len(again.texts) == len(TEXTS)
    assert execute(filled, "SELECT DISTINCT mood FROM memories") == [("calm",)]


# What the operator decides, and what is refused


def test_a_run_that_is_not_agreed_to_leaves_nothing(filled: str) -> None:
    """Given an operator who declines the costs, I expect the database as it was."""
    before, others = schema(filled), details(filled)
    watcher = Watcher(begins=False)

    with pytest.raises(ReembeddingRefused, match="not begun: everything is as it was"):
        run(filled, Embed(OtherWords()), operator=watcher)

    assert (schema(filled), details(filled)) == (before, others)
    (costs,) = watcher.costs
    assert (costs.done, costs.total) == (0, len(TEXTS))
    assert costs.needed_bytes == costs.table_bytes > 0
    assert costs.seconds > 0


def test_a_switch_that_is_declined_is_made_by_the_next_run(filled: str) -> None:
    """Given an operator who is not ready, I expect the old embedder to go on, and the next run to embed nothing."""
    with pytest.raises(ReembeddingRefused, match="not switched"):
        run(filled, Embed(OtherWords()), operator=Watcher(switched=False))
    assert start(filled, WordEmbedder(), OLD) == OLD
    again = Embed(OtherWords())

    run(filled, again)

    assert again.texts == []
    assert start(filled, OtherWords(), NEW) == NEW


def test_a_second_run_at_once_is_refused(filled: str) -> None:
    """Given a run under way, I expect another one refused, and the first to end as if alone."""

    def second() -> None:
        with (
            psycopg.connect(filled, autocommit=True) as connection,
            pytest.raises(ReembeddingRefused, match="another `ltm reembed` runs"),
        ):
            run_alone(connection, OtherWords(), Embed(OtherWords()), NEW, Watcher())

    watcher = Watcher(at_progress=second, at_switch=second)
    with psycopg.connect(filled, autocommit=True) as connection:
        assert run_alone(connection, OtherWords(), Embed(OtherWords()), NEW, watcher) == len(TEXTS)
        free = connection.execute("SELECT pg_try_advisory_lock(%s)", (REEMBEDDING_LOCK,)).fetchone()

    assert free == (True,)
    assert start(filled, OtherWords(), NEW) == NEW


def test_a_run_with_the_embedder_of_the_database_removes_what_another_has_left(filled: str) -> None:
    """Given a run that was given up, and the old embedder set back, I expect nothing embedded, nothing left."""
    before, others = schema(filled), details(filled)
    killed(filled)
    embed = Embed(WordEmbedder())

    with psycopg.connect(filled, autocommit=True) as connection:
        assert run_alone(connection, WordEmbedder(), embed, OLD, Watcher()) is None

    assert embed.texts == []
    assert (schema(filled), details(filled)) == (before, others)
    assert tables(filled) & {"memories_next", "memories_changed"} == set()


def test_another_model_under_the_same_name_is_embedded_again(filled: str) -> None:
    """Given a provider that serves another model as before, I expect all vectors replaced."""
    with psycopg.connect(filled, autocommit=True) as connection:
        assert run_alone(connection, OtherWords(), Embed(OtherWords()), OLD, Watcher()) == len(TEXTS)

    assert start(filled, OtherWords(), OLD) == OLD


def test_an_empty_database_is_re_embedded_at_once(database: str) -> None:
    """Given no memories and an embedder of another size, I expect the table to take its vectors."""
    identity = EmbedderIdentity("others", "o1", 8, "")

    assert run(database, Embed(WordEmbedder(8)), identity) == 0

    with psycopg.connect(database) as connection:
        migrate(connection, 8)
        check_embedder(connection, WordEmbedder(8), identity)
        assert read_record(connection, "vector") == identity
