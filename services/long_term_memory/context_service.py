"""ContextService: what a reply needs to know of a user, as one block ready for a prompt."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Any

from keepsake_client.context import MAX_QUOTE_CHARS, quoted, render, shorten
from keepsake_client.protocol import ContextData, ContextParts, Memory, Speaker

from services.long_term_memory.deadlines import SAFETY_FACTOR, Deadline, LatencyEstimate
from services.long_term_memory.explaining import Explained
from services.long_term_memory.known_slots import KNOWN, values_of
from services.long_term_memory.memory_service import MemoryService
from services.long_term_memory.postgres.background import LINES_AT_EACH_END, RECAPPED, BackgroundReader, RecapMemory
from services.long_term_memory.postgres.pool import database_errors
from services.long_term_memory.postgres.replica import Reads, Replica
from services.long_term_memory.postgres.rows import day_session
from services.long_term_memory.postgres.scope import Scope
from services.long_term_memory.retrieval.columns import hashed

#: Sessions whose facts a recap tells, and how many facts of each: what a person would remember of them.
RECAP_SESSIONS = 3
FACTS_OF_A_SESSION = 6


@dataclass(frozen=True, slots=True)
class ContextResult:
    """A context.

    Args:
        text: the block; empty where nothing is known.
        parts: what it contains.
        memories: what the search found, best first.
        partial: whether something is missing for want of time.
        timings: milliseconds by stage: those of the search, and context_ms.
        explain: as that of the search.
    """

    text: str
    parts: ContextParts
    memories: list[Memory]
    partial: bool
    timings: dict[str, float]
    explain: Callable[[], Explained] | None = None


class ContextService:
    """Puts profile, matching memories and a recap of the last sessions into one text.

    Args:
        zone: of the users.
        clock: the time in seconds since 1970.
        replica: of the reader's database; None for none.
    """

    def __init__(
        self,
        memories: MemoryService,
        reader: BackgroundReader,
        zone: tzinfo = UTC,
        clock: Callable[[], float] = time.time,
        *,
        replica: Replica | None = None,
    ) -> None:
        self._memories = memories
        self._reads = Reads(reader, BackgroundReader, replica)
        self._zone = zone
        self._clock = clock
        self._latency = LatencyEstimate()

    def context(
        self, user_id: str, asked: ContextData, *, now: float | None = None, deadline: float | None = None
    ) -> ContextResult:
        """The context of a reply to a query.

        The memories are those of `MemoryService.search`. Without time for the rest, the text has them alone.

        Args:
            now: when it was asked, in seconds since 1970; None for the present.
            deadline: when its answer becomes useless, in seconds since 1970; None for never.

        Raises:
            Expired: the deadline has passed, before or during the search.
            Unavailable: the database or the embedder does not answer.
        """
        now = self._clock() if now is None else now
        found = self._memories.search(user_id, asked, now=now, deadline=deadline)
        left_s = Deadline(deadline, self._clock).left_s("was done")
        has_time = left_s > SAFETY_FACTOR * self._latency.seconds
        begun = time.perf_counter()
        profile: dict[str, Any] = {}
        recap: list[dict[str, Any]] = []
        if has_time:
            scope = Scope.of(user_id, asked.agent_id, all_agents=asked.all_agents, kinds=RECAPPED)
            with database_errors():
                present = _present(asked, now)
                background = self._reads.read(scope.users, lambda reader: reader.read(scope, present), left_s)
            profile = known_profile(background.profiles)
            shown = {one for memory in found for one in _said_by(memory)}
            recap = self._recap(memory for memory in background.recap if _is_new(memory, shown, asked.query))
        else:
            self._latency.decay()
        parts = ContextParts.model_construct(
            profile=profile, memories=[quoted(memory, self._zone) for memory in found], recap=recap
        )
        rendered = render(parts, asked.text_chars, asked.max_tokens)
        took = time.perf_counter() - begun
        if has_time:
            self._latency.record(took)
        timings = {**found.timings, "context_ms": took * 1000}
        partial = found.partial or not has_time
        return ContextResult(rendered.text, rendered.parts, found, partial, timings, found.explain)

    def _recap(self, memories: Iterable[RecapMemory]) -> list[dict[str, Any]]:
        """Quotes of sessions, the last one first, each session in the order of time."""
        by_session: dict[int, list[RecapMemory]] = {}
        for memory in memories:
            by_session.setdefault(memory.session, []).append(memory)
        last_first = sorted(by_session.values(), key=lambda session: session[-1].said_at, reverse=True)
        return [
            {"sessions_ago": ago, **quoted(_memory(memory), self._zone)}
            for ago, session in enumerate(last_first[:RECAP_SESSIONS], 1)
            for memory in _chosen(session)
        ]


def known_profile(profiles: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The values of profiles that a prompt shows: texts, numbers, truth values and lists of them.

    What a service wrote goes before what extraction found, and a character's profile before the user's own.
    """
    found: dict[str, Any] = {}
    for profile in profiles:
        found.update(values_of(profile))
    for profile in profiles:
        found.update({name: value for name, value in profile.items() if name != KNOWN})
    return {name: shown for name, value in found.items() if (shown := _shown(value)) not in (None, "", [])}


def _shown(value: Any) -> Any:
    """The value as a prompt shows it; None where it is nested."""
    if isinstance(value, str):
        return shorten(value, MAX_QUOTE_CHARS)
    if isinstance(value, list):
        return [_shown(item) for item in value if isinstance(item, str | int | float)]
    return value if isinstance(value, int | float) else None


def _present(asked: ContextData, now: float) -> list[int]:
    """The hashes of the session that goes on: where it is not named, that of the messages without a session today."""
    named = [session for session in (asked.session_id, asked.exclude_session) if session]
    return [hashed(session) for session in named] or [day_session(datetime.fromtimestamp(now, UTC))]


def _said_by(memory: Memory) -> Iterator[str]:
    """The ids of what a memory says: its own, and those of the facts that go with it."""
    yield memory.id
    facts = memory.metadata.get("facts")  # perhaps of a publisher's making
    yield from (str(fact.get("id")) for fact in facts if isinstance(fact, dict)) if isinstance(facts, list) else ()


def _is_new(memory: RecapMemory, shown: set[str], query: str) -> bool:
    """Whether neither the memories say it, nor it is the very message that the reply is to."""
    return memory.id not in shown and memory.content.strip() != query.strip()


def _chosen(session: list[RecapMemory]) -> list[RecapMemory]:
    """What a recap tells of a session: its facts or, where it has none, its first and last lines."""
    if facts := [memory for memory in session if memory.kind == "fact"]:
        return facts[-FACTS_OF_A_SESSION:]
    # Of each owner, the shared memories and a character's, as many were read.
    ends = 2 * LINES_AT_EACH_END
    return session if len(session) <= ends else session[:LINES_AT_EACH_END] + session[-LINES_AT_EACH_END:]


def _memory(memory: RecapMemory) -> Memory:
    speaker = memory.payload.get("speaker")
    return Memory.model_construct(
        id=memory.id,
        content=memory.content,
        source=memory.source,
        timestamp=memory.said_at,
        speaker=Speaker.model_construct(**speaker) if isinstance(speaker, dict) else None,
        kind=memory.kind,
        when=memory.payload.get("when"),
        about=memory.payload.get("about"),
        metadata={},
    )
