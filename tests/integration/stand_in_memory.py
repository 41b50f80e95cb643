"""A stand-in for the long-term memory behind the proxy."""

from __future__ import annotations

from typing import Any

from tests.integration.responder import Responder


class StandInMemory(Responder):
    """Answers each `context` with what it knows of the user, and not at all where that is None."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        #: Parts of a context, by user.
        self.knows: dict[str, dict[str, Any] | None] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any] | None:
        parts = self.knows.get(request["user_id"], {})
        return None if parts is None else {"context_parts": parts}
