"""Slots of the profile that extraction fills, under `known`; what a service wrote itself wins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import Connection
from psycopg.rows import TupleRow

from services.long_term_memory.extraction.batch import SlotValue
from services.long_term_memory.postgres.scope import Owner


@dataclass(frozen=True, slots=True)
class NewSlot:
    """A slot as extraction found it.

    Args:
        value: None removes it.
        evidence: ids of the memories of the messages that say it.
        said_at: of the last of them, in seconds since 1970.
    """

    slot: str
    value: SlotValue | None
    evidence: Sequence[str]
    said_at: float


def write_slots(connection: Connection[TupleRow], owner: Owner, slots: Sequence[NewSlot]) -> None:
    """Write slots into the owner's profile, in the transaction of the connection."""
    raise NotImplementedError


def read_slots(connection: Connection[TupleRow], owner: Owner) -> dict[str, SlotValue]:
    """The values of the `known` slots of the owner's profile."""
    raise NotImplementedError
