"""Re-embedding: replaces the vectors of all memories with those of the configured embedder, for `ltm reembed`.

The new vectors are written to a second column, in batches, so that a run that was killed is resumed; one transaction
then puts that column in the place of the first. The workers must not run meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import psycopg
from psycopg import Connection, sql
from psycopg.rows import TupleRow

from services.long_term_memory.embedder_check import identify
from services.long_term_memory.embeddings.identity import EmbedderIdentity
from services.long_term_memory.embeddings.providers import build_embedder
from services.long_term_memory.postgres.embedder_record import (
    REEMBEDDING_LOCK,
    drop_new_vectors,
    read_record,
    write_record,
)
from services.long_term_memory.postgres.pool import APPLICATION_NAME, check_connects, database_errors
from services.long_term_memory.postgres.preconditions import schema_errors
from services.long_term_memory.postgres.reader import SAMPLE
from services.long_term_memory.postgres.schema import migrate, table_dimensions
from services.long_term_memory.provider_start import starting_provider
from services.runtime.errors import ReembeddingRefused
from services.runtime.settings import Settings

BATCH_ROWS = 64
#: PostgreSQL lists a connection for a moment after its client, such as a worker that was just stopped, has closed it.
CLOSING_S = 3.0
#: An index row of PostgreSQL holds 2,704 bytes; larger vectors stay in the table.
MAX_INDEXED_DIMENSIONS = 480


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Args:
        done: memories that have a new vector.
        total: all memories.
        seconds_left: an estimate from the batches so far.
    """

    done: int
    total: int
    seconds_left: float


class Reembedding:
    """One run of `ltm reembed`.

    Args:
        connection: in autocommit mode, without a statement time-out.
        embed: gives the new vectors of texts.
        identity: the embedder's, to be recorded.
        report: called before the first batch that is stored, and after each.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        connection: Connection[TupleRow],
        embed: Callable[[list[str]], list[list[float]]],
        identity: EmbedderIdentity,
        report: Callable[[Progress], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._embed = embed
        self._identity = identity
        self._report = report
        self._clock = clock

    def run(self) -> int:
        """Replace all vectors; the number of memories.

        Raises:
            ReembeddingRefused: workers are connected to the database, or another run is under way.
            Unavailable: the embedder does not answer any more; what is done stays done.
        """
        self._lock()
        try:
            self._prepare()
            total = self._fill()
            self._check_alone()
            self._switch()
        finally:
            self._connection.execute("SELECT pg_advisory_unlock(%s)", (REEMBEDDING_LOCK,))
        self._connection.execute("VACUUM (ANALYZE) memories")  # searches read pages that are known to be all visible
        return total

    def _lock(self) -> None:
        row = self._connection.execute("SELECT pg_try_advisory_lock(%s)", (REEMBEDDING_LOCK,)).fetchone()
        if row != (True,):
            raise ReembeddingRefused("another `ltm reembed` runs on this database, or a worker is starting")
        self._check_alone()

    def _check_alone(self) -> None:
        until = time.monotonic() + CLOSING_S
        while others := self._other_connections():
            if time.monotonic() > until:
                raise ReembeddingRefused(
                    f"{others} connections of Keepsake are open on this database: stop long-term-memory-worker,"
                    " long-term-memory-writer and long-term-memory-indexer, and run it again"
                )
            time.sleep(0.05)

    def _other_connections(self) -> int:
        row = self._connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s",
            (APPLICATION_NAME,),
        ).fetchone()
        return int(row[0]) if row else 0

    def _prepare(self) -> None:
        """Make the second column, unless an earlier run with the same embedder has left it."""
        begun = read_record(self._connection, "new_vector")
        if begun and begun.same_vectors(self._identity):
            return
        with self._connection.transaction():
            drop_new_vectors(self._connection)
            self._connection.execute(
                sql.SQL("ALTER TABLE memories ADD COLUMN new_vector halfvec({})").format(
                    sql.Literal(self._identity.dimensions)
                )
            )
            write_record(self._connection, "new_vector", self._identity)

    def _fill(self) -> int:
        """Embed what has no new vector, in the order of its storing."""
        row = self._connection.execute("SELECT count(*), count(new_vector) FROM memories").fetchone()
        total, done = row or (0, 0)
        begun, begun_at, last = done, self._clock(), -1
        while batch := self._connection.execute(
            "SELECT number, content FROM memories WHERE new_vector IS NULL AND number > %s ORDER BY number LIMIT %s",
            (last, BATCH_ROWS),
        ).fetchall():
            vectors = self._embed([content for _, content in batch])
            if done == begun:
                self._report(Progress(done, total, (self._clock() - begun_at) / len(batch) * (total - done)))
            with self._connection.transaction(), self._connection.cursor() as cursor:
                cursor.executemany(
                    "UPDATE memories SET new_vector = %s::halfvec WHERE number = %s",
                    [
                        (np.asarray(vector, np.float32), number)
                        for vector, (number, _) in zip(vectors, batch, strict=True)
                    ],
                )
            done, last = done + len(batch), batch[-1][0]
            rate = (done - begun) / max(self._clock() - begun_at, 1e-9)
            self._report(Progress(done, total, (total - done) / rate))
        return int(total)

    def _switch(self) -> None:
        """Put the new column in the place of the old one, with its indexes and the record, in one transaction."""
        with self._connection.transaction():
            self._connection.execute("LOCK TABLE memories IN ACCESS EXCLUSIVE MODE")
            self._connection.execute("ALTER TABLE memories ALTER COLUMN new_vector SET NOT NULL")
            # With the column go the indexes that include it.
            self._connection.execute("DROP INDEX IF EXISTS memories_of_user, memories_sample")
            self._connection.execute("ALTER TABLE memories DROP COLUMN vector")
            self._connection.execute("ALTER TABLE memories RENAME COLUMN new_vector TO vector")
            for statement in _indexes(self._identity.dimensions):
                self._connection.execute(sql.SQL(statement))
            self._connection.execute("DELETE FROM embedders WHERE vector_column = 'new_vector'")
            write_record(self._connection, "vector", self._identity)


def _indexes(dimensions: int) -> list[str]:
    """The statements that make the indexes of migrations/0003_packed_head.sql, which go with the old column."""
    included = "head, terms, vector" if dimensions <= MAX_INDEXED_DIMENSIONS else "head, terms"
    columns = f"ON memories (user_number, session, said_at, number) INCLUDE ({included})"
    return [
        f"CREATE INDEX memories_of_user {columns}",
        f"CREATE INDEX memories_sample {columns} WHERE number % {SAMPLE} = 0",
    ]


def reembed(settings: Settings, report: Callable[[Progress], None]) -> tuple[int, EmbedderIdentity]:
    """Replace the vectors of the configured database with those of the configured embedder.

    Returns:
        The number of memories, and the embedder.

    Raises:
        CannotStart: the settings do not work, or the database cannot be used.
        ReembeddingRefused: the workers run.
        Unavailable: the database or the embedder does not answer; what is done stays done.
    """
    with starting_provider("LTM_EMBEDDER", settings):
        embedder = build_embedder(settings)
        dimensions = len(embedder.embed("Where were we?", "add"))
    identity = identify(settings, embedder, dimensions)

    def embed(texts: list[str]) -> list[list[float]]:
        with starting_provider("LTM_EMBEDDER", settings):
            vectors: list[list[float]] = embedder.embed_batch(texts, "add")
        return vectors

    url = settings.database_url.get_secret_value()
    check_connects(url)
    with database_errors(), psycopg.connect(url, autocommit=True) as connection:
        with schema_errors():
            migrate(connection, table_dimensions(connection) or dimensions)
        return Reembedding(connection, embed, identity, report).run(), identity
