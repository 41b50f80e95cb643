"""A person: the counts, the choice of a character, and what is looked at."""

from __future__ import annotations

from typing import Final

from keepsake_client.errors import KeepsakeError
from keepsake_client.protocol import LTMResponse, UserSummary
from nicegui import ui
from redis.exceptions import RedisError

from services.gateway.access import Right
from services.gateway.console.components import link, loaded, moment, name, name_link, span
from services.gateway.console.pages.people import data, facts, memories, profile
from services.gateway.console.pages.people.finding import counts_of
from services.gateway.console.pages.people.memory import MemoryView
from services.gateway.console.people.asked import PEOPLE, VIEWS, Asked, Scope
from services.gateway.console.people.person import Person
from services.gateway.console.texts import Texts

_SHOW: Final = {"memories": memories.show, "facts": facts.show, "profile": profile.show, "data": data.show}
#: How often an open page asks whether anything is kept of the user.
CHECK_S: Final = 10.0
#: What a key may do to all that a user has.
_WHOLE: Final = (Right.EXPORT, Right.IMPORT, Right.FORGET)


def show(person: Person, text: Texts) -> None:
    """Show a person."""
    caller = person.viewer.permit(Right.READ, person.user_id, person.asked.scope.agent_id)
    if caller.user is None:
        link(text("all_people"), PEOPLE).classes("back")
    with ui.element("h1").classes("user"):
        name(person.user_id)
    place = ui.element("div")
    with place:
        if caller.agent is None:
            loaded(text, person.summary, lambda summary: _summary(person, text, summary))
        is_whole = caller.agent is None and any(map(person.viewer.may, _WHOLE))
        _views(person, text, is_whole=is_whole)
        _content(person, text, is_whole=is_whole)
    if caller.agent is None:
        _leave_when_forgotten(person, text, place)


def _views(person: Person, text: Texts, *, is_whole: bool) -> None:
    """Show what can be looked at."""
    with ui.element("nav").classes("views") as element:
        element.props["aria-label"] = text("views")
        for view in VIEWS:
            if view != "data" or is_whole:
                kept = Asked(person.user_id, view, person.asked.scope)
                shown = link(text(f"view_{view}"), kept.url())
                if view == person.asked.view and not person.asked.memory:
                    shown.props('aria-current="page"')


def _content(person: Person, text: Texts, *, is_whole: bool) -> None:
    """Show what the page is asked for."""
    if person.asked.memory:
        loaded(text, lambda: person.memory(person.asked.memory), lambda response: _one(person, text, response))
    elif person.asked.view != "data" or is_whole:
        _SHOW[person.asked.view](person, text)
    else:
        person.viewer.permit(Right.EXPORT, person.user_id)


def _leave_when_forgotten(person: Person, text: Texts, place: ui.element) -> None:
    """Clear what is shown once nothing is kept of the user any more, who may be forgotten elsewhere."""
    was_kept = False

    async def check() -> None:
        nonlocal was_kept
        try:
            is_kept = await person.is_kept()
        except (KeepsakeError, RedisError, OSError):
            return  # it is asked again
        if was_kept and not is_kept:
            place.clear()
            with place, ui.element("p").classes("state").props('role="status"'):
                span(text("kept_no_more"))
        was_kept = is_kept

    ui.timer(CHECK_S, check)


def _one(person: Person, text: Texts, response: LTMResponse) -> None:
    """One memory; a fact with its evidence."""
    for memory in response.memories:
        MemoryView(person, text, memory).show()
        if memory.kind == "fact":
            facts.show_fact_evidence(person, text, memory)


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
            shown = name_link(label, person.asked.url(scope=scope, memory=""))
            if scope == present:
                shown.props('aria-current="true"')
