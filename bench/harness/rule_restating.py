"""Sentences in the first person, restated in the third by rules, in English and Chinese."""

from __future__ import annotations

import re
from typing import Final

_UNINFLECTED: Final = (
    r"(?:can|could|will|would|should|might|may|must|had|did|was|went|got|saw|made|took|told|said|came|bought|met"
    r"|found|gave|thought|knew|left|kept|began|ran|\w+ed|\w+ly|just|never|always|also|still|even|\w+n't)"
)
#: In this order; {} is the person and, from the second time on, a pronoun.
_RULES: Final = tuple(
    (re.compile(pattern), form.replace("{}", "\0"))
    for pattern, form in (
        (r"\bI[’']m\b|\bI am\b", "{} is"),
        (r"\bI[’']ve\b|\bI have\b", "{} has"),
        (r"\bI[’']ll\b", "{} will"),
        (r"\bI[’']d\b", "{} would"),
        (r"\bI do\b", "{} does"),
        (r"\bI don[’']t\b", "{} doesn't"),
        (rf"\bI (?={_UNINFLECTED}\b)", "{} "),
        (r"\bI (\w+[^s\W])\b", r"{} \1s"),
        (r"\b[Mm]yself\b", "themselves"),
        (r"\bI\b|\b[Mm]e\b", "{}"),
        (r"\b[Mm]y\b|\b[Mm]ine\b", "{}'s"),
    )
)


def restated_in_english(sentence: str, person: str) -> str:
    """The sentence as one about the person, whose name comes once, and then "they"; before one without "I"."""
    for pattern, form in _RULES:
        sentence = pattern.sub(form, sentence)
    first, found, rest = sentence.partition("\0")
    if not found:
        return f"{person}: {sentence}"
    restated = first + person + rest.replace("\0's", "their").replace("\0", "they")
    return restated[0].upper() + restated[1:]


def restated_in_chinese(sentence: str, person: str) -> str:
    """The sentence as one about the person; one without 我 has the person before it."""
    first, found, rest = sentence.partition("我")
    return f"{first}{person}{rest.replace('我', '自己')}" if found else f"{person}：{sentence}"
