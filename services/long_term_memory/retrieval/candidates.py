"""CandidateReader: the memories that a search ranks: all of a user, or of very many the best segments."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, tzinfo
from itertools import pairwise
from typing import Final

import numpy as np
from keepsake_client.protocol import SearchData, SearchFilters

from services.long_term_memory.postgres.reader import NO_MEMORIES, SAMPLE, ColumnReader, Place, Window
from services.long_term_memory.postgres.rows import Vector
from services.long_term_memory.postgres.scope import Owner, Scope
from services.long_term_memory.retrieval.columns import Floats, Integers, MemoryColumns, session_salt
from services.long_term_memory.retrieval.facts import ColumnsWithFacts
from services.long_term_memory.retrieval.features import match
from services.long_term_memory.retrieval.query import query_features
from services.long_term_memory.retrieval.ranking import rank
from services.long_term_memory.retrieval.weights import Weights

#: A user's memories up to this number are all read and ranked: about 1 ms a thousand.
EXACT_LIMIT: Final = 100_000
#: The share of that limit that is read in segments beside the sample, of a user with more.
SEGMENTS_SHARE: Final = 0.5
#: The share of those segments that are the newest, whatever their evidence.
NEWEST_SHARE: Final = 0.1
#: Memories in a part of a conversation. Two or more parts are read concurrently: 50,000 memories took 0.55 of the time.
PART_SIZE: Final = 4_096
#: Users with so many memories that one process remembers.
MAX_REMEMBERED: Final = 10_000

_BEGINNING: Final[Place] = (-(2**63), -np.inf, 0)
_END: Final[Place] = (2**63 - 1, np.inf, 2**63 - 1)


class CandidateReader:
    """Reads the candidates of a search.

    Where a long conversation can be cut into parts is known once it was read; from then on its parts are read
    concurrently.

    A user with more memories than `exact_limit` is read in two steps. Every `SAMPLE`th memory is in an index of its
    own; these are ranked like any conversation. They cut the conversation into segments of about `SAMPLE` turns, and
    the turns of one segment are mostly about the same: the segments next to the best of the sample are read, and the
    newest. All later stages take these for the whole conversation.

    Args:
        exact_limit: how many memories of one user are all ranked.
        part_size: how many memories are read as one part.
        max_remembered: how many owners' parts, and how many owners over the limit, are remembered.
        zone: of the users.
    """

    def __init__(
        self,
        reader: ColumnReader,
        weights: Weights,
        exact_limit: int = EXACT_LIMIT,
        part_size: int = PART_SIZE,
        max_remembered: int = MAX_REMEMBERED,
        zone: tzinfo = UTC,
    ) -> None:
        self._reader = reader
        self._weights = weights
        self._exact_limit = exact_limit
        self._part_size = part_size
        self._max_remembered = max_remembered
        self._zone = zone
        #: The limit that each owner was last seen to exceed. Beside other owners, an owner has less of the limit.
        self._exceeding: dict[Owner, int] = {}
        self._parts: dict[Owner, list[tuple[Place, Place]]] = {}

    def read(self, scope: Scope, vector: Vector | None, search: SearchData, now: float) -> MemoryColumns:
        """The memories to rank for a search, with their cosines to the query's `vector`.

        Args:
            now: when it was asked, in seconds since 1970.
        """
        if scope.owner is not None:
            return self._of_owner(scope.owner, vector, search, now, self._exact_limit)
        share = self._exact_limit // len(scope.users)
        owners = self._reader.read_owners(scope, vector, share + 1)
        large = [owner for owner, columns in owners.items() if columns.message_count > share]
        if large:
            left = self._exact_limit - sum(
                columns.message_count for columns in owners.values() if columns.message_count <= share
            )
            limit = max(left // len(large), share)
            owners |= {owner: self._of_owner(owner, vector, search, now, limit) for owner in large}
        return _joined(scope, owners)

    def _of_owner(
        self, owner: Owner, vector: Vector | None, search: SearchData, now: float, exact_limit: int
    ) -> MemoryColumns:
        if exact_limit > self._exceeding.get(owner, -1):
            columns = self._whole(owner, vector)
            if columns.message_count <= exact_limit:
                return columns
            if len(self._exceeding) >= self._max_remembered:
                self._exceeding.clear()
            self._exceeding[owner] = min(columns.message_count - 1, self._exact_limit)

        filters = search.filters
        window = Window(filters.session_id, filters.since, filters.until)
        sample = self._reader.read(owner, vector, window, sample=True)
        if len(sample) * SAMPLE <= exact_limit:
            columns = self._reader.read(owner, vector, window, limit=exact_limit + 1)
            if columns.message_count <= exact_limit:
                if window == Window():
                    self._exceeding.pop(owner, None)  # many memories were deleted
                return columns
        count = max(1, int(SEGMENTS_SHARE * exact_limit) // SAMPLE)
        segments = _best_segments(sample, self._evidence(sample, search, now), count)
        return self._reader.read_segments(owner, vector, _bounds(sample, segments), window)

    def _whole(self, owner: Owner, vector: Vector | None) -> MemoryColumns:
        """All memories; at the first read of an owner at most one more than the limit, to show that it is exceeded."""
        if owner in self._parts:
            columns = self._reader.read_segments(owner, vector, self._parts[owner])
        else:
            columns = self._reader.read(owner, vector, limit=self._exact_limit + 1)
        if columns.message_count >= 2 * self._part_size:
            if owner not in self._parts and len(self._parts) >= self._max_remembered:
                self._parts.clear()
            places = _places(columns, slice(self._part_size, columns.message_count, self._part_size))
            self._parts[owner] = list(pairwise([_BEGINNING, *places, _END]))
        return columns

    def _evidence(self, sample: MemoryColumns, search: SearchData, now: float) -> Floats:
        """(n,) float64, the evidence of each memory of the sample in log-odds; -inf for those that are not ranked."""
        # Filters are for memories: one that fails them may well be next to one that does not.
        unfiltered = search.model_copy(update={"filters": SearchFilters(), "exclude_session": None})
        query = query_features(search.query, now, self._zone)
        ranked = rank(sample, query, match(sample, query, unfiltered, now), self._weights)
        evidence = np.full(len(sample), -np.inf)
        evidence[ranked.rows] = ranked.evidence
        return evidence


def _joined(scope: Scope, owners: dict[Owner, MemoryColumns]) -> MemoryColumns:
    """The memories of several owners; the sessions of different users are different ones."""
    salts = {user: session_salt(place, user) for place, user in enumerate(scope.users)}
    parts = [
        replace(columns, session=columns.session ^ salts[owner.user]) if salts[owner.user] else columns
        for owner, columns in owners.items()
    ]
    if not parts:
        return NO_MEMORIES
    with_facts = [part for part in parts if isinstance(part, ColumnsWithFacts)]
    messages = MemoryColumns.joined([part.without_facts for part in parts])
    if not with_facts:
        return messages
    said, replaced = (np.concatenate([getattr(part, name) for part in with_facts]) for name in ("said", "replaced"))
    return ColumnsWithFacts.of(messages, [part.only_facts for part in with_facts], said, replaced)


def _best_segments(sample: MemoryColumns, evidence: Floats, count: int) -> Integers:
    """The segments to read, (count,) int64 or fewer, ascending.

    Segment i ends before memory i of the sample; the last one begins with its last memory.

    Args:
        evidence: (n,) float64, of each memory of the sample.
    """
    best = np.maximum(np.append(evidence, -np.inf), np.append(-np.inf, evidence))
    # The newest memories of a session in progress come after the last of it in the sample.
    begins_at = np.append(-np.inf, sample.timestamp)
    newest = np.argsort(-begins_at, kind="stable")[: int(NEWEST_SHARE * count)]
    best[newest] = np.inf
    return np.sort(np.argsort(-best, kind="stable")[:count])


def _places(columns: MemoryColumns, rows: slice = slice(None)) -> list[Place]:
    keys = (columns.session, columns.timestamp, columns.number)
    return list(zip(*(key[rows].tolist() for key in keys), strict=True))


def _bounds(sample: MemoryColumns, segments: Integers) -> list[tuple[Place, Place]]:
    """The places where the segments begin and end; consecutive segments are one."""
    edges = [_BEGINNING, *_places(sample), _END]
    gaps = np.flatnonzero(np.diff(segments) > 1)
    first, last = np.append(0, gaps + 1), np.append(gaps, len(segments) - 1)
    return [(edges[segments[a]], edges[segments[b] + 1]) for a, b in zip(first, last, strict=True)]
