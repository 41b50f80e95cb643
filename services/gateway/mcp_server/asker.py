"""The asker of a tool call: a caller bound to one user, which neither the model nor its arguments can change."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from starlette.requests import Request

from services.gateway.access import Caller, NotPermitted
from services.gateway.headers import AGENT, SESSION, USER, header


@dataclass(frozen=True)
class Asker:
    """Whose memory the tools are about.

    Args:
        caller: bound to the user and, where there is one, the character.
        user: the user.
        session: the conversation that goes on, if it is known.
    """

    caller: Caller
    user: str
    session: str | None = None

    @classmethod
    def of(cls, caller: Caller, user: str, agent: str | None, session: str | None = None) -> Self:
        """The asker for one user and character, bound to what the caller may ask about.

        Raises:
            NotPermitted: the caller may not ask about them.
        """
        bound = replace(caller, user=caller.user_of(user), agent=caller.agent_of(agent))
        return cls(bound, user, session)

    @classmethod
    def of_request(cls, caller: Caller, request: Request) -> Self:
        """The asker of an HTTP request: the user that its caller is bound to, or the one that a header names.

        Raises:
            NotPermitted: neither names one, or the caller may not ask about it.
            InvalidMessage: a header is not UTF-8, or there are several of one.
        """
        user = header(request, USER) or caller.user
        if user is None:
            raise NotPermitted(f"this key is bound to no user: name one by the header {USER}")
        return cls.of(caller, user, header(request, AGENT), header(request, SESSION))

    @property
    def agent(self) -> str | None:
        """The character whose memories are seen besides the shared ones."""
        return self.caller.agent
