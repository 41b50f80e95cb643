"""Ranking variants to compare: the whole ranking, and three with parts of it only."""

from __future__ import annotations

from dataclasses import replace

from services.long_term_memory.retrieval.weights import Weights

#: The whole ranking.
FULL = Weights()
#: Cosine and BM25F alone, without the features of sessions, neighbours, speakers, questions and times.
BOTH = replace(
    FULL,
    meaning_kernel=(0.0, 0.0),
    words_kernel=(0.0, 0.0),
    follow_up_boost=0.0,
    session_words=0.0,
    session_meaning=0.0,
    other_speaker=0.0,
    from_ai=0.0,
    ends_asking=0.0,
    newest=0.0,
    answers_then=0.0,
    only_asks=0.0,
    length=0.0,
)
#: The variants by the name of their column in the tables.
VARIANTS: dict[str, Weights] = {
    "semantic": replace(BOTH, words=0.0),
    "words": replace(BOTH, meaning=0.0),
    "both": BOTH,
    "full": FULL,
}
