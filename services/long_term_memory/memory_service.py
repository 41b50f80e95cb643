"""What users and the AI said, kept and found again."""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from keepsake_client.protocol import Memory, MemoryUpdateMessage, SearchData, encode_user_id

from services.long_term_memory.batching import Batcher
from services.long_term_memory.deadlines import SAFETY_FACTOR, LatencyEstimate, QueryVectors
from services.long_term_memory.mem0_bridge import Mem0Memory, provider_errors
from services.long_term_memory.postgres.history import insert_history
from services.long_term_memory.postgres.pool import database_errors
from services.long_term_memory.postgres.rows import insert_memories, memory_rows
from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.retrieval import ranking
from services.long_term_memory.retrieval.candidates import EXACT_LIMIT, CandidateReader
from services.long_term_memory.retrieval.query import recall
from services.runtime.errors import Expired

#: Query vectors kept in a process: 1.5 kB each of multilingual-e5-small's.
QUERY_CACHE_SIZE = 4_096
#: Messages embedded and stored together at the most. There are as many as threads; an embedder over HTTP may want fewer
#: texts at once than a host has threads.
MAX_BATCH = 16


class SearchResult(list[Memory]):
    """What a search found, best first.

    Args:
        partial: time was short, and only words were looked at.
        timings: milliseconds by stage: embed_ms, database_ms, rank_ms.
    """

    def __init__(self, memories: Iterable[Memory], *, partial: bool, timings: dict[str, float]) -> None:
        super().__init__(memories)
        self.partial = partial
        self.timings = timings


class _Stopwatch:
    """Adds up milliseconds by stage."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._begun = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.laps[stage] = self.laps.get(stage, 0.0) + (now - self._begun) * 1000
        self._begun = now


@dataclass(frozen=True, slots=True)
class _Utterance:
    """One memory on its way to the store."""

    id: str
    content: str
    payload: dict[str, Any]


class MemoryService:
    """Index, add and search memories of one user at a time, on Mem0 and its store.

    Args:
        weights: of the ranking; None for its own.
        exact_limit: how many memories of one user are all ranked.
    """

    def __init__(
        self,
        mem0: Mem0Memory,
        store: MemoryStore,
        weights: ranking.Weights | None = None,
        exact_limit: int = EXACT_LIMIT,
    ) -> None:
        self._mem0 = mem0
        self._store = store
        self._weights = weights or ranking.Weights()
        self._reader = CandidateReader(store.conversations, self._weights, exact_limit)
        self._vectors = QueryVectors(lambda query: mem0.embedding_model.embed(query, "search"), QUERY_CACHE_SIZE)
        self._rest = LatencyEstimate()
        self._keep_together = Batcher(self._keep, MAX_BATCH)

    def index(self, update: MemoryUpdateMessage) -> list[str]:
        """Keep what was said: as it was said, or as the facts that the LLM finds in it.

        As it was said, it is embedded and stored together with what other threads keep at the same time.

        Returns:
            The ids of the memories it became; none where the LLM found no fact.

        Raises:
            Unavailable: the database, the embedder or the LLM does not answer.
        """
        if self._mem0.llm is None:
            utterance = _of_update(update)
            self._keep_together(utterance)
            return [utterance.id]
        role = "assistant" if update.source == "ai" else "user"
        with database_errors(), provider_errors():
            added = self._mem0.add(
                [{"role": role, "content": update.content}],
                user_id=encode_user_id(update.user_id),
                metadata=_of_update(update).payload,
            )
        return [memory["id"] for memory in added["results"]]

    def index_many(self, updates: Sequence[MemoryUpdateMessage]) -> list[str]:
        """Keep many messages as they were said, embedded and stored together.

        The same message twice is one memory: by its message_id where it has one, else by all that it says.

        Raises:
            Unavailable: the database or the embedder does not answer.
        """
        utterances = [_of_update(update) for update in updates]
        self._keep(utterances)
        return [utterance.id for utterance in utterances]

    def add(self, user_id: str, content: str, metadata: dict[str, Any], request_id: str, timestamp: float) -> Memory:
        """Keep one memory on request, always as it is worded; the same request twice is one memory.

        Args:
            metadata: anything; `session_id` in it says which session the memory belongs to.
            timestamp: seconds since 1970.

        Raises:
            Unavailable: the database or the embedder does not answer.
        """
        session = metadata.get("session_id")
        key = encode_user_id(user_id)
        known = {"source": "user", "session_id": None if session is None else str(session), "request_id": request_id}
        payload = _payload(key, "user", timestamp, known, metadata)
        utterance = _Utterance(_identity(key, "request", request_id, content), content, payload)
        self._keep([utterance])
        return _memory(utterance.id, {**payload, "data": content}, None)

    def search(
        self,
        user_id: str,
        search: SearchData | str,
        limit: int | None = None,
        *,
        now: float | None = None,
        deadline: float | None = None,
    ) -> SearchResult:
        """The user's memories that answer best, best first, never anyone else's; none where none does.

        A search with no time left for its embedding ranks by words alone; one whose time is up by any of its stages is
        not gone on with.

        Args:
            search: the request's data, or just the query.
            limit: how many at the most, where `search` does not say.
            now: when it was asked, in seconds since 1970.
            deadline: when the answer is no longer wanted, in seconds since 1970.

        Raises:
            Expired: the deadline has passed: before its turn, or because a stage took longer than there was.
            Unavailable: the database or the embedder does not answer.
        """
        if isinstance(search, str):
            search = SearchData(query=search, **({} if limit is None else {"limit": limit}))
        begun = time.time()
        left = _left(deadline, "came to its turn")
        key = encode_user_id(user_id)
        clock = _Stopwatch()
        with database_errors(), provider_errors():
            vector = self._vectors.get(search.query, left - SAFETY_FACTOR * self._rest.seconds)
            clock.lap("embed_ms")
            _left(deadline, "was embedded")
            now = begun if now is None else now
            conversation = self._reader.read(key, vector, search, now)
            clock.lap("database_ms")
            ranked = recall(conversation, search, now, self._weights)
            least = ranking.DEFAULT_MIN_SCORE if search.min_score is None else search.min_score
            shown = int((ranked.score >= least).sum())  # scores fall in order
            numbers = conversation.number[ranked.rows[:shown]].tolist()
            clock.lap("rank_ms")
            kept = self._store.payloads(key, numbers) if numbers else {}
            clock.lap("database_ms")
        self._rest.took((clock.laps["database_ms"] + clock.laps["rank_ms"]) / 1000)
        _left(deadline, "was done")
        memories = [
            _memory(
                kept[number].id,
                kept[number].payload,
                float(ranked.score[place]),
                _parts(ranked, place) if search.explain else None,
            )
            for place, number in enumerate(numbers)
            if number in kept  # it may have been deleted in between
        ]
        return SearchResult(memories, partial=vector is None, timings=clock.laps)

    def _keep(self, utterances: Sequence[_Utterance]) -> None:
        """What Mem0's `add(infer=False)` does for one message at a time, for many, and once for the same one."""
        if not utterances:
            return
        first: dict[str, _Utterance] = {}
        for utterance in utterances:
            first.setdefault(utterance.id, utterance)
        utterances = list(first.values())
        with database_errors(), provider_errors():
            contents = [utterance.content for utterance in utterances]
            vectors = self._mem0.embedding_model.embed_batch(contents, "add")
            payloads = [{**utterance.payload, "data": utterance.content} for utterance in utterances]
            rows = memory_rows([utterance.id for utterance in utterances], vectors, payloads)
            # Batcher: a memory that a crash left without its history would never get one, for it is there already.
            with self._store.transaction() as cursor:
                new = insert_memories(cursor, rows)
                insert_history(cursor, [_added(utterance) for utterance in utterances if utterance.id in new])


def _left(deadline: float | None, stage: str) -> float:
    """The seconds until the deadline.

    Raises:
        Expired: it has passed; the search came to this stage too late.
    """
    left = math.inf if deadline is None else deadline - time.time()
    if left <= 0:
        raise Expired(f"the search {stage} {-left * 1000:.0f} ms after its deadline")
    return left


def _added(utterance: _Utterance) -> dict[str, Any]:
    times = {name: utterance.payload[name] for name in ("created_at", "updated_at", "role")}
    return {"memory_id": utterance.id, "new_memory": utterance.content, "event": "ADD", **times}


def _of_update(update: MemoryUpdateMessage) -> _Utterance:
    key = encode_user_id(update.user_id)
    role = "assistant" if update.source == "ai" else "user"
    known = {"source": update.source, "session_id": update.session_id or None, "message_id": update.message_id}
    payload = _payload(key, role, update.timestamp, known, update.meta)
    said = ("message", update.message_id) if update.message_id else (update.source, update.content, update.timestamp)
    return _Utterance(_identity(key, *said), update.content, payload)


def _identity(user_key: str, *event: object) -> str:
    """The memory's id, made of the event it keeps: stored again, at once or after a crash, it is there already.

    A version 8 UUID (RFC 9562) of the SHA-256 of user and event as JSON, so no two events share one.
    """
    digest = bytearray(sha256(json.dumps([user_key, *event]).encode()).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    return str(uuid.UUID(bytes=bytes(digest)))


def _payload(user_key: str, role: str, timestamp: float, known: dict[str, Any], meta: dict[str, Any]) -> dict[str, Any]:
    """Mem0's payload of one memory. What others sent stays in a drawer of its own, where it overwrites nothing."""
    created_at = datetime.fromtimestamp(timestamp, UTC).isoformat()
    return {
        **{name: value for name, value in known.items() if value is not None},
        "user_id": user_key,
        "role": role,
        "timestamp": timestamp,
        "created_at": created_at,
        "updated_at": created_at,
        "meta": meta,
    }


def _memory(
    memory_id: str, payload: dict[str, Any], score: float | None, parts: dict[str, float] | None = None
) -> Memory:
    known = {name: payload[name] for name in ("session_id", "message_id", "request_id") if name in payload}
    explained = {} if parts is None else {"score_parts": parts}
    return Memory(
        id=memory_id,
        content=payload["data"],
        score=None if score is None else round(score, 4),
        source=payload["source"],
        timestamp=payload["timestamp"],
        metadata={**payload["meta"], **known, **explained},
    )


def _parts(ranked: ranking.Ranking, place: int) -> dict[str, float]:
    return {
        name: round(float(getattr(ranked, name)[place]), 3) for name in ("meaning", "words", "session", "utterance")
    }
