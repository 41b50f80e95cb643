"""Features of a query with the memories of one user, as arrays for the ranking."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from keepsake_client.protocol import SearchData
from numpy.typing import NDArray

from services.long_term_memory.retrieval.columns import Booleans, Floats, Integers, MemoryColumns, hashed
from services.long_term_memory.retrieval.query import QueryFeatures
from services.long_term_memory.retrieval.query_times import said_then

_DAY_S: Final = 86_400.0
#: A pipeline searches for a message as soon as it has published it: as long as this, the user's message is the query.
ECHO_WINDOW_S: Final = 5.0
#: A message whose time is this near to its arrival is live, whatever its publisher's clock and time zone. What is dated
#: earlier is history, which was not said just now.
LIVE_S: Final = _DAY_S
#: Of the memories in the words of a query, so many are looked up: the newest.
MAX_POSSIBLE_ECHOES: Final = 10


@dataclass(frozen=True, slots=True)
class Features:
    """Features of one query with each of n memories, except the cosines, which are a column that the database computes.

    Args:
        terms: (nnz,) int64, postings: the query's term number `terms[i]` ...
        rows: (nnz,) int64, ... occurs in the memory of row `rows[i]` ...
        counts: (nnz,) int64, ... so many times.
        speakers: (s,) int64, hashes of the speakers of the conversation that the query names.
        echoes: (n,) bool, whether the memory is the query itself.
        eligible: (n,) bool, whether it passes the search's filters.
        recency: (n,) float64, log-odds that its age takes away, 0 or less.
        then: (n,) float64, how much it is of the times that the query asks about, by `query_times.said_then`; None
            where it asks about none.
    """

    terms: Integers
    rows: Integers
    counts: Integers
    speakers: Integers
    echoes: Booleans
    eligible: Booleans
    recency: Floats
    then: Floats | None = None

    def where(self, kept: Booleans) -> Features:
        """The features of the memories of the mask `kept`, (n,) bool, in the same order."""
        posted = kept[self.rows]
        renumbered = np.cumsum(kept) - 1
        return replace(
            self,
            terms=self.terms[posted],
            rows=renumbered[self.rows[posted]],
            counts=self.counts[posted],
            echoes=self.echoes[kept],
            eligible=self.eligible[kept],
            recency=self.recency[kept],
            then=None if self.then is None else self.then[kept],
        )


def match(columns: MemoryColumns, query: QueryFeatures, search: SearchData, now: float) -> Features:
    """The features of a search.

    Args:
        search: its filters and half-life.
        now: when it was asked, in seconds since 1970.
    """
    terms, rows, counts = _postings(columns, query.terms)
    return Features(
        terms=terms,
        rows=rows,
        counts=counts,
        speakers=np.intersect1d(columns.speaker, query.names),
        echoes=_echoes(columns, query, now),
        eligible=_eligible(columns, search),
        recency=_recency(columns, search.recency_half_life_days, now),
        then=said_then(columns, query.times) if query.times else None,
    )


def _postings(columns: MemoryColumns, terms: NDArray[np.uint32]) -> tuple[Integers, Integers, Integers]:
    """Postings of the query's terms in the memories, as `Features` has them: by term, then by row."""
    found = [np.unique(columns.term_rows[columns.terms == term], return_counts=True) for term in terms]
    if not found:
        return (np.zeros(0, np.int64),) * 3
    rows, counts = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return np.repeat(np.arange(len(found)), [len(r) for r, _ in found]), rows, counts


def _echoes(columns: MemoryColumns, query: QueryFeatures, now: float) -> Booleans:
    """Whether a memory is the query itself: the user's message of just now or, where it asks, one of any time.

    An older statement in the same words is no echo: one may search for an earlier message of the same words. Nor is
    what was added by request: it was not said.
    """
    same: Booleans = (columns.fingerprint == query.fingerprint) & ~columns.added
    if query.asks:
        return same
    return same & ~columns.from_ai & (np.abs(columns.timestamp - now) <= ECHO_WINDOW_S)


def possible_echoes(columns: MemoryColumns, query: QueryFeatures, features: Features, now: float) -> Integers:
    """The rows of memories in the query's words that are dated otherwise than now, and may have arrived just now."""
    rows = np.flatnonzero(columns.fingerprint == query.fingerprint)
    settled = columns.added[rows] | columns.from_ai[rows] | features.echoes[rows]
    rows = rows[~settled & (np.abs(columns.timestamp[rows] - now) <= LIVE_S + ECHO_WINDOW_S)]
    newest: Integers = rows[np.argsort(columns.number[rows])][-MAX_POSSIBLE_ECHOES:]
    return newest


def _eligible(columns: MemoryColumns, search: SearchData) -> Booleans:
    filters = search.filters
    eligible = np.ones(len(columns), np.bool_)
    if filters.session_id is not None:
        eligible &= columns.session == hashed(filters.session_id)
    if search.exclude_session is not None:
        eligible &= columns.session != hashed(search.exclude_session)
    if filters.source is not None:
        eligible &= columns.from_ai == (filters.source == "ai")
    if filters.since is not None:
        eligible &= columns.timestamp >= filters.since
    if filters.until is not None:
        eligible &= columns.timestamp <= filters.until
    return eligible


def _recency(columns: MemoryColumns, half_life_days: float | None, now: float) -> Floats:
    """-log(2) per half-life of age; 0 for memories of the future, and for all where there is no half-life."""
    if half_life_days is None:
        return np.zeros(len(columns))
    age = np.maximum(now - columns.timestamp, 0.0)
    recency: Floats = -math.log(2) * age / (half_life_days * _DAY_S)
    return recency
