"""The record of the embedder that filled the database."""

from __future__ import annotations

from typing import Literal

from psycopg import Connection
from psycopg.rows import TupleRow

from services.long_term_memory.embeddings.identity import EmbedderIdentity
from services.long_term_memory.postgres.locking import brief_locks
from services.runtime.errors import EmbedderChanged

VectorColumn = Literal["vector", "new_vector"]

#: The key of the advisory lock that `ltm reembed` holds, the same in every release: "keepsakR" in ASCII.
REEMBEDDING_LOCK = 0x6B656570_73616B52


def read_record(connection: Connection[TupleRow], column: VectorColumn) -> EmbedderIdentity | None:
    """The embedder that filled a column, if that is known."""
    row = connection.execute(
        "SELECT provider, model, dimensions, projection FROM embedders WHERE vector_column = %s", (column,)
    ).fetchone()
    return EmbedderIdentity(*row) if row else None


def write_record(connection: Connection[TupleRow], column: VectorColumn, identity: EmbedderIdentity) -> None:
    """Record the embedder that fills a column, in place of an earlier one."""
    connection.execute(
        "INSERT INTO embedders (vector_column, provider, model, dimensions, projection) VALUES (%s, %s, %s, %s, %s)"
        " ON CONFLICT (vector_column) DO UPDATE SET provider = excluded.provider, model = excluded.model,"
        " dimensions = excluded.dimensions, projection = excluded.projection, recorded_at = now(),"
        " engines = CASE WHEN (embedders.provider, embedders.model, embedders.dimensions)"
        " = (excluded.provider, excluded.model, excluded.dimensions) THEN embedders.engines ELSE ARRAY[]::text[] END",
        (column, identity.provider, identity.model, identity.dimensions, identity.projection),
    )


def add_engine(connection: Connection[TupleRow], engine: str) -> None:
    """Note that a worker has opened the database with this engine of the default embedder."""
    connection.execute(
        "UPDATE embedders SET engines = engines || %(engine)s::text"
        " WHERE vector_column = 'vector' AND NOT %(engine)s = ANY(engines)",
        {"engine": engine},
    )


def check_provider(connection: Connection[TupleRow], provider: str) -> None:
    """Check the provider alone, by its name: what can be told without loading the embedder.

    Raises:
        EmbedderChanged: the vectors are of another provider.
    """
    recorded = read_record(connection, "vector")
    filled = connection.execute("SELECT number FROM memories LIMIT 1").fetchone()
    if recorded and recorded.provider != provider and filled:
        raise EmbedderChanged(provider, str(recorded))


def drop_new_vectors(connection: Connection[TupleRow]) -> None:
    """Remove what `ltm reembed` or `ltm partition` has done so far.

    Raises:
        LockNotAvailable: of psycopg: not now.
    """
    with brief_locks(connection):
        connection.execute("DROP FUNCTION IF EXISTS mirror_memory CASCADE")  # with its trigger
        connection.execute("DROP FUNCTION IF EXISTS note_changed_memory CASCADE")
        connection.execute("DROP TABLE IF EXISTS memories_changed, memories_next")
        connection.execute("DELETE FROM embedders WHERE vector_column = 'new_vector'")
