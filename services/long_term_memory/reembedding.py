"""Re-embedding: replaces the vectors of all memories with those of the configured embedder, for `ltm reembed`.

The workers go on with the old vectors meanwhile. All memories are embedded into a second table, in batches, so that a
run that was killed is resumed; one transaction then puts that table in the place of the first, and ends the workers'
connections. A worker that connects again finds another embedder recorded, and ends (embedder_check.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import psycopg
from mem0.embeddings.base import EmbeddingBase
from psycopg import Connection
from psycopg.rows import TupleRow

from services.long_term_memory.embedder_check import embeds_as_stored, identify
from services.long_term_memory.embeddings.identity import EmbedderIdentity
from services.long_term_memory.embeddings.providers import build_embedder
from services.long_term_memory.postgres.embedder_record import REEMBEDDING_LOCK, drop_new_vectors, read_record
from services.long_term_memory.postgres.locking import pause_for_locks, until_locked
from services.long_term_memory.postgres.pool import check_connects, database_errors
from services.long_term_memory.postgres.preconditions import schema_errors
from services.long_term_memory.postgres.schema import migrate, table_dimensions
from services.long_term_memory.postgres.second_table import SecondTable, disk_needed
from services.long_term_memory.provider_start import starting_provider
from services.runtime.errors import ReembeddingRefused
from services.runtime.settings import Settings


@dataclass(frozen=True)
class Costs:
    """What a run costs, as far as that is known before it.

    Args:
        done, total: memories that have a new vector, and all.
        rate: memories a second, by the first batch.
        table_bytes: the size of the table that is replaced, with its indexes; it is free again at the end.
        needed_bytes: the size of the new one.
    """

    done: int
    total: int
    rate: float
    table_bytes: int
    needed_bytes: int

    @property
    def seconds(self) -> float:
        """How long embedding what is left takes."""
        return (self.total - self.done) / self.rate


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


class Operator(Protocol):
    """The person or program that runs it: decides, and is told how far it is."""

    def accepts(self, costs: Costs) -> bool:
        """Whether to begin."""

    def progressed(self, progress: Progress) -> None:
        """A batch is stored."""

    def indexing(self) -> None:
        """The indexes are made."""

    def switches(self) -> bool:
        """Whether to switch now: from then on the workers must have the new embedder's settings."""

    def waiting(self) -> None:
        """Something else uses the table, and is waited for."""


class Reembedding:
    """One run of `ltm reembed`.

    Args:
        connection: in autocommit mode, without a statement time-out.
        embed: gives the new vectors of texts.
        identity: the embedder's, to be recorded.
        clock: seconds, monotonic.
        pause: waits until locks are asked for again.
    """

    def __init__(
        self,
        connection: Connection[TupleRow],
        embed: Callable[[list[str]], list[list[float]]],
        identity: EmbedderIdentity,
        operator: Operator,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[], None] = pause_for_locks,
    ) -> None:
        self._connection = connection
        self._embed = embed
        self._identity = identity
        self._operator = operator
        self._clock = clock
        self._pause = pause
        self._next = SecondTable(connection, identity)

    def run(self) -> int:
        """Replace all vectors; the number of memories.

        Raises:
            ReembeddingRefused: another run is under way, or the operator has not agreed; what is done stays done.
            Unavailable: the embedder does not answer any more; what is done stays done.
        """
        self._locked(self._next.prepare)
        self._fill()
        self._operator.indexing()
        self._next.build_indexes()
        self._take_changes()
        total, _ = self._next.counts()
        if not self._operator.switches():
            raise ReembeddingRefused("not switched: everything is as it was, and `ltm reembed` goes on from here")
        try:
            self._locked(self._switch)
        except psycopg.errors.InsufficientPrivilege as error:
            raise ReembeddingRefused(
                f"this role of DATABASE_URL may not switch ({error.diag.message_primary}): run it again as the workers'"
                " role, or a superuser"
            ) from error
        self._next.validate()
        return total

    def _fill(self) -> None:
        """Embed what is not in the second table, in the order of its storing."""
        total, done = self._next.counts()
        begun, begun_at, last = done, self._clock(), -1
        while batch := self._next.missing(last):
            vectors = self._embed([content for _, content in batch])
            if done == begun:
                measured_s = max(self._clock() - begun_at, 1e-9)
                self._begin(done, total, len(batch) / measured_s)
                begun_at = self._clock() - measured_s  # without the time that the answer took
            self._next.store(batch, vectors)
            done, last = done + len(batch), batch[-1][0]
            self._take_changes()
            total = max(total, done)
            rate = (done - begun) / max(self._clock() - begun_at, 1e-9)
            self._operator.progressed(Progress(done, total, (total - done) / rate))

    def _begin(self, done: int, total: int, rate: float) -> None:
        costs = Costs(done, total, rate, *disk_needed(self._connection, self._identity.dimensions))
        agreed = False
        try:
            agreed = self._operator.accepts(costs)
        finally:
            if not agreed and not done:
                self._locked(partial(drop_new_vectors, self._connection))
        if not agreed:
            raise ReembeddingRefused("not begun: everything is as it was")

    def _take_changes(self) -> None:
        while self._next.take_changes(self._embed):
            pass

    def _switch(self) -> None:
        self._take_changes()
        self._next.switch(self._embed)

    def _locked(self, work: Callable[[], None]) -> None:
        until_locked(work, self._operator.waiting, self._pause)


def reembed(settings: Settings, operator: Operator) -> tuple[int | None, EmbedderIdentity]:
    """Replace the vectors of the configured database with those of the configured embedder.

    Returns:
        The number of memories, None where their vectors are this embedder's already, and the embedder.

    Raises:
        CannotStart: the settings do not work, or the database cannot be used.
        ReembeddingRefused: another run is under way, or the operator has not agreed.
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
        connection.execute("SET statement_timeout = 0")
        with schema_errors():
            migrate(connection, table_dimensions(connection) or dimensions, partitions=settings.ltm_partitions)
            return run_alone(connection, embedder, embed, identity, operator), identity


def run_alone(
    connection: Connection[TupleRow],
    embedder: EmbeddingBase,
    embed: Callable[[list[str]], list[list[float]]],
    identity: EmbedderIdentity,
    operator: Operator,
) -> int | None:
    """Run it where it is needed, and no other run is under way; the number of memories, or None."""
    if connection.execute("SELECT pg_try_advisory_lock(%s)", (REEMBEDDING_LOCK,)).fetchone() != (True,):
        raise ReembeddingRefused("another `ltm reembed` runs on this database")
    try:
        if embeds_as_stored(connection, embedder, identity):
            if read_record(connection, "new_vector"):  # of a run for another embedder, which was given up
                until_locked(partial(drop_new_vectors, connection), operator.waiting)
            SecondTable(connection, identity).validate()
            return None
        return Reembedding(connection, embed, identity, operator).run()
    finally:
        if not connection.broken:
            connection.execute("SELECT pg_advisory_unlock(%s)", (REEMBEDDING_LOCK,))
