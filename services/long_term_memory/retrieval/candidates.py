"""What a search reads of a user's memories: all, or of very many those parts of the conversation that promise most."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np
from keepsake_client.protocol import SearchData, SearchFilters
from numpy.typing import NDArray

from services.long_term_memory.postgres.reader import SAMPLE, ColumnReader, MemoryColumns, Place, Window
from services.long_term_memory.retrieval import ranking
from services.long_term_memory.retrieval.query import recall

#: Up to so many memories of a user are all read and ranked: about 1 ms a thousand.
EXACT_LIMIT: Final = 100_000
#: Of a user with more, as large a share of that limit is read beside the sample.
BUDGET: Final = 0.5
#: And as large a share of those are the newest, whatever they say.
NEWEST: Final = 0.1
#: Of a user with more memories than two such parts, several are read at once: 50,000 took 0.55 of the time.
PART: Final = 4_096
#: Users with so many memories that one process remembers.
REMEMBERED: Final = 10_000

_BEGINNING: Final[Place] = (-(2**63), -np.inf, 0)
_END: Final[Place] = (2**63 - 1, np.inf, 2**63 - 1)


class CandidateReader:
    """Reads conversations for searches.

    Where a long conversation can be cut into parts is known once it was read; the next time these are read at once.

    A user with more memories than `exact_limit` is read in two steps. Every `SAMPLE`th memory has an index of its own;
    they are ranked like any conversation. They cut it into runs of about `SAMPLE` turns, and what is said in one run is
    mostly about the same: those beside the best of the sample are read, and the newest. All that follows takes these
    for the whole conversation.
    """

    def __init__(self, conversations: ColumnReader, weights: ranking.Weights, exact_limit: int) -> None:
        self._conversations = conversations
        self._weights = weights
        self._exact_limit = exact_limit
        self._exceeding: set[str] = set()
        self._parts: dict[str, list[tuple[Place, Place]]] = {}

    def read(self, user_id: str, vector: NDArray[np.float32] | None, search: SearchData, now: float) -> MemoryColumns:
        """What is to be ranked for a search."""
        if user_id not in self._exceeding:
            conversation = self._whole(user_id, vector)
            if len(conversation) <= self._exact_limit:
                return conversation
            if len(self._exceeding) >= REMEMBERED:
                self._exceeding.clear()
            self._exceeding.add(user_id)

        filters = search.filters
        window = Window(filters.session_id, filters.since, filters.until)
        sample = self._conversations.read(user_id, vector, window, sample=True)
        if len(sample) * SAMPLE <= self._exact_limit:
            conversation = self._conversations.read(user_id, vector, window, most=self._exact_limit + 1)
            if len(conversation) <= self._exact_limit:
                if window == Window():
                    self._exceeding.discard(user_id)  # much was deleted
                return conversation
        runs = max(1, int(BUDGET * self._exact_limit) // SAMPLE)
        chosen = _chosen(sample, self._evidence(sample, search, now), runs)
        return self._conversations.read_runs(user_id, vector, _bounds(sample, chosen), window)

    def _whole(self, user_id: str, vector: NDArray[np.float32] | None) -> MemoryColumns:
        """All of it; of one that was never read whole, no more than tells that it is too much."""
        if user_id in self._parts:
            conversation = self._conversations.read_runs(user_id, vector, self._parts[user_id])
        else:
            conversation = self._conversations.read(user_id, vector, most=self._exact_limit + 1)
        if len(conversation) >= 2 * PART:
            if len(self._parts) >= REMEMBERED:
                self._parts.clear()
            places = _places(conversation, slice(PART, None, PART))
            self._parts[user_id] = list(pairwise([_BEGINNING, *places, _END]))
        return conversation

    def _evidence(self, sample: MemoryColumns, search: SearchData, now: float) -> NDArray[np.float64]:
        """How much each memory of the sample speaks for those around it."""
        # Filters are for memories: one that fails them may well stand beside one that does not.
        everything = {"limit": len(sample), "filters": SearchFilters(), "exclude_session": None}
        ranked = recall(sample, search.model_copy(update=everything), now, self._weights)
        evidence = np.full(len(sample), -np.inf)
        evidence[ranked.rows] = ranked.meaning + ranked.words + ranked.session + ranked.utterance
        return evidence


def _chosen(sample: MemoryColumns, evidence: NDArray[np.float64], runs: int) -> NDArray[np.int64]:
    """Which runs are read, of those before, between and after the sample's memories: run i ends before memory i."""
    best = np.maximum(np.append(evidence, -np.inf), np.append(-np.inf, evidence))
    # A session that is going on has its newest after the last of its sample.
    newest = np.append(-np.inf, sample.timestamp)
    of_newest = np.argsort(-newest, kind="stable")[: int(NEWEST * runs)]
    best[of_newest] = np.inf
    return np.sort(np.argsort(-best, kind="stable")[:runs])


def _places(conversation: MemoryColumns, rows: slice = slice(None)) -> list[Place]:
    columns = (conversation.session, conversation.timestamp, conversation.number)
    return list(zip(*(column[rows].tolist() for column in columns), strict=True))


def _bounds(sample: MemoryColumns, chosen: NDArray[np.int64]) -> list[tuple[Place, Place]]:
    """The places where the chosen runs begin and end; runs that follow each other are one."""
    edges = [_BEGINNING, *_places(sample), _END]
    following = np.flatnonzero(np.diff(chosen) > 1)
    first, last = np.append(0, following + 1), np.append(following, len(chosen) - 1)
    return [(edges[chosen[a]], edges[chosen[b] + 1]) for a, b in zip(first, last, strict=True)]
