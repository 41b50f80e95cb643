"""QueryFeatures: the features of a query's text by itself, without any memory."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.long_term_memory.retrieval import tokenizer, utterances
from services.long_term_memory.retrieval.columns import Floats, Integers, hashed, hashed_terms
from services.long_term_memory.retrieval.content import Content, content
from services.long_term_memory.retrieval.dates import Interval
from services.long_term_memory.retrieval.fingerprints import fingerprints
from services.long_term_memory.retrieval.query_times import asks_current_state, times_asked_about
from services.long_term_memory.retrieval.utterances import Question, Script

_WORD: Final = re.compile(r"\w+")
_POSSESSIVE: Final = re.compile(r"['’]s\b")


@dataclass(frozen=True, slots=True)
class QueryFeatures:
    """The features of a query's text.

    Args:
        terms: (t,) uint32, its distinct terms, hashed.
        term_weight: (t,) float64, tokenizer.term_weight of each.
        script: what it is written in.
        stated: hash of its text without a final question mark, as MemoryColumns.fingerprint.
        asked: hash of its text with one.
        marked: whether it ends with a question mark.
        asks: how much of it is a question.
        asks_current_state: whether it asks how something is by now.
        content: what it has to look for.
        names: (p,) int64, hashes of its words and phrases that may name a speaker, as MemoryColumns.speaker.
        name_texts: p texts, those words and phrases.
        times: the times that it asks about.
        is_japanese: whether it has kana.
    """

    terms: NDArray[np.uint32]
    term_weight: Floats
    script: Script
    stated: int
    asked: int
    marked: bool
    asks: Question
    asks_current_state: bool
    content: Content
    names: Integers
    name_texts: tuple[str, ...]
    times: tuple[Interval, ...] = ()
    is_japanese: bool = False


def query_features(text: str, now: float = 0.0, zone: tzinfo = UTC) -> QueryFeatures:
    """The features of a query.

    Args:
        now: when it was asked, in seconds since 1970.
        zone: of the user.
    """
    distinct = list(dict.fromkeys(tokenizer.terms(text)))
    words, names = fingerprints(text), tuple(_phrases(text))
    return QueryFeatures(
        terms=hashed_terms(distinct),
        term_weight=np.array([tokenizer.term_weight(term) for term in distinct]),
        script=utterances.script(text),
        stated=hashed(words.stated),
        asked=hashed(words.asked),
        marked=words.marked,
        asks=utterances.asks(text),
        asks_current_state=asks_current_state(text),
        content=content(text),
        names=np.array([hashed(name) for name in names], np.int64),
        name_texts=names,
        times=times_asked_about(text, now, zone),
        is_japanese=utterances.is_japanese(text),
    )


def _phrases(text: str) -> set[str]:
    """Every phrase of as many words as a speaker's name may have, folded as utterances.speaker folds it."""
    words = _WORD.findall(_POSSESSIVE.sub("", unicodedata.normalize("NFKC", text).casefold()))
    lengths = range(1, utterances.MAX_NAME_WORDS + 1)
    return {" ".join(words[i : i + n]) for n in lengths for i in range(len(words) - n + 1)}
