"""A memory by its id, as far as a caller may reach it."""

from __future__ import annotations

from keepsake_client.errors import KeepsakeError
from keepsake_client.protocol import LTMResponse

from services.gateway.access import Caller
from services.gateway.app import Gateway


class NotFound(KeepsakeError):
    """The user has no memory of this id, or the key is for another agent's."""

    code = "not_found"


async def memory_of(
    gateway: Gateway, caller: Caller, user_id: str, memory_id: str, deadline_ms: int | None
) -> LTMResponse:
    """The response to a `memory_get`: the memory, shared or of the caller's agent, and its history.

    Raises:
        NotFound: there is none that the caller may see.
    """
    response = await gateway.ltm.memory_get(user_id, memory_id, deadline_ms=deadline_ms)
    if caller.agent is not None and response.memories[0].agent_id not in (None, caller.agent):
        raise NotFound("the user has no memory of this id")
    return response
