"""Facts by rules, to measure the ranking with: sentences in the first person, restated in the third."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from keepsake_client.protocol import MemoryUpdateMessage

from services.long_term_memory.retrieval import utterances
from services.long_term_memory.retrieval.utterances import Question, Script

#: Words, or Chinese characters: shorter sentences tell nothing that stands alone.
_MIN_WORDS: Final = 5
_MIN_CHARS: Final = 7
_SPEAKER: Final = re.compile(r"^([A-Z][\w' -]{0,30}): ")
_CAPTION: Final = re.compile(r" \[photo: .*\]$", re.DOTALL)
_SENTENCE: Final = re.compile(r"(?<=[.!?。！？])\s*|\n+")
_FIRST_PERSON: Final = re.compile(r"\b(?:I|my|me|mine|we|our|us|myself)\b", re.IGNORECASE)
_UNINFLECTED: Final = (
    r"(?:can|could|will|would|should|might|may|must|had|did|was|went|got|saw|had|made|took|told|said|came|bought|met"
    r"|found|gave|thought|knew|left|kept|began|ran|\w+ed|\w+ly|just|never|always|also|still|even|\w+n't)"
)
#: In this order; {} is the person and, from the second time on, a pronoun.
_RULES: Final = (
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


@dataclass(frozen=True)
class Restated:
    """A fact, and the message that it was found in."""

    text: str
    message: MemoryUpdateMessage


def facts_of(messages: list[MemoryUpdateMessage]) -> list[Restated]:
    """The facts of a user's messages; of the AI's there are none."""
    return [Restated(text, message) for message in messages if message.source == "user" for text in _facts(message)]


def _facts(message: MemoryUpdateMessage) -> Iterator[str]:
    text = _CAPTION.sub("", message.content)
    named = _SPEAKER.match(text)
    name = named[1] if named else None
    if utterances.script(text) is Script.HAN:
        if utterances.is_japanese(text):
            return
        for sentence in _SENTENCE.split(text):
            if len(sentence) >= _MIN_CHARS and utterances.asks(sentence) is Question.NOTHING:
                yield _in_chinese(sentence, name or "用户")
        return
    for sentence in _SENTENCE.split(text[named.end() :] if named else text):
        if len(sentence.split()) < _MIN_WORDS or not _FIRST_PERSON.search(sentence):
            continue
        if utterances.asks(sentence) is Question.NOTHING:
            yield _in_english(sentence, name or "the user")


def _in_chinese(sentence: str, person: str) -> str:
    first, found, rest = sentence.partition("我")
    return f"{first}{person}{rest.replace('我', '自己')}" if found else f"{person}：{sentence}"


def _in_english(sentence: str, person: str) -> str:
    for pattern, form in _RULES:
        sentence = re.sub(pattern, form.replace("{}", "\0"), sentence)
    first, _, rest = sentence.partition("\0")
    restated = first + person + rest.replace("\0's", "their").replace("\0", "they")
    return restated[0].upper() + restated[1:]
