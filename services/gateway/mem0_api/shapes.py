"""Shapes of Mem0's answers: a memory and its history as Mem0's clients read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from keepsake_client.protocol import Memory, MemoryChange

from services.gateway.mem0_api.ids import MemoryId

#: The categories that memories have: what they are.
MESSAGE: Final = "message"
FACT: Final = "fact"
_ROLES: Final = {"user": "user", "ai": "assistant"}


def run_of(memory: Memory) -> str | None:
    """The session that a memory belongs to, which Mem0 calls a run."""
    session = memory.metadata.get("session_id")
    return None if session is None else str(session)


def categories_of(memory: Memory) -> tuple[str, ...]:
    """`message`, or `fact` and the kind of the fact."""
    kind = memory.metadata.get("fact_kind")
    return (memory.kind,) if memory.kind != FACT or not isinstance(kind, str) else (FACT, kind)


def result_of(memory: Memory, fields: Sequence[str] | None = None) -> dict[str, Any]:
    """A memory in Mem0's shape.

    Args:
        fields: of those, besides the id, only these; None for all.
    """
    result: dict[str, Any] = {
        "id": str(MemoryId(memory.id, memory.user_id)),
        "memory": memory.content,
        "user_id": memory.user_id,
        "agent_id": memory.agent_id,
        "app_id": memory.metadata.get("app_id"),
        "run_id": run_of(memory),
        "role": _ROLES[memory.source],
        "metadata": memory.metadata,
        "categories": list(categories_of(memory)),
        "created_at": memory.created_at,
        "updated_at": memory.updated_at,
    }
    if memory.score is not None:
        result["score"] = memory.score
    return result if fields is None else {name: result[name] for name in result if name == "id" or name in fields}


def added_of(memory: Memory) -> dict[str, Any]:
    """A memory in the answer to the `add` that it came by; earlier versions of Mem0 read its text below `data`."""
    return {**result_of(memory), "event": "ADD", "data": {"memory": memory.content}}


def history_of(memory: Memory, changes: Sequence[MemoryChange]) -> list[dict[str, Any]]:
    """The changes of a memory in Mem0's shape, oldest first."""
    memory_id = str(MemoryId(memory.id, memory.user_id))
    return [
        {
            "id": str(number),
            "memory_id": memory_id,
            "user_id": memory.user_id,
            "event": change.event,
            "old_memory": change.old_content,
            "new_memory": change.new_content,
            "created_at": change.changed_at,
            "updated_at": change.changed_at,
        }
        for number, change in enumerate(changes, start=1)
    ]
