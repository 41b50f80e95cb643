"""Wordings: regular expressions in many languages, of which few are tried on a sentence."""

from __future__ import annotations

import re
import unicodedata


class Wordings:
    """Ways to say something.

    Args:
        wordings: for each, texts of which a sentence must contain one, joined by "|"; and a regular expression.
    """

    def __init__(self, *wordings: tuple[str, str]) -> None:
        self._wordings = [(_nfkc(cues).split("|"), re.compile(_nfkc(expression))) for cues, expression in wordings]

    def occur_in(self, sentence: str) -> bool:
        """Whether one of them occurs in a sentence that is folded by NFKC and case."""
        for cues, expression in self._wordings:  # a loop: as a generator it takes twice as long
            for cue in cues:
                if cue in sentence:
                    if expression.search(sentence):
                        return True
                    break
        return False


def _nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", text)
