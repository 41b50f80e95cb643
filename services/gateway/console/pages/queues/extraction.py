"""How extraction is: what waits for the LLM, what was spent of the day's bounds, and what was set aside."""

from __future__ import annotations

from datetime import datetime

from nicegui import ui

from services.gateway.access import Right
from services.gateway.app import Gateway
from services.gateway.console.components import empty, head, heading, link, loaded, moment, name, panel, span
from services.gateway.console.people.asked import person_url
from services.gateway.console.texts import Texts
from services.gateway.console.viewer import Viewer
from services.runtime.extraction_figures import ExtractionFigures, SetAsideMessage, read_figures

_COMMANDS = {"paused": "ltm extract resume", "stopped": "ltm extract resume"}


def extraction(viewer: Viewer, text: Texts, gateway: Gateway) -> None:
    """Show the figures that the extractor publishes."""
    names_users = gateway.settings.ltm_log_user_ids

    def show(figures: ExtractionFigures | None) -> None:
        if figures is None:
            empty(text("no_extractor"), "ltm status")
            return
        _state(viewer, text, figures)
        with ui.element("dl").classes("facts"):
            _fact(text("pending"), text("pending_of", n=f"{figures.messages:,}", users=f"{figures.users:,}"))
            if figures.oldest:
                _fact_at(viewer, text, text("oldest"), figures.oldest)
            bound = figures.tokens_per_day
            _fact(text("spent"), text("spent_of", calls=f"{figures.calls:,}", tokens=f"{figures.tokens:,}"))
            _fact(text("bound_day"), text("no_bound") if bound is None else text("tokens", n=f"{bound:,}"))
            of_user = figures.tokens_per_user
            _fact(text("bound_user"), text("no_bound") if of_user is None else text("tokens", n=f"{of_user:,}"))
        if bound:
            _spent(text, figures.tokens, bound)
        _set_aside(viewer, text, figures, names_users=names_users)

    with panel(text("extraction")):
        loaded(text, lambda: read_figures(gateway.redis), show)


def _state(viewer: Viewer, text: Texts, figures: ExtractionFigures) -> None:
    works = figures.state == "working"
    with ui.element("p").props('role="status"'):
        span(text(f"extraction_{figures.state.replace(' ', '_')}"), "good" if works else "warn")
        if figures.since:
            span(" · ")
            moment(viewer, text, figures.since.timestamp(), relative=True)
        if figures.reason:
            span(f" · {figures.reason}", "quiet")
        if command := _COMMANDS.get(figures.state):
            with ui.element("code"):
                span(command)


def _spent(text: Texts, tokens: int, bound: int) -> None:
    share = min(100.0, 100.0 * tokens / bound)
    with ui.element("div").classes("bar").props('role="img"') as element:
        element.props["aria-label"] = element.props["title"] = text("spent_share", percent=f"{share:.0f}")
        ui.element("div").classes("stage stage-0").style(f"width: {share:.2f}%")


def _set_aside(viewer: Viewer, text: Texts, figures: ExtractionFigures, *, names_users: bool) -> None:
    heading(text("set_aside"), 3)
    if not figures.set_aside:
        empty(text("none_set_aside"))
        return
    if not viewer.sees_everyone:
        empty(text("set_aside_number", n=f"{figures.set_aside:,}"))
        return
    empty(text("set_aside_number", n=f"{figures.set_aside:,}"), "ltm extract retry --all")
    with ui.element("div").classes("scroll"), ui.element("table"):
        head(text, ["said_at", "user", "memory", "reason"])
        with ui.element("tbody"):
            for message in figures.newest_set_aside:
                _row(viewer, text, message, names_users=names_users)


def _row(viewer: Viewer, text: Texts, message: SetAsideMessage, *, names_users: bool) -> None:
    with ui.element("tr"):
        with ui.element("td"):
            moment(viewer, text, message.said_at)
        with ui.element("td"):
            name(message.user)
            if message.agent_id is not None:
                span(" · ", "quiet")
                name(message.agent_id).classes("quiet")
        with ui.element("td"):
            if names_users and viewer.may(Right.READ):
                link(message.memory_id, person_url(message.user, message.memory_id))
            else:
                span(message.memory_id)
        with ui.element("td"):
            span(message.reason)


def _fact(name: str, words: str) -> None:
    with ui.element("dt"):
        span(name)
    with ui.element("dd"):
        span(words)


def _fact_at(viewer: Viewer, text: Texts, name: str, when: datetime) -> None:
    with ui.element("dt"):
        span(name)
    with ui.element("dd"):
        moment(viewer, text, when.timestamp(), relative=True)
