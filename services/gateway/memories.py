"""One memory by its id, for a caller that may see it."""

from __future__ import annotations

from keepsake_client.errors import RequestFailed
from keepsake_client.protocol import LTMResponse

from services.gateway.access import Caller
from services.gateway.app import Gateway


async def memory_of(
    gateway: Gateway, caller: Caller, user_id: str, memory_id: str, deadline_ms: int | None = None
) -> LTMResponse:
    """The response to a memory_get, of a memory that the caller's agent sees: a shared one, or one of its own.

    Args:
        user_id: a user that the caller may ask about, as `Caller.user_of` returns it.

    Raises:
        RequestFailed: with code `not_found`, also where the memory is another agent's.
        RequestTimeout, Unavailable, InvalidMessage
    """
    response = await gateway.ltm.memory_get(user_id, memory_id, deadline_ms=deadline_ms)
    owners = {memory.agent_id for memory in response.memories}
    if caller.agent is not None and not owners <= {None, caller.agent}:
        raise RequestFailed("not_found: the user has no memory of this id")
    return response
