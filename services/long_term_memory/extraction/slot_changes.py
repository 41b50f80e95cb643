"""Changes of the profile's slots in an LLM's answer: only known slots, and only by the user's own messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from services.long_term_memory.extraction.answer_fields import (
    cleaned_text,
    evidence_in,
    in_order,
    normalized,
    numbers_in,
)
from services.long_term_memory.extraction.answer_json import NoAnswer
from services.long_term_memory.extraction.batch import Batch, Message, SlotChange, SlotValue
from services.long_term_memory.extraction.prompt import USER
from services.long_term_memory.extraction.secrets import holds_secret

MAX_VALUE_CHARS: Final = 500
#: The texts of a slot that is a list, such as `likes`; more are an LLM that repeats itself.
MAX_VALUES: Final = 50


def read_slot_changes(
    items: Sequence[Any], batch: Batch, slots: Sequence[str], dropped: Counter[str]
) -> list[SlotChange]:
    """The changes of slots in the items of an answer, one for each slot.

    Args:
        slots: of the profile, that may be changed.
        dropped: counts the changes that are left out, by reason.

    Raises:
        NoAnswer: an item has not the shape that was asked for.
    """
    own = {message.number for message in batch.messages if message.source == USER} if _one_person(batch) else set()
    changes: dict[str, SlotChange] = {}
    for item in items:
        if not isinstance(item, dict) or not isinstance(item.get("slot"), str):
            raise NoAnswer("a slot without a name")
        slot, value = item["slot"].strip(), _value(item.get("value"))
        said = evidence_in(batch, numbers_in(item.get("from"), "from"))
        evidence = tuple(number for number in said if number in own)
        reason = _forbidden(slot, value, evidence, slots)
        if reason:
            dropped[reason] += 1
            continue
        change = SlotChange(slot, value, evidence)
        changes[slot] = _merged(batch, changes[slot], change) if slot in changes else change
    return list(changes.values())


def _one_person(batch: Batch) -> bool:
    """Whether one person alone speaks beside the AI: in a room, "I" is not always the user whose profile it is."""
    return len({_speaker(message) for message in (*batch.before, *batch.messages) if message.source == USER}) <= 1


def _speaker(message: Message) -> str | None:
    return (message.speaker or {}).get("id") or (message.speaker or {}).get("name")


def _value(value: Any) -> SlotValue | None:
    if isinstance(value, list):
        texts = [cleaned_text(one, MAX_VALUE_CHARS, "slot's value") for one in value]
        return _distinct(texts)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return None if value is None else cleaned_text(value, MAX_VALUE_CHARS, "slot's value")


def _forbidden(slot: str, value: SlotValue | None, evidence: tuple[int, ...], slots: Sequence[str]) -> str | None:
    """Why a change is left out, or None."""
    if slot not in slots:
        return "unknown_slot"
    if not evidence:
        return "slot_without_evidence"
    if value is not None and not value:
        return "blank_slot"  # a slot that is to be emptied is null
    texts = value if isinstance(value, list) else [value or ""]
    return "secret" if any(holds_secret(text) or holds_secret(f"{slot}: {text}") for text in texts) else None


def _merged(batch: Batch, first: SlotChange, second: SlotChange) -> SlotChange:
    """One change of two of the same slot: lists are joined; of two texts, that of the later message."""
    if isinstance(first.value, list) or isinstance(second.value, list):
        texts = [*_texts(first.value), *_texts(second.value)]
        return SlotChange(first.slot, _distinct(texts), in_order(batch, {*first.evidence, *second.evidence}))
    order = {message.number: place for place, message in enumerate(batch.messages)}
    return first if order[first.evidence[-1]] > order[second.evidence[-1]] else second


def _distinct(texts: Sequence[str]) -> list[str]:
    """The texts without blanks and repeats, in order."""
    first: dict[str, str] = {}
    for text in texts:
        if text:
            first.setdefault(normalized(text), text)
    if len(first) > MAX_VALUES:
        raise NoAnswer(f"a slot of more than {MAX_VALUES} values")
    return list(first.values())


def _texts(value: SlotValue | None) -> list[str]:
    return value if isinstance(value, list) else [value] if value else []
