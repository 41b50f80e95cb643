"""MemoryManagement: list, show, correct and delete the memories of one user."""

from __future__ import annotations

from dataclasses import dataclass

from keepsake_client.protocol import Memory, MemoryChange, MemoryDeleteData, MemoryListData, MemoryUpdateData

from services.long_term_memory.postgres.store import MemoryStore
from services.long_term_memory.storing import MemoryWriter


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a list.

    Args:
        next_cursor: of the next page; None for the last one.
    """

    memories: list[Memory]
    next_cursor: str | None


class MemoryManagement:
    """List, show, correct and delete the memories of one user at a time."""

    def __init__(self, store: MemoryStore, writer: MemoryWriter) -> None:
        self._store = store
        self._writer = writer

    def page(self, user_id: str, query: MemoryListData) -> Page:
        """A page of the user's memories, in the order of time."""
        raise NotImplementedError

    def get(self, user_id: str, memory_id: str) -> tuple[Memory, list[MemoryChange]]:
        """One of the user's memories, and every change of it, oldest first."""
        raise NotImplementedError

    def update(self, user_id: str, update: MemoryUpdateData, at: float) -> Memory:
        """Correct the content or the metadata of a memory; idempotent."""
        raise NotImplementedError

    def delete(self, user_id: str, deletion: MemoryDeleteData, at: float) -> int:
        """Delete memories, and the events among those that arrived before `at`; how many memories there were."""
        raise NotImplementedError
