"""Times that a text names, as intervals: "last Friday", 去年春节, "im Mai", read at a time and in a time zone.

`named_times` first looks whether a text has any word of time, which most have not. Where it has, its words become
symbols (`date_words`), the same ones in every language, and one grammar reads these. A time that may be meant in two
ways, as "on Monday" the last one or the next, is both.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime, timedelta, tzinfo
from typing import Final

from services.long_term_memory.digest_cache import cached_by_digest
from services.long_term_memory.retrieval import han
from services.long_term_memory.retrieval.date_grammar import Reading
from services.long_term_memory.retrieval.date_phrases import replace_phrases
from services.long_term_memory.retrieval.date_words import ANCHORS, OTHERS, SKIPPED
from services.long_term_memory.retrieval.periods import Span, month_after

#: Seconds since 1970, from the first to before the second.
Interval = tuple[float, float]

#: Of a longer text only this much is read.
MAX_CHARS: Final = 500
#: Memories whose dates a process remembers, with at most that much text of each: the same ones are found again and
#: again, and to read one takes 0.06 ms.
CACHED_MEMORIES: Final = 4_096
#: A text of another year names no time: its last year or its next might lie beyond the calendar.
_FIRST_YEAR: Final = 1900
_LAST_YEAR: Final = 2100

_ACCENT: Final = re.compile("(?<=[a-z])[\u0300-\u036f]+")
_HAN: Final = re.compile("[\u3400-\u9fff]")
_LETTERS: Final = re.compile(r"[^\W\d_]+")
#: Without one of these a text has no phrase, but for those that hold a word of ANCHORS.
_SIGN: Final = re.compile(
    r"[年月周天日曜昨今后前节旦夕庆期拜中秋端宵圣过]|おと|ゆう|きの|あし|あさ|クリ|ハロ|ここ"
    r"|\d ?[년월주일달]|[년월주달일간틀] ?전|어제|그제|그저께|어젯|내일|모레|오늘|요일|[작내]년|올해|지난|저번"
    r"|이번|다음|최근|봄|여름|가을|겨울|추석|설날|크리스|성탄|연말"
    r"|\d[-/.]\d|(?:19|20)\d\d|\bn(?:ew year|ouvel an)|\bano n|\bq[1-4]\b|feira|(?:segund|terc|quart|quint|sext)a pass"
    r"|manana|morgen|week-end|festival"
)
_TOKEN: Final = re.compile(r"[A-Z]+-?\d*|[^\W\d_A-Z]+|\d+(?:(?:st|nd|rd|th|er|o|a)(?![^\W\d_]))?|[^\s\w]")
_WORDS: Final = {**OTHERS, **ANCHORS}


def named_times(text: str, asked_at: float, zone: tzinfo) -> tuple[Interval, ...]:
    """The times that a text names, most texts none; total: it raises for no text.

    Args:
        asked_at: the present of the text, in seconds since 1970.
        zone: in which its days begin and end.
    """
    named = (span for spans in _spans(text, asked_at, zone) for span in spans)
    return tuple(dict.fromkeys((_seconds(begin, zone), _seconds(end, zone)) for begin, end in named))


def iso_dates(text: str, said_at: float, zone: tzinfo) -> list[str]:
    """The days, months, years and intervals of days that a text names and that can be meant in one way only.

    As in ISO 8601: "2024-05-16", "2024-05", "2023", "2024-05-06/2024-05-12" with both ends included.
    """
    return list(_iso_dates(text[:MAX_CHARS], said_at, zone))


@cached_by_digest(CACHED_MEMORIES)
def _iso_dates(text: str, said_at: float, zone: tzinfo) -> tuple[str, ...]:
    certain = (spans[0] for spans in _spans(text, said_at, zone) if len(spans) == 1)
    return tuple(dict.fromkeys(_iso(begin, end) for begin, end in certain))


def _spans(text: str, asked_at: float, zone: tzinfo) -> list[list[Span]]:
    """For each time that is named, what it may mean."""
    if not may_name_time(text):
        return []
    folded = _folded(text[:MAX_CHARS])
    try:
        now = datetime.fromtimestamp(asked_at, zone).replace(tzinfo=None)
        if not _FIRST_YEAR <= now.year <= _LAST_YEAR:
            return []
        return Reading(now).spans(_symbols(folded))
    except (ValueError, OverflowError, OSError):  # beyond the calendar
        return []


def _seconds(moment: datetime, zone: tzinfo) -> float:
    return moment.replace(tzinfo=zone).timestamp()


def _iso(begin: datetime, end: datetime) -> str:
    last = end - timedelta(microseconds=1)
    first_of = (begin.month, begin.day) == (1, 1), begin.day == 1
    if first_of[0] and end == datetime(begin.year + 1, 1, 1):
        return f"{begin:%Y}"
    if first_of[1] and end == month_after(begin):
        return f"{begin:%Y-%m}"
    return f"{begin:%Y-%m-%d}" if begin.date() == last.date() else f"{begin:%Y-%m-%d}/{last:%Y-%m-%d}"


def _folded(text: str) -> str:
    """Case-folded, half-width, the Latin script without accents, Chinese simplified."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    if folded.isascii():
        return folded
    folded = unicodedata.normalize("NFC", _ACCENT.sub("", unicodedata.normalize("NFKD", folded))).replace("ё", "е")
    return han.fold(folded) if _HAN.search(folded) else folded


def may_name_time(text: str) -> bool:
    """Whether a text has a word of time; the times of one that has none are not looked for."""
    folded = _folded(text[:MAX_CHARS])
    return not ANCHORS.keys().isdisjoint(_LETTERS.findall(folded)) or bool(_SIGN.search(folded))


def _symbols(folded: str) -> str:
    """The text as symbols, each with a space after it; `_` is any other word."""
    words = (_symbol(word) for word in _TOKEN.findall(replace_phrases(folded)) if word not in SKIPPED)
    return "".join(f"{word} " for word in words).replace("P P ", "P ")


def _symbol(word: str) -> str:
    if word[0].isdecimal():
        word = word.rstrip("stndrheoa")
        if len(word) == 4 and word[:2] in {"19", "20"}:
            return f"Y{word}"
        return f"N{int(word)}" if len(word) < 3 else "_"
    if word[0].isascii() and word[0].isupper():
        return word
    return "TO" if word == "-" else _WORDS.get(word, "_")
