"""`ltm reembed` on a real PostgreSQL: resumed after a kill, with other dimensions, and never beside the workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from keepsake_client.errors import Unavailable
from keepsake_client.protocol import SearchData
from psycopg_pool import ConnectionPool

from services.long_term_memory.embedder_check import check_embedder
from services.long_term_memory.embeddings.calibration import calibrate
from services.long_term_memory.embeddings.identity import EmbedderIdentity
from services.long_term_memory.mem0_bridge import Mem0Memory
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.postgres.embedder_record import REEMBEDDING_LOCK, read_record
from services.long_term_memory.postgres.history import PostgresHistory
from services.long_term_memory.postgres.pool import open_pool
from services.long_term_memory.postgres.schema import migrate
from services.long_term_memory.postgres.scope import Owner
from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.reembedding import BATCH_ROWS, Progress, Reembedding
from services.runtime.errors import EmbedderChanged, ReembeddingRefused, ReembeddingUnderWay
from tests.integration.conftest import DIMENSIONS, WordEmbedder
from tests.integration.test_embedder_change import OtherWords, fill, start
from tests.integration.test_migrations import schema

OLD = EmbedderIdentity("words", "w1", DIMENSIONS, "")
NEW = EmbedderIdentity("others", "o1", DIMENSIONS, "")
#: More than two batches, of texts that share no word.
TEXTS = [f"word{number} said{number}" for number in range(2 * BATCH_ROWS + 10)]


class Killed(BaseException):
    """A kill at a certain batch."""


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


def run(url: str, embed: Embed, identity: EmbedderIdentity, report: Callable[[Progress], None] = lambda _: None) -> int:
    with psycopg.connect(url, autocommit=True) as connection:
        migrate(connection, DIMENSIONS)
        return Reembedding(connection, embed, identity, report).run()


def best(url: str, embedder: WordEmbedder, query: str) -> tuple[str, float]:
    """The best memory for a query, and the cosine that its meaning was ranked by."""
    with open_pool(url, 2) as pool:
        store = MemoryStore(pool)
        service = MemoryService(Mem0Memory(embedder, store, PostgresHistory(pool), None), store, calibrate(embedder)[0])
        (memory,) = service.search("u1", SearchData(query=query, limit=1, min_score=0))
        cosines: Any = store.columns.read(Owner("u1"), embedder.embed(memory.content)).cosine
    return memory.content, float(cosines.max())


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
    reports: list[Progress] = []

    assert run(filled, Embed(OtherWords()), NEW, reports.append) == len(TEXTS)

    assert start(filled, OtherWords(), NEW) == NEW
    content, cosine = best(filled, OtherWords(), "word77")
    assert (content, cosine) == ("word77 said77", pytest.approx(1, abs=1e-3))  # type: ignore[comparison-overlap]
    assert [progress.done for progress in reports] == [0, BATCH_ROWS, 2 * BATCH_ROWS, len(TEXTS)]
    assert all(progress.total == len(TEXTS) for progress in reports)
    with pytest.raises(EmbedderChanged):
        start(filled, WordEmbedder(), OLD)


@pytest.mark.parametrize("error", [Killed(), Unavailable("the embedder does not answer")])
def test_a_run_that_was_ended_is_resumed(filled: str, error: BaseException) -> None:
    """Given a run that ended after a batch, I expect that batch not embedded again, and the same result."""
    embed = Embed(OtherWords())
    embed.fails_at, embed.error = 1, error
    with pytest.raises(type(error)):
        run(filled, embed, NEW)
    first = list(embed.texts)
    embed.fails_at, embed.texts = None, []

    run(filled, embed, NEW)

    assert len(first) == BATCH_ROWS
    assert sorted(first + embed.texts) == sorted(TEXTS)
    assert start(filled, OtherWords(), NEW) == NEW


def test_until_its_end_the_old_embedder_may_be_set_back(filled: str) -> None:
    """Given a run that was given up, I expect the old embedder to start as before, and the next run to begin anew."""
    before = schema(filled)
    embed = Embed(OtherWords())
    embed.fails_at = 1
    with pytest.raises(Killed):
        run(filled, embed, NEW)

    assert start(filled, WordEmbedder(), OLD) == OLD
    assert schema(filled) == before
    assert best(filled, WordEmbedder(), "word77")[0] == "word77 said77"
    embed = Embed(OtherWords())
    run(filled, embed, NEW)
    assert sorted(embed.texts) == sorted(TEXTS)


def test_a_third_embedder_does_not_resume_the_run_of_the_second(filled: str) -> None:
    """Given a run that was ended, and another embedder since, I expect every memory embedded by the last."""
    embed = Embed(OtherWords())
    embed.fails_at = 1
    with pytest.raises(Killed):
        run(filled, embed, NEW)

    last = Embed(WordEmbedder())
    run(filled, last, EmbedderIdentity("third", "t1", DIMENSIONS, ""))

    assert sorted(last.texts) == sorted(TEXTS)


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


def test_a_run_beside_workers_is_refused(filled: str) -> None:
    """Given a worker's connection, I expect one line that says what to stop, and nothing changed."""
    before = schema(filled)
    with open_pool(filled, 1), pytest.raises(ReembeddingRefused, match="stop long-term-memory-worker"):
        run(filled, Embed(OtherWords()), NEW)

    assert schema(filled) == before


def test_a_run_that_is_joined_by_a_worker_changes_nothing(filled: str) -> None:
    """Given a worker of an earlier release, which heeds no lock, that connects amid a run, I expect no switch."""
    embed = Embed(OtherWords())
    pools: list[ConnectionPool] = []

    def join(progress: Progress) -> None:
        if not pools:
            pools.append(open_pool(filled, 1))

    try:
        with pytest.raises(ReembeddingRefused, match="stop long-term-memory-worker"):
            run(filled, embed, NEW, join)
    finally:
        for pool in pools:
            pool.close()

    with psycopg.connect(filled) as connection:
        assert read_record(connection, "vector") == OLD


def test_workers_do_not_start_beside_a_run(filled: str) -> None:
    """Given a run under way, I expect a starting worker, old or new, and a second run to be refused."""
    with psycopg.connect(filled, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (REEMBEDDING_LOCK,))

        for embedder, identity in ((WordEmbedder(), OLD), (OtherWords(), NEW)):
            with pytest.raises(ReembeddingUnderWay):
                start(filled, embedder, identity)
        with pytest.raises(ReembeddingRefused, match="another `ltm reembed` runs"):
            run(filled, Embed(OtherWords()), NEW)


def test_an_empty_database_is_re_embedded_at_once(database: str, pool: ConnectionPool) -> None:
    """Given no memories and an embedder of another size, I expect the table to take its vectors."""
    pool.close()
    identity = EmbedderIdentity("others", "o1", 8, "")

    assert run(database, Embed(WordEmbedder(8)), identity) == 0

    with psycopg.connect(database) as connection:
        migrate(connection, 8)
        check_embedder(connection, WordEmbedder(8), identity)
        assert read_record(connection, "vector") == identity
