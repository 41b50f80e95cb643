"""Access: who asks, and what a key or token permits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from keepsake_client.errors import InvalidMessage, KeepsakeError


class Right(StrEnum):
    """What a key may permit, as `ltm key create --may` names it."""

    SEARCH = "search"  # search, context
    READ = "read"  # list and get memories, get the profile
    TELL = "tell"  # events: what was said
    WRITE = "write"  # add and correct memories, update the profile
    DELETE = "delete"  # delete memories
    FORGET = "forget"  # everything of a user
    EXPORT = "export"
    IMPORT = "import"
    CHAT = "chat"  # the OpenAI-compatible proxy, with the search and the events that it makes
    TRACE = "trace"
    METRICS = "metrics"
    OPERATE = "operate"  # replay and drop dead letters


ALL_RIGHTS: Final = frozenset(Right)
#: Those of a token that names none: what a chat program needs.
TOKEN_RIGHTS: Final = (Right.SEARCH, Right.READ, Right.TELL, Right.CHAT)


#: Rights by role, as `ltm key create --role` names it: who looks at everything and changes nothing, who runs the stack
#: and sees no contents, who does everything.
ROLES: Final = {
    "viewer": (Right.SEARCH, Right.READ, Right.TRACE, Right.METRICS),
    "operator": (Right.TRACE, Right.METRICS, Right.OPERATE),
    "full": tuple(Right),
}


class Unauthorized(KeepsakeError):
    """The request has no key or token, or one that is unknown, revoked or expired."""

    code = "unauthorized"


class NotPermitted(KeepsakeError):
    """The key or token does not permit this: not this right, user or agent."""

    code = "forbidden"


@dataclass(frozen=True)
class Caller:
    """Who asks: the bearer of a key or token, or anyone where the gateway is open.

    Args:
        name: of the key, for the log and the rate limit; `open` without one.
        rights: what it may do.
        user: the only user that it may ask about; None for others, see `users`.
        users: the prefix of the ids of users that it may ask about; "" for all.
        agent: the only character that it may ask about; None for all.
        rate: requests a second; 0 for any number.
        on_refusal: called with the error of each request that is not permitted.
    """

    name: str
    rights: frozenset[Right]
    user: str | None = None
    users: str = ""
    agent: str | None = None
    rate: float = 0
    on_refusal: Callable[[NotPermitted], None] = field(default=lambda _: None, compare=False, repr=False)

    def check(self, right: Right) -> None:
        """Check a right.

        Raises:
            NotPermitted: the key does not have it.
        """
        if right not in self.rights:
            raise self._refusal(f"this key does not permit {right}: it needs `ltm key create --may {right}`")

    def user_of(self, user_id: str | None) -> str:
        """The user that a request is about: the one that it names, or the one that the key is bound to.

        Raises:
            NotPermitted: the key is not for this user.
            InvalidMessage: neither names one.
        """
        if user_id is None:
            if self.user is None:
                raise InvalidMessage("user_id: is needed, as no key or token says whose memory it is")
            return self.user
        if user_id != self.user if self.user is not None else not user_id.startswith(self.users):
            raise self._refusal("this key is not for this user")
        return user_id

    def prefix_of(self, prefix: str) -> str | None:
        """What the ids of a list of users begin with, of those that the key is for; None where that is none."""
        bound = self.users if self.user is None else self.user
        if bound.startswith(prefix):
            return bound
        return prefix if self.user is None and prefix.startswith(bound) else None

    def agent_of(self, agent_id: str | None, *, all_agents: bool = False) -> str | None:
        """The character that a request is about: the one that it names, or the one that the key is bound to.

        Raises:
            NotPermitted: the key is not for this character, or not for all.
        """
        if self.agent is None:
            return agent_id
        if all_agents or agent_id not in (None, self.agent):
            raise self._refusal("this key is for one agent only")
        return self.agent

    def _refusal(self, reason: str) -> NotPermitted:
        error = NotPermitted(reason)
        self.on_refusal(error)
        return error


#: Where no key is needed: the gateway listens on the loopback interface and there are none.
OPEN: Final = Caller("open", ALL_RIGHTS)
