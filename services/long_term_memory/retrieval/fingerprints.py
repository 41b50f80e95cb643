"""Fingerprint of a text: equal for two texts that say the same.

It folds case, width, white space and final punctuation, and nothing that carries meaning in any script: signs, digits,
vowel signs and emoji stay. A final question mark stays too, because a question is not the statement in its words.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final, NamedTuple

#: Question marks of Latin (NFKC has made the full-width one of it), Arabic, Ethiopic, Vai, Coptic, Armenian script.
_QUESTION_MARKS: Final = frozenset("?؟፧꘏⳺՞⸮")
_GREEK_QUESTION: Final = re.compile(r"[\u0370-\u03ff\u1f00-\u1fff]\s*;[.!\s]*$")  # NFKC makes a semicolon of its mark
#: Full stops and the like: Unicode's Sentence_Terminal of scripts that are in use, and the comma that a chat breaks
#: off with. A percent sign, a plus or a currency is none.
_TERMINATORS: Final = re.escape(".!,:;。、॥।۔։።၊။។៕᙮᠃᠉෴꓿‼⁉¡¿")
_FINAL: Final = re.compile(rf"[{_TERMINATORS}{re.escape(''.join(sorted(_QUESTION_MARKS)))}\s]+$")
_FIRST: Final = re.compile(r"^[¡¿\s]+")
#: Superscripts, subscripts, fractions and numbers in circles: NFKC would make 102 of 10².
_RAISED: Final = re.compile(
    "["
    + "".join(
        chr(code)
        for code in range(0x3300)
        if unicodedata.decomposition(chr(code)).startswith(("<super", "<sub", "<fraction", "<circle"))
    )
    + "]"
)
#: Shown as nothing: variation selectors, soft hyphens, zero-width spaces and marks of direction. The joiners of Persian
#: words and of emoji families stay.
_INVISIBLE: Final = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufe0e\ufe0f\ufeff]")
#: Chinese and Japanese have no spaces; a chat has them by chance.
_CHANCE_SPACE: Final = re.compile(r"(?<=[\u3041-\u30ff\u3400-\u9fff]) | (?=[\u3041-\u30ff\u3400-\u9fff])")
_QUOTES: Final = str.maketrans("‘’“”", "''\"\"")


class Fingerprints(NamedTuple):
    """Fingerprints of a text and of its forms, as statement and as question.

    Args:
        stated: the text without a final question mark.
        asked: the text with one.
        marked: whether it ends with one.
    """

    stated: str
    asked: str
    marked: bool

    @property
    def own(self) -> str:
        """The fingerprint of the text itself."""
        return self.asked if self.marked else self.stated


def fingerprints(text: str) -> Fingerprints:
    """The fingerprints of a text."""
    folded = _fold(text)
    final = _FINAL.search(folded)
    stated = _FIRST.sub("", folded if final is None else folded[: final.start()])
    if not stated:  # a text of marks alone is no other than itself
        return Fingerprints(folded, f"{folded}?", marked=False)
    marked = final is not None and (
        not _QUESTION_MARKS.isdisjoint(final[0]) or _GREEK_QUESTION.search(folded) is not None
    )
    return Fingerprints(stated, f"{stated}?", marked)


def fingerprint(text: str) -> str:
    """The text as it is compared with others; equal for two that say the same."""
    return fingerprints(text).own


def _fold(text: str) -> str:
    """The text in one case, width, spelling of quotes and of white space."""
    if text.isascii():
        return " ".join(text.lower().split())
    marked = _RAISED.sub(r"^\g<0>", text)  # 10² becomes 10^2
    # Lower case, not casefold: that makes Massen (crowds) of Maßen (moderation).
    folded = unicodedata.normalize("NFKC", _INVISIBLE.sub("", marked)).lower().translate(_QUOTES)
    return _CHANCE_SPACE.sub("", " ".join(folded.split()))
