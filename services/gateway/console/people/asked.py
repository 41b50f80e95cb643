"""Asked: what a page of a person shows, as the query of its URL says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, time, tzinfo
from typing import Any, Final, Literal, Self, get_args
from urllib.parse import urlencode

from keepsake_client.errors import InvalidMessage
from keepsake_client.protocol import decode_user_id, encode_user_id

from services.gateway.access import Caller
from services.gateway.console.guard import ROOT

View = Literal["memories", "facts", "profile", "data"]
VIEWS: Final[tuple[View, ...]] = get_args(View)
#: Which facts a page shows: also those that others have replaced, those that hold, or those that do not.
Kinds = Literal["all", "fact", "superseded"]
KINDS: Final[tuple[Kinds, ...]] = get_args(Kinds)
FILTERS: Final = ("session_id", "source", "speaker", "since", "until", "contains")
PEOPLE: Final = f"{ROOT}/people"
_AGENT: Final = "agent:"


@dataclass(frozen=True)
class Scope:
    """Whose memories of a user: of all characters, the shared ones alone, or one character's beside the shared ones."""

    agent_id: str | None = None
    all_agents: bool = True

    @classmethod
    def read(cls, value: str, caller: Caller) -> Self:
        """The scope that a query names, as the caller may ask; by default the widest.

        Raises:
            NotPermitted: the key is for another character.
        """
        if not value and caller.agent is not None:
            return cls(caller.agent, False)
        agent_id = value.removeprefix(_AGENT) if value.startswith(_AGENT) else None
        all_agents = agent_id is None and value != "shared"
        return cls(caller.agent_of(agent_id, all_agents=all_agents), all_agents)

    @property
    def value(self) -> str:
        """As a query names it; "" for all."""
        if self.all_agents:
            return ""
        return "shared" if self.agent_id is None else f"{_AGENT}{self.agent_id}"

    @property
    def data(self) -> dict[str, Any]:
        """The arguments of a request."""
        return {"agent_id": self.agent_id, "all_agents": self.all_agents}


@dataclass(frozen=True)
class Asked:
    """What a page of a person shows.

    Args:
        query: what is searched for; "" lists.
        filters: conditions on memories, those of `FILTERS` that are given.
        memory: the id of one, which is shown alone; "" shows a view.
    """

    user_id: str
    view: View = "memories"
    scope: Scope = Scope()
    kinds: Kinds = "all"
    query: str = ""
    filters: Mapping[str, str] = field(default_factory=dict)
    memory: str = ""

    @classmethod
    def read(cls, query: Mapping[str, str], caller: Caller) -> Self | None:
        """What a query asks for, of a user that the caller may ask about; None where it names no user.

        Raises:
            NotPermitted: the key is not for this user or character.
            InvalidMessage: an encoded id is none.
        """
        try:
            user_id = query.get("user") or decode_user_id(query.get("id", "")) or caller.user
        except UnicodeDecodeError:
            raise InvalidMessage("id: is no encoded user id") from None
        if user_id is None or user_id == "":
            return None
        return cls(
            caller.user_of(user_id),
            next((view for view in VIEWS if view == query.get("view")), "memories"),
            Scope.read(query.get("scope", ""), caller),
            next((kinds for kinds in KINDS if kinds == query.get("kinds")), "all"),
            query.get("q", "").strip(),
            {name: query[name] for name in FILTERS if query.get(name)},
            query.get("memory", ""),
        )

    @property
    def named(self) -> tuple[str, str]:
        """The parameter that names the user, and its value: encoded where a form would change the id."""
        is_kept = self.user_id.isprintable() and self.user_id.strip() != ""
        return ("user", self.user_id) if is_kept else ("id", encode_user_id(self.user_id))

    @property
    def parameters(self) -> dict[str, str]:
        """The query, without what is missing in it."""
        name, value = self.named
        given = {
            "view": "" if self.view == "memories" else self.view,
            "scope": self.scope.value,
            "kinds": "" if self.kinds == "all" else self.kinds,
            "q": self.query,
            "memory": self.memory,
            **self.filters,
        }
        return {name: value, **{name: value for name, value in given.items() if value}}

    def url(self, **changes: Any) -> str:
        """The address of the page, with these changes."""
        return f"{PEOPLE}?{urlencode(replace(self, **changes).parameters)}"

    def conditions(self, zone: tzinfo) -> dict[str, str]:
        """The filters of a request; days are those of the viewer's zone, the last one included.

        Raises:
            InvalidMessage: a day is none.
        """
        conditions = dict(self.filters)
        for name, at in (("since", time.min), ("until", time.max)):
            if day := conditions.get(name):
                try:
                    moment = datetime.combine(datetime.fromisoformat(day).date(), at, zone)
                except ValueError:
                    raise InvalidMessage(f"{name}: must be a day, such as 2024-05-16") from None
                conditions[name] = moment.isoformat()
        return conditions


def person_url(user_id: str, memory_id: str = "") -> str:
    """The address of a person's page, or of one memory on it."""
    return Asked(user_id, memory=memory_id).url()
