"""Portability: everything that is kept of a user as records, and records back into memories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.storing import MemoryWriter


@dataclass(frozen=True, slots=True)
class ImportOutcome:
    """Numbers of imported memories: new ones, those that were there, and those that stay deleted."""

    new: int
    known: int
    deleted: int


class Portability:
    """Exports and imports one user at a time."""

    def __init__(self, store: MemoryStore, writer: MemoryWriter) -> None:
        self._store = store
        self._writer = writer

    def export(self, user_id: str, limit: int, cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
        """A page of records, and the cursor of the next one."""
        raise NotImplementedError

    def import_records(
        self, user_id: str, records: Sequence[dict[str, Any]], *, restore_deleted: bool
    ) -> ImportOutcome:
        """Store records; idempotent."""
        raise NotImplementedError
