"""Recall: a query meets the conversation that one user's memories are, and the ranking says which of them answer."""

from __future__ import annotations

import math
import re
import unicodedata

import numpy as np
from keepsake_client.protocol import SearchData
from numpy.typing import NDArray

from services.long_term_memory.postgres.reader import MemoryColumns
from services.long_term_memory.postgres.rows import hashed, hashed_terms
from services.long_term_memory.retrieval import ranking, tokenizer, utterances

_DAY = 86_400.0
#: A speaker's name has up to so many words.
_NAME_WORDS = 3
_WORD = re.compile(r"\w+")
_POSSESSIVE = re.compile(r"['’]s\b")


def recall(conversation: MemoryColumns, search: SearchData, now: float, weights: ranking.Weights) -> ranking.Ranking:
    """Rank the conversation's memories for a search.

    Args:
        now: when it was asked, in seconds since 1970.
    """
    age = np.maximum(now - conversation.timestamp, 0.0)
    half_life = search.recency_half_life_days
    ranked = ranking.rank(
        memories_of(conversation),
        query_of(conversation, search.query, now, weights),
        weights,
        limit=search.limit,
        eligible=_eligible(conversation, search),
        bonus=None if half_life is None else -math.log(2) * age / (half_life * _DAY),
    )
    # Where meaning was not asked, nothing speaks against those that no word speaks for.
    return ranked.where(ranked.words > 0) if np.isnan(conversation.cosine).all() else ranked


def memories_of(conversation: MemoryColumns) -> ranking.Memories:
    """The conversation's memories as the ranking takes them."""
    return ranking.Memories(
        session=conversation.session,
        length=conversation.length,
        asks=conversation.asks,
        speaker=conversation.speaker,
        script=conversation.script,
        from_ai=conversation.from_ai,
        fingerprint=conversation.fingerprint,
        timestamp=conversation.timestamp,
    )


def query_of(conversation: MemoryColumns, text: str, now: float, weights: ranking.Weights) -> ranking.Query:
    """The query as it meets the conversation's memories, whose cosines to it the conversation holds."""
    distinct = list(dict.fromkeys(tokenizer.terms(text)))
    terms, rows, counts = _postings(conversation, hashed_terms(distinct))
    script = utterances.script(text)
    # A query that was not embedded says nothing of meaning: every memory is as near as an unrelated one.
    unrelated = np.array(weights.unrelated_cosine[script])[conversation.script]
    return ranking.Query(
        cosine=np.where(np.isnan(conversation.cosine), unrelated, conversation.cosine),
        terms=terms,
        rows=rows,
        counts=counts,
        term_weight=np.array([tokenizer.term_weight(term) for term in distinct]),
        script=int(script),
        fingerprint=hashed(utterances.fingerprint(text)),
        asks=int(utterances.asks(text)),
        asks_current_state=utterances.asks_current_state(text),
        speakers=_named(conversation, text),
        now=now,
    )


def _postings(
    conversation: MemoryColumns, terms: NDArray[np.uint32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Which terms stand in which memories how often: three arrays, one entry a pair."""
    row_of = np.repeat(np.arange(len(conversation.length)), conversation.length)
    found = [np.unique(row_of[conversation.terms == term], return_counts=True) for term in terms]
    if not found:
        return (np.zeros(0, np.int64),) * 3
    rows, counts = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return np.repeat(np.arange(len(found)), [len(r) for r, _ in found]), rows, counts


def _named(conversation: MemoryColumns, text: str) -> NDArray[np.int64]:
    """The speakers of this conversation whom the text names, hashed as their memories have them."""
    spoken = _WORD.findall(_POSSESSIVE.sub("", unicodedata.normalize("NFKC", text).casefold()))
    names = {" ".join(spoken[i : i + n]) for n in range(1, _NAME_WORDS + 1) for i in range(len(spoken) - n + 1)}
    return np.intersect1d(conversation.speaker, np.array([hashed(name) for name in names], np.int64))


def _eligible(conversation: MemoryColumns, search: SearchData) -> NDArray[np.bool_] | None:
    filters, conditions = search.filters, []
    if filters.session_id is not None:
        conditions.append(conversation.session == hashed(filters.session_id))
    if search.exclude_session is not None:
        conditions.append(conversation.session != hashed(search.exclude_session))
    if filters.source is not None:
        conditions.append(conversation.from_ai == (filters.source == "ai"))
    if filters.since is not None:
        conditions.append(conversation.timestamp >= filters.since)
    if filters.until is not None:
        conditions.append(conversation.timestamp <= filters.until)
    return np.logical_and.reduce(conditions) if conditions else None
