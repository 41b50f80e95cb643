"""A person: the counts, the choice of a character, and what is looked at."""

from __future__ import annotations

from typing import Final

from keepsake_client.protocol import UserSummary
from nicegui import ui

from services.gateway.access import Right
from services.gateway.console.components import link, loaded, moment, name, span
from services.gateway.console.pages.people import data, facts, memories, profile
from services.gateway.console.pages.people.finding import counts_of
from services.gateway.console.people.asked import PEOPLE, VIEWS, Scope
from services.gateway.console.people.person import Person
from services.gateway.console.texts import Texts

_SHOW: Final = {"memories": memories.show, "facts": facts.show, "profile": profile.show, "data": data.show}
#: What a key may do to all that a user has.
_WHOLE: Final = (Right.EXPORT, Right.IMPORT, Right.FORGET)


def show(person: Person, text: Texts) -> None:
    """Show a person."""
    caller = person.viewer.permit(Right.READ, person.user_id, person.asked.scope.agent_id)
    if caller.user is None:
        link(text("all_people"), PEOPLE).classes("back")
    with ui.element("h1").classes("user"):
        name(person.user_id)
    if caller.agent is None:
        loaded(text, person.summary, lambda summary: _summary(person, text, summary))
    is_whole = caller.agent is None and any(map(person.viewer.may, _WHOLE))
    with ui.element("nav").classes("views") as element:
        element.props["aria-label"] = text("views")
        for view in VIEWS:
            if view != "data" or is_whole:
                shown = link(text(f"view_{view}"), person.asked.url(view=view, query="", filters={}, kinds="all"))
                if view == person.asked.view:
                    shown.props('aria-current="page"')
    if person.asked.view != "data" or is_whole:
        _SHOW[person.asked.view](person, text)
    else:
        person.viewer.permit(Right.EXPORT, person.user_id)


def _summary(person: Person, text: Texts, summary: UserSummary) -> None:
    """Counts, and the characters to choose from."""
    with ui.element("p").classes("summary quiet"):
        span(text("counts", **counts_of(summary)))
        if summary.last_at is not None:
            span(f"· {text('last_said')}")
            moment(person.viewer, text, summary.last_at)
    present = person.asked.scope
    if not summary.agents and present == Scope():
        return
    with ui.element("nav").classes("scopes") as element:
        element.props["aria-label"] = text("scope")
        agents = dict.fromkeys([*summary.agents, *([present.agent_id] if present.agent_id else [])])
        for label, scope in (
            (text("scope_all"), Scope()),
            (text("scope_shared"), Scope(None, False)),
            *((agent, Scope(agent, False)) for agent in agents),
        ):
            shown = link(label, person.asked.url(scope=scope)).classes("name").props('dir="auto"')
            if scope == present:
                shown.props('aria-current="true"')
