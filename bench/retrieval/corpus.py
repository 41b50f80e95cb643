"""Corpora: users of a data set as the columns that a search ranks, without a database.

The rows are those that the store would write, and the ranking is the service's own; only the cosines are computed here,
from vectors of half precision as PostgreSQL has them. A test compares the columns with those that PostgreSQL returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from keepsake_client.protocol import MemoryUpdateMessage, SearchData
from numpy.typing import NDArray

from bench.retrieval.datasets import Question, User
from bench.retrieval.vectors import VectorCache
from services.long_term_memory.memory_service import MATTER_DEPTH
from services.long_term_memory.postgres.reader import unpack
from services.long_term_memory.postgres.rows import HEAD, TRAITS, memory_row
from services.long_term_memory.retrieval.columns import Integers, MemoryColumns
from services.long_term_memory.retrieval.features import Features, match
from services.long_term_memory.retrieval.newer import prefer_newer
from services.long_term_memory.retrieval.query import QueryFeatures, query_features
from services.long_term_memory.retrieval.ranking import Ranking, rank
from services.long_term_memory.retrieval.weights import Weights
from services.long_term_memory.storing import of_update


@dataclass(frozen=True)
class Search:
    """One search: a question asked of a user.

    Args:
        vector: (384,) float32, projected.
        evidence: for each part of the answer, the rows that hold it; empty where the user cannot answer it.
    """

    question: Question
    vector: NDArray[np.float32]
    evidence: tuple[frozenset[int], ...]

    @cached_property
    def query(self) -> QueryFeatures:
        """The features of its text."""
        return query_features(self.question.text, self.question.asked_at)

    @cached_property
    def wanted(self) -> frozenset[int]:
        """The rows that answer at least a part of it."""
        return frozenset().union(*self.evidence)

    def recall(self, rows: Sequence[int]) -> float:
        """The share of the answer's parts that the rows hold."""
        return sum(bool(part.intersection(rows)) for part in self.evidence) / len(self.evidence)


@dataclass(frozen=True)
class Corpus:
    """One user's memories.

    Args:
        columns: the n memories, without cosines.
        vectors: (n, 384) float32.
        ids: message_ids by row.
        searches: the user's own questions.
    """

    name: str
    columns: MemoryColumns
    vectors: NDArray[np.float32]
    ids: list[str]
    searches: list[Search]

    def features(self, search: Search) -> tuple[MemoryColumns, QueryFeatures, Features]:
        """What the ranking takes."""
        columns = replace(self.columns, cosine=(self.vectors @ half_precision(search.vector)).astype(np.float64))
        question = search.question
        asked = SearchData(query=question.text, speaker=question.asker)
        features = match(columns, search.query, asked, question.asked_at)
        return columns, search.query, features

    def ranked(self, search: Search, weights: Weights, limit: int | None = 100) -> Ranking:
        """The ranking of a search; where it asks for the current state no more than are compared then."""
        columns, query, features = self.features(search)
        ranking = rank(columns, query, features, weights, limit=limit)
        if not query.asks_current_state or not len(ranking):
            return ranking
        ranking = ranking.first(MATTER_DEPTH)
        likeness = (self.vectors[ranking.rows] @ self.vectors[ranking.rows[0]]).astype(np.float64)
        return prefer_newer(ranking, columns, features, likeness, weights)

    def sessions(self, rows: Sequence[int]) -> list[int]:
        """The sessions of the rows, each once, in their order."""
        return list(dict.fromkeys(self.columns.session[list(rows)].tolist()))


def corpora(users: Sequence[User], vectors: VectorCache) -> list[Corpus]:
    """The users' corpora."""
    return [_corpus(user, vectors) for user in users]


def asked_of_the_next(found: Sequence[Corpus]) -> list[tuple[Corpus, Search]]:
    """The answerable questions of each user, asked of the user before: another's life, so nothing answers them.

    Those that both are asked are left out: the users may be one with more and with fewer memories.
    """
    asked = []
    for user, other in zip(found, [*found[1:], *found[:1]], strict=True):
        own = {search.question.text for search in user.searches}
        asked += [
            (user, replace(search, evidence=()))
            for search in other.searches
            if search.evidence and search.question.text not in own
        ]
    return asked


def columns_of(messages: Sequence[MemoryUpdateMessage]) -> tuple[MemoryColumns, Integers]:
    """The memories of messages as columns without cosines, and the place among the messages of each row."""
    rows = [memory_row(u.id, [0.0], {**u.payload, "data": u.content}) for u in map(of_update, messages)]
    head = np.zeros(len(rows), HEAD)
    head["number"] = np.arange(1, len(rows) + 1)
    head["session"] = [row["session"] for row in rows]
    # PostgreSQL counts microseconds since 2000.
    head["said_at"] = [round((row["said_at"].timestamp() - 946_684_800) * 1e6) for row in rows]
    traits = np.frombuffer(b"".join(row["traits"] for row in rows), TRAITS)
    for name in TRAITS.names or ():
        head[name] = traits[name]
    order = np.lexsort((head["number"], head["said_at"], head["session"]))
    terms = b"".join(rows[place]["terms"] for place in order)
    return unpack([(head[order].tobytes(), terms, np.full(len(rows), np.nan, ">f8").tobytes())]), order


def _corpus(user: User, vectors: VectorCache) -> Corpus:
    columns, order = columns_of(user.messages)
    messages = [user.messages[place] for place in order]
    ids = [str(message.message_id) for message in messages]
    embedded = half_precision(vectors.memories([message.content for message in messages]))
    queries = vectors.queries([question.text for question in user.questions])
    copies = [np.flatnonzero(columns.fingerprint == one).tolist() for one in columns.fingerprint]
    by_id = {one: frozenset(copies[row]) for row, one in enumerate(ids)}
    searches = [
        Search(q, vector, tuple(frozenset().union(*(by_id[one] for one in part)) for part in q.evidence))
        for q, vector in zip(user.questions, queries, strict=True)
    ]
    return Corpus(user.name, columns, embedded, ids, searches)


def half_precision(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vectors in half precision, at unit length as the cosine takes them."""
    half = vectors.astype(np.float16).astype(np.float32)
    unit: NDArray[np.float32] = half / np.linalg.norm(half, axis=-1, keepdims=True)
    return unit
