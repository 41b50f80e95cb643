"""Features of a query with the memories of one user, as arrays for the ranking."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Final

import numpy as np
from keepsake_client.protocol import SearchData, Speaker, encode_user_id
from numpy.typing import NDArray

from services.long_term_memory.retrieval import tokenizer
from services.long_term_memory.retrieval.columns import (
    Booleans,
    Floats,
    Integers,
    MemoryColumns,
    hashed,
    hashed_terms,
    session_salt,
)
from services.long_term_memory.retrieval.content import Content
from services.long_term_memory.retrieval.query import QueryFeatures
from services.long_term_memory.retrieval.query_times import said_then
from services.long_term_memory.retrieval.speakers import name_parts, named, said_by, said_by_person
from services.long_term_memory.retrieval.utterances import Question

_DAY_S: Final = 86_400.0
#: A pipeline searches for a message as soon as it has published it: as long as this, the user's message is the query.
ECHO_WINDOW_S: Final = 5.0
#: A message whose time is this near to its arrival is live, whatever its publisher's clock and time zone. What is dated
#: earlier is history, which was not said just now.
LIVE_S: Final = _DAY_S
#: Speakers from which on a conversation is a room, where others tell of one who is named. In a talk of two, the name
#: of the other is mostly an address: taken for telling, that cost LoCoMo 0.011 of recall@10.
ROOM_SPEAKERS: Final = 3
#: Log-odds that make a score of 0.00: meaning gives a greeting up to 10, and a word in common up to as much again.
UNSOUGHT: Final = -30.0
#: Of the memories in the words of a query, so many are looked up: the newest.
MAX_POSSIBLE_ECHOES: Final = 10
#: A line repeats the query where all its terms are in the query, and of the query's so many in it: one word in five
#: more ("again", "please") makes no other question. One or two terms in common may be chance.
REPEATED_SHARE: Final = 0.8
MIN_REPEATED_TERMS: Final = 3


@dataclass(frozen=True, slots=True)
class Features:
    """Features of one query with each of n memories, except the cosines, which are a column that the database computes.

    Args:
        terms: (nnz,) int64, postings: the query's term number `terms[i]` ...
        rows: (nnz,) int64, ... occurs in the memory of row `rows[i]` ...
        counts: (nnz,) int64, ... so many times.
        speakers: (s,) int64, the speakers of the conversation that the query names.
        mentions: (n,) bool, whether the memory names one of these in a room.
        echoes: (n,) bool, whether the memory is the query itself, asked or said before.
        repeats: (n,) bool, whether the user said nothing in it but what the query says: it ranks after every answer.
        eligible: (n,) bool, whether it passes the search's filters.
        recency: (n,) float64, log-odds that its age takes away, 0 or less.
        unsought: (n,) float64, log-odds that a query with nothing to look for takes away, 0 or less.
        then: (n,) float64, how much it is of the times that the query asks about, by `query_times.said_then`; None
            where it asks about none.
        of_others: (n,) bool, whether another than the asker said it, and not about the asker; None where the asker or
            all others are unknown, or where the query names a speaker.
    """

    terms: Integers
    rows: Integers
    counts: Integers
    speakers: Integers
    mentions: Booleans
    echoes: Booleans
    repeats: Booleans
    eligible: Booleans
    recency: Floats
    unsought: Floats
    then: Floats | None = None
    of_others: Booleans | None = None

    def where(self, kept: Booleans) -> Features:
        """The features of the memories of the mask `kept`, (n,) bool, in the same order."""
        posted = kept[self.rows]
        renumbered = np.cumsum(kept) - 1
        return replace(
            self,
            terms=self.terms[posted],
            rows=renumbered[self.rows[posted]],
            counts=self.counts[posted],
            mentions=self.mentions[kept],
            echoes=self.echoes[kept],
            repeats=self.repeats[kept],
            eligible=self.eligible[kept],
            recency=self.recency[kept],
            unsought=self.unsought[kept],
            then=None if self.then is None else self.then[kept],
            of_others=None if self.of_others is None else self.of_others[kept],
        )


def match(columns: MemoryColumns, query: QueryFeatures, search: SearchData, now: float) -> Features:
    """The features of a search.

    Args:
        search: its filters, its half-life, and who asks.
        now: when it was asked, in seconds since 1970.
    """
    postings = _postings(columns, query.terms)
    echoes = _echoes(columns, query, now)
    of_messages = columns.speaker[columns.messages]
    present = np.unique(of_messages[of_messages != 0])
    # Most conversations name no speaker.
    speakers = present[named(present, query.names)] if len(present) else present
    is_room = len(present) >= ROOM_SPEAKERS
    return Features(
        *postings,
        speakers=speakers,
        mentions=_mentions(columns, _texts_of(query, speakers) if is_room else []),
        echoes=echoes,
        repeats=_repeats(columns, query, postings) & ~echoes,
        eligible=_eligible(columns, search),
        recency=_recency(columns, search.recency_half_life_days, now),
        unsought=_unsought(columns, query, postings),
        then=said_then(columns, query.times) if query.times else None,
        of_others=None if search.speaker is None or len(speakers) else _of_others(columns, search.speaker, is_room),
    )


def _postings(columns: MemoryColumns, terms: NDArray[np.uint32]) -> tuple[Integers, Integers, Integers]:
    """Postings of the query's terms in the memories, as `Features` has them: by term, then by row."""
    found = [columns.term_rows[columns.terms == term] for term in terms]  # rows ascend
    if not found:
        return (np.zeros(0, np.int64),) * 3
    pairs = np.repeat(np.arange(len(found)), [len(rows) for rows in found]) * len(columns) + np.concatenate(found)
    first = np.flatnonzero(np.diff(pairs, prepend=-1))
    return pairs[first] // len(columns), pairs[first] % len(columns), np.diff(first, append=len(pairs))


def _texts_of(query: QueryFeatures, speakers: Integers) -> list[str]:
    """The names of these speakers, as the query has them."""
    places = np.flatnonzero(np.isin(name_parts(query.names), name_parts(speakers))) if len(speakers) else ()
    return [query.name_texts[place] for place in places]


def _mentions(columns: MemoryColumns, names: Sequence[str]) -> Booleans:
    """Whether a memory has all terms of one of these names, in what is said or as its speaker."""
    mentions = np.zeros(len(columns), np.bool_)
    for name in names:
        rows = [np.unique(columns.term_rows[columns.terms == term]) for term in hashed_terms(tokenizer.terms(name))]
        if rows:
            mentions[reduce(np.intersect1d, rows)] = True
    return mentions


def _of_others(columns: MemoryColumns, asker: Speaker, is_room: bool) -> Booleans | None:
    """Whether another person or the AI said a memory, and in a room does not name the asker in it.

    None where no other person is known.
    """
    own = said_by_person(columns.speaker, asker)
    by_others = (columns.speaker != 0) & ~own
    if not by_others.any():
        return None
    names = [asker.name] if is_room and asker.name is not None else []
    of_others: Booleans = (by_others | (columns.from_ai & ~own)) & ~_mentions(columns, names)
    return of_others


def _echoes(columns: MemoryColumns, query: QueryFeatures, now: float) -> Booleans:
    """Whether a memory is the query itself: the user's message of just now, or the same question of any time.

    A statement is no echo of the question in its words ("I live in Porto", "I live in Porto?"): it is the answer. Nor
    is what was added by request: it was not said.
    """
    echoes = np.zeros(len(columns), np.bool_)
    rows = _in_its_words(columns, query)
    just_said = ~columns.from_ai[rows] & (np.abs(columns.timestamp[rows] - now) <= ECHO_WINDOW_S)
    asking = columns.fingerprint[rows] == query.asked
    if query.content is Content.WORDS:  # else it is a greeting or the like, which is no question
        asking |= columns.asks[rows] > Question.NOTHING
    echoes[rows] = (just_said | asking) & ~columns.added[rows]
    return echoes


def _in_its_words(columns: MemoryColumns, query: QueryFeatures) -> Integers:
    """The rows of memories in the words of the query, with or without a question mark."""
    return np.flatnonzero((columns.fingerprint == query.stated) | (columns.fingerprint == query.asked))


def _repeats(columns: MemoryColumns, query: QueryFeatures, postings: tuple[Integers, Integers, Integers]) -> Booleans:
    """Whether a memory adds nothing to a query without a question mark: the user has said the same before.

    In most languages nothing but words tells a question without its mark from a statement. Either way an earlier line
    in the query's own words is no answer to it.
    """
    if query.marked or not query.stated:  # a text without words repeats nothing
        return np.zeros(len(columns), np.bool_)
    repeats: Booleans = columns.fingerprint == query.stated
    if query.asks is Question.NOTHING:
        _, rows, counts = postings
        adds_nothing = np.bincount(rows, counts, len(columns)) == columns.length
        shared = np.bincount(rows, minlength=len(columns))
        repeats |= adds_nothing & (shared >= max(REPEATED_SHARE * len(query.terms), MIN_REPEATED_TERMS))
    repeats &= ~columns.from_ai & ~columns.added
    return repeats


def possible_echoes(columns: MemoryColumns, query: QueryFeatures, features: Features, now: float) -> Integers:
    """The rows of memories in the query's words that are dated otherwise than now, and may have arrived just now."""
    rows = _in_its_words(columns, query)
    rows = rows[rows < columns.message_count]  # a fact is not said
    settled = columns.added[rows] | columns.from_ai[rows] | features.echoes[rows]
    rows = rows[~settled & (np.abs(columns.timestamp[rows] - now) <= LIVE_S + ECHO_WINDOW_S)]
    newest: Integers = rows[np.argsort(columns.number[rows])][-MAX_POSSIBLE_ECHOES:]
    return newest


def _eligible(columns: MemoryColumns, search: SearchData) -> Booleans:
    filters = search.filters
    eligible = np.ones(len(columns), np.bool_)
    if filters.session_id is not None:
        eligible &= _of_session(columns, search, filters.session_id)
    if search.exclude_session is not None:
        eligible &= ~_of_session(columns, search, search.exclude_session)
    if filters.source is not None:
        eligible &= columns.from_ai == (filters.source == "ai")
    if filters.since is not None:
        eligible &= columns.timestamp >= filters.since
    if filters.until is not None:
        eligible &= columns.timestamp <= filters.until
    if filters.speaker is not None:
        eligible &= said_by(columns.speaker, filters.speaker)
    return eligible


def _of_session(columns: MemoryColumns, search: SearchData, session_id: str) -> Booleans:
    """Whether a memory is of the session that any of the users calls so."""
    salts = [0, *(session_salt(1, encode_user_id(user)) for user in search.also)]
    return np.isin(columns.session, [hashed(session_id) ^ salt for salt in salts])


def _unsought(columns: MemoryColumns, query: QueryFeatures, postings: tuple[Integers, Integers, Integers]) -> Floats:
    """`UNSOUGHT` for every memory where the query has nothing to look for; an address or id is found where it is."""
    if query.content is Content.WORDS:
        return np.zeros(len(columns))
    contains = np.bincount(postings[1], minlength=len(columns)) == max(len(query.terms), 1)
    unsought: Floats = np.where(contains & (query.content is Content.LITERAL), 0.0, UNSOUGHT)
    return unsought


def _recency(columns: MemoryColumns, half_life_days: float | None, now: float) -> Floats:
    """-log(2) per half-life of age; 0 for memories of the future, and for all where there is no half-life."""
    if half_life_days is None:
        return np.zeros(len(columns))
    age = np.maximum(now - columns.timestamp, 0.0)
    recency: Floats = -math.log(2) * age / (half_life_days * _DAY_S)
    return recency
