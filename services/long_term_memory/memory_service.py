"""What users and the AI said, kept and found again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import openai
from mem0.exceptions import LLMError

from services.contract import Memory, MemoryUpdateMessage, encode_user_id
from services.errors import Unavailable
from services.long_term_memory.database import database_errors
from services.long_term_memory.mem0_memory import Mem0Memory


class MemoryService:
    """Index, add and search memories of one user at a time, on Mem0."""

    def __init__(self, mem0: Mem0Memory) -> None:
        self._mem0 = mem0

    def index(self, update: MemoryUpdateMessage) -> list[str]:
        """Keep what was said: as it was said, or as the facts that the LLM finds in it.

        Returns:
            The ids of the memories it became; none where the LLM found no fact.

        Raises:
            Unavailable: the database, the embedder or the LLM does not answer.
        """
        role = "assistant" if update.source == "ai" else "user"
        details = {"source": update.source, "session_id": update.session_id, "message_id": update.message_id}
        added = self._add(
            update.user_id,
            [{"role": role, "content": update.content}],
            _payload(update.timestamp, details, update.meta),
            infer=self._mem0.llm is not None,
        )
        return [memory["id"] for memory in added]

    def add(self, user_id: str, content: str, metadata: dict[str, Any], request_id: str, timestamp: float) -> Memory:
        """Keep one memory on request, always as it is worded.

        Args:
            metadata: anything; `session_id` in it says which session the memory belongs to.
            timestamp: seconds since 1970.

        Raises:
            Unavailable: the database or the embedder does not answer.
        """
        session = metadata.get("session_id")
        details = {"source": "user", "session_id": None if session is None else str(session), "request_id": request_id}
        payload = _payload(timestamp, details, metadata)
        (added,) = self._add(user_id, [{"role": "user", "content": content}], payload, infer=False)
        return _memory(added["id"], content, None, payload)

    def search(self, user_id: str, query: str, limit: int) -> list[Memory]:
        """The user's memories that answer `query` best, best first, never anyone else's.

        Args:
            limit: how many at the most, 1 to 100.

        Raises:
            Unavailable: the database or the embedder does not answer.
        """
        with database_errors(), _provider_errors():
            found = self._mem0.search(query, filters={"user_id": encode_user_id(user_id)}, top_k=limit)
        return [_memory(m["id"], m["memory"], m["score"], m.get("metadata") or {}) for m in found["results"]]

    def _add(
        self, user_id: str, messages: list[dict[str, str]], payload: dict[str, Any], *, infer: bool
    ) -> list[dict[str, Any]]:
        with database_errors(), _provider_errors():
            added = self._mem0.add(messages, user_id=encode_user_id(user_id), metadata=payload, infer=infer)
        return list(added["results"])


def _payload(timestamp: float, details: dict[str, Any], meta: dict[str, Any]) -> dict[str, Any]:
    """Mem0's metadata for one memory. What others sent stays in a drawer of its own, where it overwrites nothing."""
    known = {name: value for name, value in details.items() if value is not None}
    created_at = datetime.fromtimestamp(timestamp, UTC).isoformat()
    return {**known, "timestamp": timestamp, "created_at": created_at, "meta": meta}


def _memory(memory_id: str, content: str, score: float | None, payload: dict[str, Any]) -> Memory:
    known = {name: payload[name] for name in ("session_id", "message_id", "request_id") if name in payload}
    return Memory(
        id=memory_id,
        content=content,
        score=score,
        source=payload["source"],
        timestamp=payload["timestamp"],
        metadata={**payload["meta"], **known},
    )


@contextmanager
def _provider_errors() -> Iterator[None]:
    """Turn an embedder or LLM that fails for now into `Unavailable`; one that refuses for good stays what it is."""
    try:
        yield
    except (LLMError, openai.APIError) as error:
        cause = error.__cause__ if isinstance(error, LLMError) else error
        if isinstance(cause, openai.APIConnectionError | openai.RateLimitError | openai.InternalServerError):
            raise Unavailable(f"the provider does not answer: {type(cause).__name__}") from error
        raise
