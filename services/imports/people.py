"""Who is who in an export of several people: the user, the AI's, and others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Literal

from keepsake_client.errors import KeepsakeError

#: As many names as an error shows.
MAX_NAMES = 6


class AmbiguousPeople(KeepsakeError):
    """The export does not say which of its people is the user."""

    code = "ambiguous_people"


@dataclass(frozen=True, slots=True)
class Person:
    """A person or program that speaks in an export.

    Args:
        also: a second name, such as an account's beside its nickname.
        is_ai: the export marks it as a program.
        is_owner: the export is this person's own.
    """

    name: str
    id: str | None = None
    also: str | None = None
    is_ai: bool = False
    is_owner: bool = False

    @property
    def speaker(self) -> dict[str, str]:
        """The `speaker` of a record."""
        return {"name": self.name} if self.id is None else {"id": self.id, "name": self.name}

    def is_called(self, names: Set[str]) -> bool:
        """Whether any of the folded names is one of this person's, or the id."""
        return any(name is not None and folded(name) in names for name in (self.name, self.id, self.also))

    @property
    def key(self) -> str:
        """What tells people apart: the id, or the name where there is none."""
        return self.id or self.name


def folded(name: str) -> str:
    """A name as it is compared."""
    return name.strip().removeprefix("@").casefold()


@dataclass(frozen=True, slots=True)
class Roles:
    """The roles of the people of an export, once they are known: the user, the AI, and the others.

    Args:
        me: the keys of the people that are the user.
        ai: the folded names of those that are the AI's.
    """

    me: Set[str] = frozenset()
    ai: Set[str] = frozenset()

    def of(self, person: Person | None) -> tuple[Literal["user", "ai"], dict[str, str] | None]:
        """The source and the speaker of what a person said; the user needs no speaker."""
        if person is None:
            return "user", None
        if person.is_ai or person.is_called(self.ai):
            return "ai", person.speaker
        return "user", None if person.key in self.me else person.speaker


def roles_of(people: Counter[Person], me: str | None, ai: Iterable[str], user_id: str, *, room: bool) -> Roles:
    """Decide who is who, from how much each person of an export said.

    The user is who `me` names; else who is called like the user id; else the export's owner; else the only person.

    Raises:
        AmbiguousPeople: it is none of these, or the name is that of several people, or of none.
    """
    names = frozenset(map(folded, ai))
    for name in names:
        if not any(person.is_called({name}) for person in people):
            raise AmbiguousPeople(f"--ai {name}: no one of that name speaks here; those who do are {_listed(people)}")
    humans = Counter({one: count for one, count in people.items() if not one.is_ai and not one.is_called(names)})
    if room or not humans:
        return Roles(ai=names)
    if me is not None:
        keys = {person.key for person in humans if person.is_called({folded(me)})}
        if not keys:
            raise AmbiguousPeople(f"--me {me}: no one of that name speaks here; those who do are {_listed(humans)}")
        if len(keys) > 1:
            raise AmbiguousPeople(f"--me {me}: several people have that name; their ids are {', '.join(sorted(keys))}")
        return Roles(keys, names)
    for candidates in (
        {person.key for person in humans if person.is_called({folded(user_id)})},
        {person.key for person in humans if person.is_owner},
        {person.key for person in humans},
    ):
        if len(candidates) == 1:
            return Roles(candidates, names)
    raise AmbiguousPeople(
        f"several people speak here: {_listed(humans)}; say which is the user with --me NAME, which are the AI's with "
        "--ai NAME, or import all as speakers with --room"
    )


def _listed(people: Counter[Person]) -> str:
    names = list(dict.fromkeys(person.name for person, _ in people.most_common()))
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more
