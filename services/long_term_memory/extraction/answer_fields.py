"""Fields of an LLM's answer: texts, numbers and evidence, checked and cleaned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keepsake_client.protocol import clean

from services.long_term_memory.extraction.answer_json import NoAnswer
from services.long_term_memory.extraction.batch import Batch


def normalized(text: str) -> str:
    """A text by which the same sentence is told, whatever its case, spaces and last punctuation."""
    return " ".join(text.casefold().split()).rstrip(" .!。！")


def cleaned_text(value: Any, most: int, name: str) -> str:
    """A text of one line, as PostgreSQL can store it; empty for None.

    Raises:
        NoAnswer: it is no text, or too long.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise NoAnswer(f"a {name} that is no text")
    text = " ".join(str(clean(value)).split())
    if len(text) > most:
        raise NoAnswer(f"a {name} of more than {most} characters")
    return text


def numbers_in(value: Any, name: str) -> list[int]:
    """Whole numbers: one, or a list of them, which some LLMs write as strings.

    Raises:
        NoAnswer: there is something else.
    """
    numbers = []
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, float) and one.is_integer():
            numbers.append(int(one))
        elif isinstance(one, int) and not isinstance(one, bool):
            numbers.append(one)
        elif isinstance(one, str) and one.isascii() and one.isdigit() and len(one) < 10:
            numbers.append(int(one))
        else:
            raise NoAnswer(f"{name} that is no number")
    return numbers


def evidence_in(batch: Batch, places: Sequence[int]) -> tuple[int, ...]:
    """The numbers of the messages at these places, from 1; places where there is none are left out."""
    count = len(batch.messages)
    return in_order(batch, {batch.messages[place - 1].number for place in places if 1 <= place <= count})


def in_order(batch: Batch, numbers: set[int]) -> tuple[int, ...]:
    """Numbers of messages in the order of the batch."""
    return tuple(message.number for message in batch.messages if message.number in numbers)
