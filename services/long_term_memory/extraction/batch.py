"""The batch that one call of the LLM reads, and what was found in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import tzinfo

from services.long_term_memory.postgres.facts import FactKind
from services.long_term_memory.postgres.scope import Owner
from services.runtime.usage import Usage

__all__ = [
    "Batch",
    "Confirmation",
    "Extraction",
    "FoundFact",
    "KnownFact",
    "Message",
    "SlotChange",
    "SlotValue",
    "Usage",
]

#: The value of a slot of the profile.
SlotValue = str | list[str]


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a batch.

    Args:
        number: of its memory.
        memory_id: of its memory.
        source: `user` or `ai`.
        said_at: in seconds since 1970.
        session_id: where its publisher set one.
        speaker: who of several people said it: an `id`, a `name` or both.
        timezone: the IANA name in its `meta.timezone`, where it is a known one.
        revision: in the outbox; another one there means that it was corrected since.
        tokens: an estimate.
    """

    number: int
    memory_id: str
    content: str
    source: str
    said_at: float
    session_id: str | None = None
    speaker: dict[str, str] | None = None
    timezone: str | None = None
    revision: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class KnownFact:
    """A fact that is stored, and may be concerned by a batch."""

    number: int
    content: str
    kind: FactKind
    when: str | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Messages of one owner that one call reads.

    Args:
        user_number: of the owner's row.
        messages: the new ones, in order, at least one.
        before: the last ones before them, which were read already.
        facts: that may be concerned.
        slots: the `known` slots of the profile.
        zone: of the user; that of a message's own `timezone` goes before it.
    """

    owner: Owner
    user_number: int
    messages: Sequence[Message]
    before: Sequence[Message]
    facts: Sequence[KnownFact]
    slots: dict[str, SlotValue]
    zone: tzinfo


@dataclass(frozen=True, slots=True)
class FoundFact:
    """A fact in an answer, validated.

    Args:
        about: `user`, `ai`, or the name of whom it is about.
        evidence: numbers of messages of the batch, at least one.
        when: YYYY-MM-DD, YYYY-MM, YYYY, or two of them as A/B.
        replaces: numbers of stored facts.
    """

    text: str
    about: str
    evidence: tuple[int, ...]
    when: str | None
    kind: FactKind
    replaces: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Confirmation:
    """Messages of the batch that say what a stored fact says already."""

    fact_number: int
    evidence: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SlotChange:
    """A new value of a slot; None removes it.

    Args:
        evidence: numbers of the user's messages of the batch, at least one.
    """

    slot: str
    value: SlotValue | None
    evidence: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Extraction:
    """What one call found in a batch.

    Args:
        dropped: how many items of the answer were left out, by the reason (`answers.DROPPED`).
    """

    facts: Sequence[FoundFact]
    confirmations: Sequence[Confirmation]
    slots: Sequence[SlotChange]
    usage: Usage
    dropped: Mapping[str, int] = field(default_factory=dict)
