"""Scope: whose memories a statement is about. Every statement that reads or deletes memories takes one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from keepsake_client.protocol import encode_user_id

#: The agent of what is shared by all characters.
SHARED: Final = ""

#: What an owner's memories are: messages (and what was added by request), facts, or facts that others superseded.
Kind = Literal["message", "fact", "superseded"]
MESSAGES: Final[tuple[Kind, ...]] = ("message",)
#: In the order of a deletion: what follows another is counted before that one is deleted.
ALL_KINDS: Final[tuple[Kind, ...]] = ("superseded", "fact", "message")

#: The owners of a scope, as a condition on `users`; its parameters are `Scope.values`.
OWNERS: Final = (
    "user_id = ANY(%(users)b::text[]) AND (%(all_agents)b OR agent_id = '' OR agent_id = %(agent)b::text)"
    " AND kind = ANY(%(kinds)b::text[])"
)
#: The numbers of these owners, as an expression.
OWNER_NUMBERS: Final = f"ANY(ARRAY(SELECT number FROM users WHERE {OWNERS}))"  # noqa: S608 - constants

#: The number of an owner of messages, as an expression; its parameters are the fields of `Owner`.
OWNER_NUMBER: Final = (
    "(SELECT number FROM users WHERE user_id = %(user)s AND agent_id = %(agent)s AND kind = 'message')"
)
#: The hash of an owner's user, by which `memories` is partitioned, as an expression with the same parameters.
USER_HASH: Final = "hashtextextended(%(user)s, 0)"


class Owner(NamedTuple):
    """The owner of memories: a user, and a character or `SHARED`; encoded ids."""

    user: str
    agent: str = SHARED


@dataclass(frozen=True, slots=True)
class Scope:
    """The owners of memories: users, and of each the shared memories, those of one character too, or of all.

    Args:
        users: encoded ids; the first is the user who asks.
        agent: the encoded id of a character; `SHARED` for none.
        all_agents: whether it is all characters.
        kinds: of memories.
    """

    users: tuple[str, ...]
    agent: str = SHARED
    all_agents: bool = False
    kinds: tuple[Kind, ...] = MESSAGES

    @classmethod
    def of(
        cls,
        user_id: str,
        agent_id: str | None = None,
        *,
        all_agents: bool = False,
        also: Sequence[str] = (),
        kinds: tuple[Kind, ...] = MESSAGES,
    ) -> Scope:
        """The scope of a request, whose ids are as they came.

        Args:
            agent_id: a character's; None for the shared memories alone.
            also: further users.
            kinds: of memories.
        """
        users = dict.fromkeys(encode_user_id(user) for user in (user_id, *also))
        return cls(tuple(users), encode_agent_id(agent_id), all_agents, kinds)

    @property
    def owner(self) -> Owner | None:
        """The only owner, whatever the kinds; None where there may be several. Most searches are of one user's."""
        return None if len(self.users) > 1 or self.agent or self.all_agents else Owner(self.users[0])

    @property
    def values(self) -> dict[str, Any]:
        """The parameters of `OWNERS`."""
        return {
            "users": list(self.users),
            "agent": self.agent,
            "all_agents": self.all_agents,
            "kinds": list(self.kinds),
        }


def encode_agent_id(agent_id: str | None) -> str:
    """An agent's id as the database holds it."""
    return SHARED if agent_id is None else encode_user_id(agent_id)
