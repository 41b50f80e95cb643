"""What the chat service asks of the long-term memory before a reply."""

from __future__ import annotations

import math
import time
from typing import Any

import structlog
from keepsake_client import AsyncClient, Context
from keepsake_client.errors import Disabled, KeepsakeError, RequestFailed, UnknownRequestType
from keepsake_client.protocol import ContextParts, LTMResponse, MemoryUpdateMessage, RequestType

#: Adapters of a release that knows no contexts are asked for searches, and for a context again after so long.
SEARCHES_FOR_S = 60.0

log = structlog.get_logger()


class ContextAsker:
    """Asks for the context of a reply or, where the adapters know none, for a search.

    Args:
        memory_limit: the most memories to search for.
        max_chars: of the context.
    """

    def __init__(self, ltm: AsyncClient, memory_limit: int, max_chars: int) -> None:
        self._ltm = ltm
        self._memory_limit = memory_limit
        self._max_chars = max_chars
        self._searches_until = -math.inf

    async def ask(self, message: MemoryUpdateMessage, request_id: str) -> tuple[Context, str]:
        """What is remembered for the reply to a message, and `ok` or the code of why there is nothing."""
        try:
            response = await self._response(message, request_id)
        except Disabled as error:
            return Context(), error.code
        except KeepsakeError as error:
            # Not its message: the reason in a response may quote contents.
            log.warning(
                "search_failed",
                user_id=message.user_id,
                message_id=message.message_id,
                request_id=request_id,
                reason=error.code,
            )
            return Context(), error.code
        parts = response.context_parts or ContextParts()
        return Context(response.context or "", parts, response.memories, bool(response.partial)), "ok"

    async def _response(self, message: MemoryUpdateMessage, request_id: str) -> LTMResponse:
        if time.monotonic() < self._searches_until:
            return await self._request("search", message, request_id, {})
        asked = {"session_id": message.session_id, "max_chars": self._max_chars}
        try:
            return await self._request("context", message, request_id, asked)
        except RequestFailed as error:
            if error.code != UnknownRequestType.code:
                raise
        # An adapter refuses at once, so that this reply has time for the search, too.
        self._searches_until = time.monotonic() + SEARCHES_FOR_S
        log.info("context_unknown", searches_for_s=SEARCHES_FOR_S)
        return await self._request("search", message, f"{request_id}-search", {})

    async def _request(
        self, request_type: RequestType, message: MemoryUpdateMessage, request_id: str, more: dict[str, Any]
    ) -> LTMResponse:
        speaker = message.speaker and message.speaker.model_dump(exclude_none=True)
        data = {
            "query": message.content,
            "limit": self._memory_limit,
            **more,
            "agent_id": message.agent_id,
            "speaker": speaker,
        }
        given = {name: value for name, value in data.items() if value is not None}
        return await self._ltm.request(request_type, message.user_id, given, request_id=request_id)
