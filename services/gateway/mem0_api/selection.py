"""Selections: which memories a request of Mem0's is about, in terms of the wire, and the walk through them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Final, Self

from keepsake_client.errors import InvalidMessage
from keepsake_client.protocol import Memory
from keepsake_client.requests import MAX_ALSO

from services.gateway.access import Caller
from services.gateway.app import Gateway
from services.gateway.mem0_api.filters import Group

#: Memories that one request looks through, for those that meet a filter and for a page far behind.
MAX_WALKED: Final = 10_000
#: How long to wait for an answer of the wire. Mem0's clients wait for five minutes.
DEADLINE_MS: Final = 10_000

NO_USER: Final = (
    "whose memories? Keepsake's belong to a user: name one by user_id, alone or below AND, or several of a search by"
    ' {"user_id": {"in": […]}}; `*`, OR and NOT name none'
)


@dataclass(frozen=True)
class Selection:
    """The memories that a request is about.

    Args:
        users: whose; several of a search alone.
        agent: besides the shared ones only those of this character; None for those of all.
    """

    users: tuple[str, ...]
    agent: str | None
    filters: Group

    @classmethod
    def of(cls, filters: Group, caller: Caller) -> Self:
        """What a filter selects, as far as the caller may see.

        Raises:
            InvalidMessage: it names no user, or too many.
            NotPermitted: it names a user, or an agent, that the caller may not ask about.
        """
        agents = [each.value for each in filters.required() if each.name == "agent_id" and each.operator == "eq"]
        agent = caller.agent_of(next((agent for agent in agents if agent is not None), None))
        return cls(_users(filters, caller), agent, filters)

    @property
    def user(self) -> str:
        """The one user.

        Raises:
            InvalidMessage: there are several.
        """
        if len(self.users) > 1:
            raise InvalidMessage("user_id: only a search may be of several users")
        return self.users[0]

    def scope(self) -> dict[str, Any]:
        """The scope of the wire: a filter that names no agent leaves none out."""
        return {"all_agents": True} if self.agent is None else {"agent_id": self.agent}

    async def walk(self, gateway: Gateway, most: int | None = MAX_WALKED) -> AsyncGenerator[Memory]:
        """The user's memories that meet the filter, newest first.

        Args:
            most: how many to look through, of all; None for no limit.

        Raises:
            InvalidMessage: there are more to look through.
            RequestTimeout, RequestFailed, Unavailable
        """
        walked = 0
        async for page in gateway.ltm.memory_pages(
            self.user,
            filters=self.filters.wire(),
            agent_id=self.agent,
            all_agents=self.agent is None,
            deadline_ms=DEADLINE_MS,
        ):
            if most is not None and walked >= most:
                raise InvalidMessage(
                    f"more than {most:,} memories would have to be looked through: narrow the filter by run_id or"
                    " created_at, or ask for an earlier page"
                )
            walked += len(page)
            for memory in page:
                if self.filters.meets(memory):
                    yield memory


def _users(filters: Group, caller: Caller) -> tuple[str, ...]:
    """The users that a filter requires, or the one that the caller's key is bound to."""
    for each in filters.required():
        if each.name == "user_id" and each.operator == "eq" and each.value is not None:
            return (caller.user_of(each.value),)
        if each.name == "user_id" and each.operator == "in" and each.value:
            if len(each.value) > MAX_ALSO + 1 or None in each.value:
                raise InvalidMessage(f"user_id: a search is of at most {MAX_ALSO + 1} users")
            return tuple(dict.fromkeys(caller.user_of(user) for user in each.value))
    if caller.user is None:
        raise InvalidMessage(NO_USER)
    return (caller.user,)
