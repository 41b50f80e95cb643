"""Memories by their ids, as far as a caller may see them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepsake_client.errors import RequestFailed
from keepsake_client.protocol import LTMResponse

from services.gateway.access import Caller

if TYPE_CHECKING:
    from services.gateway.app import Gateway


async def memory_of(
    gateway: Gateway, caller: Caller, user_id: str, memory_id: str, deadline_ms: int | None
) -> LTMResponse:
    """The response to a `memory_get` of the user: the memory is shared, or one that the caller's character may see.

    Raises:
        RequestFailed: `not_found`, also where the memory belongs to a character that the caller is not for.
        RequestTimeout, Unavailable
    """
    response = await gateway.ltm.memory_get(user_id, memory_id, deadline_ms=deadline_ms)
    if caller.agent is not None and any(memory.agent_id not in (None, caller.agent) for memory in response.memories):
        raise RequestFailed("not_found: the user has no memory of this id")
    return response
