"""The page of a turn: from the user's words to the reply, and why."""

from __future__ import annotations

from nicegui import ui

from services.gateway.access import Right
from services.gateway.app import Gateway
from services.gateway.console.components import content, duration, empty, heading, link, moment, panel, span
from services.gateway.console.erased import loaded_until_erased
from services.gateway.console.feed import LiveFeed
from services.gateway.console.page import ConsolePages
from services.gateway.console.texts import Texts
from services.gateway.console.turn_candidates import SearchPanel
from services.gateway.console.turn_facts import Neighbours, neighbours_of, timeline_of
from services.gateway.console.turn_story import TurnStory, turn_url
from services.gateway.console.viewer import Viewer
from services.gateway.turn_lookup import TurnLookup
from services.gateway.visibility import Visibility
from services.runtime.turn import Turn

#: Longer ids are none.
MAX_ID_CHARS = 2_600


def add(pages: ConsolePages) -> None:
    """Register the page."""
    lookup = TurnLookup(pages.gateway.settings)

    async def build(viewer: Viewer, text: Texts, query: dict[str, str]) -> None:
        TurnPage(pages.gateway, pages.feed, lookup, viewer, text, query).build()

    pages.add("turn", "/turn", build, Right.TRACE)


class TurnPage:
    """The page as one viewer sees it.

    Args:
        query: `id` of a message, request or task or, with its `user`, of a memory.
    """

    def __init__(
        self,
        gateway: Gateway,
        feed: LiveFeed,
        lookup: TurnLookup,
        viewer: Viewer,
        text: Texts,
        query: dict[str, str],
    ) -> None:
        self._gateway, self._feed, self._lookup, self._viewer, self._text = gateway, feed, lookup, viewer, text
        self._id, self._user = query.get("id", "").strip()[:MAX_ID_CHARS], query.get("user", "")
        self._visible = Visibility.of(viewer.permit(Right.TRACE), gateway.settings)

    def build(self) -> None:
        """Show the box for an id, and the turn of the one that is asked for."""
        text = self._text
        heading(text("title"), 1)
        with _form(text("title"), "search"):
            _field("id", text("id"), self._id)
            _submit(text("show"))
        if self._id:
            loaded_until_erased(self._feed, text, self._load, self._show)
        else:
            empty(text("none_chosen"), "ltm trace ID")

    async def _load(self) -> tuple[Turn, Neighbours] | None:
        """The turn; None of a memory that is of none."""
        identifier: str | None = self._id
        if self._user:
            self._viewer.permit(Right.READ, self._user)
            identifier = await self._message_of(self._user, self._id)
        if identifier is None:
            return None
        turn = self._visible.part_of_turn(await self._lookup.follow(identifier))
        return turn, await neighbours_of(turn, self._gateway.redis, self._visible)

    async def _message_of(self, user: str, memory_id: str) -> str | None:
        response = await self._gateway.ltm.memory_get(user, memory_id)
        found = [memory.metadata.get("message_id") for memory in response.memories]
        return str(found[0]) if found and found[0] else None

    def _show(self, found: tuple[Turn, Neighbours] | None) -> None:
        text = self._text
        if found is None:
            empty(text("no_message"))
            return
        turn, neighbours = found
        if not turn.is_known:
            empty(text("unknown"))
            if self._viewer.may(Right.READ):
                with _form(text("is_memory"), ""):
                    span(text("is_memory"))
                    _field("user", text("user_id"), self._user)
                    ui.element("input").props('type="hidden" name="id"').props["value"] = self._id
                    _submit(text("show"))
            return
        names_users = self._gateway.settings.ltm_log_user_ids
        TurnStory(self._viewer, text, turn, names_users=names_users)
        self._missing(turn)
        with ui.element("nav").classes("neighbours") as nav:
            nav.props["aria-label"] = text("neighbours")
            for name, identifier in (("earlier", neighbours.earlier), ("later", neighbours.later)):
                if identifier:
                    link(text(name), turn_url(identifier))
        for place, search in enumerate(turn.searches):
            with panel(text("search_title")) as section:
                section.props["id"] = f"candidates-{place}" if place else "candidates"
                SearchPanel(self._viewer, text, search, turn.user, names_users=names_users)
        self._prompt(turn)
        self._timeline(turn)

    def _prompt(self, turn: Turn) -> None:
        if not turn.prompt:
            return
        with panel(self._text("prompt")) as section, ui.element("dl").classes("pairs prompt"):
            section.props["id"] = "prompt"
            for message in turn.prompt:
                with ui.element("div"):
                    with ui.element("dt").classes("quiet"):
                        span(message.role)
                    with ui.element("dd"):
                        content(self._viewer, self._text, message.content)

    def _timeline(self, turn: Turn) -> None:
        text, steps = self._text, timeline_of(turn)
        with panel(text("timeline")):
            for item in turn.trace.waiting:
                with ui.element("p").classes("warn"):
                    span(text("waits", place=item.place, state=item.state))
                    moment(self._viewer, text, item.since)
            scroll = ui.element("div").classes("scroll").props('tabindex="0"')
            with scroll, ui.element("table").classes("timeline"):
                with ui.element("thead"), ui.element("tr"):
                    for name in ("column_after", "column_at", "column_of", "column_step"):
                        column = ui.element("th").props('scope="col"')
                        with column.classes("number" if name == "column_after" else ""):
                            span(text(name))
                with ui.element("tbody"):
                    for step in steps:
                        with ui.element("tr"):
                            with ui.element("td").classes("number"):
                                span(f"+{duration(text, step.after_ms)}")
                            with ui.element("td"):
                                moment(self._viewer, text, step.at)
                            with ui.element("td"):
                                span(text(f"of_{step.of}"))
                            with ui.element("td"):
                                name = f"step_{step.name}"
                                span(text(name) if text.has(name) else step.name)

    def _missing(self, turn: Turn) -> None:
        text = self._text
        if not turn.missing and not turn.trace.unseen:
            return
        with panel(text("missing")), ui.element("ul").classes("missing"):
            for one in turn.missing:
                with ui.element("li"):
                    of = f" ({one.request_id})" if one.request_id else ""
                    span(f"{text(f'missing_{one.what}')}{of}: {text(f'why_{one.why}', detail=one.detail)}", "name")
            for place in turn.trace.unseen:
                with ui.element("li"):
                    span(text("unseen", place=place))


def _form(label: str, classes: str) -> ui.element:
    form = ui.element("form").classes(f"lookup {classes}").props('method="get" action="/console/turn" role="search"')
    form.props["aria-label"] = label
    return form


def _field(name: str, label: str, value: str) -> None:
    with ui.element("label"):
        span(label, "quiet")
        field = ui.element("input").props(f'name="{name}" autocomplete="off" spellcheck="false"')
        # Not `value`: Vue would set it again, over what was typed, whenever the page changes.
        field.props["defaultValue"] = value


def _submit(label: str) -> None:
    with ui.element("button").props('type="submit"').classes("plain submit"):
        span(label)
