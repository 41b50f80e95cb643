"""What of the times in a query counts: those that it asks about, and whether it asks for the present.

Of several sentences those count that ask: "nice day today. What was her number?" asks about no time.
"""

from __future__ import annotations

import re
from datetime import tzinfo
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.long_term_memory.retrieval import tokenizer
from services.long_term_memory.retrieval.columns import Booleans, Floats, MemoryColumns, hashed_terms
from services.long_term_memory.retrieval.content import Content, content
from services.long_term_memory.retrieval.date_words import RELATIVE_DAYS
from services.long_term_memory.retrieval.dates import Interval, may_name_time, named_times
from services.long_term_memory.retrieval.utterances import Question, asks, sentences

_DAY_S: Final = 86_400.0
#: What happened then is told that day or soon after: the days after which a memory counts 1 / e of one of that time.
TOLD_AFTER_DAYS: Final = 4.0

#: The present, in the languages of tests/unit/test_query_times.py and some more; 后来, too: what was told last holds.
_CURRENT: Final = re.compile(
    r"\b(?:now|nowadays|currently|current|these days|at the moment|at present|presently|latest|most recent(?:ly)?"
    r"|so far|as of today|ahora|actual(?:es|mente)|hoy en d[ií]a|en este momento|maintenant|actuel\w*|en ce moment"
    r"|ces jours-ci|désormais|jetzt|derzeit\w*|aktuell\w*|momentan|zurzeit|heutzutage|agora|atual\w*|hoje em dia"
    r"|neste momento|adesso|attualmente|сейчас|теперь|нынче|нынешн\w*|на данный момент|в настоящее время|teraz|obecnie"
    r"|şimdi|şu an|momenteel|sekarang|hiện tại|hiện nay|bây giờ)\b"
    r"|现在|現在|现时|現時|眼下|如今|目前|当前|當前|现今|最新|至今|后来|後來|而家|今は|今の|今も|いま[はのも]|今では"
    r"|지금|요즘|현재|ตอนนี้|ปัจจุบัน|เดี๋ยวนี้|अभी|आजकल|फिलहाल|الآن|حاليا"
)


def times_asked_about(text: str, asked_at: float, zone: tzinfo) -> tuple[Interval, ...]:
    """The times of which a query asks, most often none.

    One that asks nothing says something of its own, "so tired today": of its times only the past ones count, "our trip
    last May".
    """
    if not may_name_time(text):
        return ()
    if asking := _asking(text):
        return tuple(dict.fromkeys(time for sentence in asking for time in named_times(sentence, asked_at, zone)))
    return tuple(time for time in named_times(text, asked_at, zone) if time[1] <= asked_at)


def asks_current_state(text: str) -> bool:
    """Whether a query asks for the present state of something: of two facts, the newer is meant."""
    if not _CURRENT.search(text.casefold()):
        return False
    return any(_CURRENT.search(sentence.casefold()) for sentence in _asking(text))


def said_then(columns: MemoryColumns, times: tuple[Interval, ...]) -> Floats:
    """How much each memory is of a time, (n,) float64: 1 for what was said, or names a day, within; less soon after."""
    said = columns.timestamp
    days_after = np.full(len(columns), np.inf)
    for begin, end in times:
        after = np.where(said < begin, np.inf, np.maximum(said - end, 0.0) / _DAY_S)
        days_after = np.minimum(days_after, after)
    then: Floats = np.exp(-days_after / TOLD_AFTER_DAYS)
    for days, terms in _relative_days().items():
        moved = said + days * _DAY_S
        may_name = ((then < 1.0) & _within(moved, times))[columns.term_rows]
        named = np.isin(columns.terms[may_name], terms)
        then[columns.term_rows[may_name][named]] = 1.0
    return then


def _asking(text: str) -> list[str]:
    """The sentences that ask; thanks and the like, which state nothing, do not."""
    return [one for one in sentences(text) if content(one) is Content.WORDS and asks(one) is not Question.NOTHING]


def _within(moments: Floats, times: tuple[Interval, ...]) -> Booleans:
    within = np.zeros(len(moments), np.bool_)
    for begin, end in times:
        within |= (moments >= begin) & (moments < end)
    return within


@cache
def _relative_days() -> dict[int, NDArray[np.uint32]]:
    """The hashed terms that name a day, by its distance in days from the one on which they are said."""
    return {
        days: hashed_terms([tokenizer.terms(word)[-1] for word in words]).astype(np.uint32)
        for days, words in RELATIVE_DAYS.items()
    }
