"""What a text has to look for: its words, an address or an id as it is, or nothing.

Greetings, thanks, assent, laughter and what a client writes in place of a picture hold no fact, and ask for none.
"""

from __future__ import annotations

import re
import unicodedata
from enum import IntEnum
from functools import cache
from typing import Final

from services.long_term_memory.retrieval import phatic, tokenizer


class Content(IntEnum):
    """What a text has to look for."""

    NOTHING = 0
    LITERAL = 1  # an address or an id: it means nothing, but may occur elsewhere
    WORDS = 2


#: An address, with or without its scheme.
_ADDRESS: Final = re.compile(
    r"(?:https?://|www\.)\S+|\b[\w-]+(?:\.[\w-]+)*\.(?:com|org|net|io|dev|app|cn|be)(?:/\S*)?(?!\w)"
)
#: A short name in brackets, which a client writes for what it cannot show: "[图片]", "<Media omitted>". With a colon it
#: is a caption, and longer it is a remark.
_PLACEHOLDER: Final = re.compile(r"[\[【<(（「［〔〈][^\]】>)）」］〕〉:：,，]{1,24}[\]】>)）」］〕〉]")
_PLACEHOLDER_WORDS: Final = 3
_RUNS: Final = re.compile(r"[a-z]+|\d+")
#: A machine's id: letters and digits in turn. "iphone15pro" has three runs, "om_x91aa0000f" six.
_ID_RUNS: Final = 4
_ID_CHARS: Final = 8
_EMOJI: Final = re.compile("[\U0001f1e6-\U0001faff\u2190-\u2bff]")
_ID: Final = re.compile(r"[a-z0-9]+(?:[_:.-][a-z0-9]+)*")
_LONG_NUMBER: Final = re.compile(r"[a-z]+[_-]\d{6,}")


def _entries(table: str) -> str:
    """One pattern of a table's entries, longer ones first: "good morning" goes before "good" does."""
    entries, depth, begin = [], 0, 0
    joined = "|".join(
        re.sub(r"^[a-z, ]+:", "", line).strip(" |")
        for line in unicodedata.normalize("NFKC", table).strip().splitlines()
    )
    for place, char in enumerate(joined + "|"):
        depth += (char in "([") - (char in ")]")
        if char == "|" and not depth:
            entries.append(joined[begin:place].strip())
            begin = place + 1
    return "|".join(sorted(entries, key=len, reverse=True))


_PHATIC: Final = re.compile(rf"(?<!\w)(?:{_entries(phatic.SPACED)})(?!\w)|(?:{_entries(phatic.UNSPACED)})")
_LATIN_NAME: Final = r"[^\W\d_\u3041-\u9fff]+(?: [^\W\d_\u3041-\u9fff]+)?"
_HAN_NAME: Final = r"[\u3400-\u9fff]{1,4}"
_GAP: Final = re.compile(r"[\W_]+")
_WORD: Final = re.compile(r"[\u3400-\u9fff]|[^\W_]+")
_TOKEN: Final = re.compile(r"\S+")
#: "ok so", "thanks for that": what may stand beside a phatic expression; a question word asks for something.
_FILLERS: Final = tokenizer.FUNCTION_WORDS - {
    *("what", "when", "where", "which", "who", "whom", "whose", "why", "how", "谁", "哪", "几", "啥", "咋", "多")
}


def content(text: str) -> Content:
    """What a text has to look for."""
    folded = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    first = next((found for found in _TOKEN.finditer(folded) if found[0] not in _FILLERS), None)
    if first and first[0].isalpha() and not _PHATIC.match(folded, first.start()):
        return Content.WORDS  # for speed: so it is with most texts
    shown = _PLACEHOLDER.sub(_unless_caption, folded)
    words = " ".join(word for word in _ADDRESS.sub(" ", shown).split() if not _is_id(word))
    if not _is_phatic(words):
        return Content.WORDS
    return Content.LITERAL if words != " ".join(shown.split()) or _EMOJI.search(words) else Content.NOTHING


def greets(sentence: str) -> bool:
    """Whether a sentence is a phatic expression and a name, as "Nice to meet you, Anna!" is, or 王老师好！"""
    bare = unicodedata.normalize("NFKC", sentence).lower().replace("’", "'").strip(" \n!¡.~,。、")
    return _greeting().fullmatch(bare) is not None


@cache
def _greeting() -> re.Pattern[str]:
    """A greeting and a name, in either order; compiled at its first use, not at each start."""
    return re.compile(
        rf"(?:{_PHATIC.pattern})(?:[\s,、]*{_LATIN_NAME}|{_HAN_NAME})?"
        rf"|(?:{_LATIN_NAME}[\s,、]*|{_HAN_NAME}[,、]?)(?:{_PHATIC.pattern})"
    )


def _is_phatic(text: str) -> bool:
    """Whether a text has phatic expressions alone, and function words beside them; True where it has no word."""
    place, phatic_at_all, words_at_all = 0, False, False
    while place < len(text):
        if found := _GAP.match(text, place):
            place = found.end()
            continue
        words_at_all = True
        if found := _PHATIC.match(text, place):
            phatic_at_all = True
        elif not (found := _WORD.match(text, place)) or found[0] not in _FILLERS:
            return False
        place = found.end()
        if place < len(text) and unicodedata.category(text[place]).startswith("M"):
            return False  # a vowel sign makes another word of it
    return phatic_at_all or not words_at_all


def _unless_caption(found: re.Match[str]) -> str:
    return found[0] if len(found[0].split()) > _PLACEHOLDER_WORDS else " "


def _is_id(word: str) -> bool:
    if len(word) < _ID_CHARS or not _ID.fullmatch(word):
        return False
    return len(_RUNS.findall(word)) >= _ID_RUNS or _LONG_NUMBER.fullmatch(word) is not None
