"""The memories of a person: a timeline by session, filtered, or what a search finds."""

from __future__ import annotations

from collections.abc import Sequence

from keepsake_client.protocol import LTMResponse, Memory
from nicegui import ui

from services.gateway.access import Right
from services.gateway.console.components import (
    attempted,
    button,
    confirmed,
    empty,
    heading,
    link,
    loaded,
    moment,
    name_link,
    span,
)
from services.gateway.console.forms import choice, field, form, hidden, submit
from services.gateway.console.pages.people.memory import MemoryView
from services.gateway.console.people.asked import FILTERS, PEOPLE
from services.gateway.console.people.person import Person
from services.gateway.console.people.timeline import SessionGroup, by_session
from services.gateway.console.texts import Texts


def show(person: Person, text: Texts) -> None:
    """Show the search field, the filters, and what they find."""
    if person.viewer.may(Right.SEARCH):
        _search_form(person, text)
    filter_form(person, text)
    if person.asked.query:
        loaded(text, person.search, lambda response: _found(person, text, response))
    else:
        Timeline(person, text).show()


def _search_form(person: Person, text: Texts) -> None:
    parameters = {key: value for key, value in person.asked.parameters.items() if key != "q"}
    with form(PEOPLE, text("search_memory")).classes("find search").props('role="search"'):
        hidden(parameters)
        field("q", text("search_memory"), person.asked.query, "search")
        submit(text("search"))


def filter_form(person: Person, text: Texts) -> None:
    """Show the filters of a list of memories or facts."""
    asked = person.asked
    kept = {key: value for key, value in asked.parameters.items() if key not in {*FILTERS, "kinds"}}
    with ui.element("details").classes("filters") as element:
        if asked.filters or asked.kinds != "all":
            element.props["open"] = True
        with ui.element("summary"):
            span(text("filters"))
        with form(PEOPLE, text("filters")).classes("fields"):
            hidden(kept)
            if asked.view == "facts":
                choice(
                    "kinds", text("kind"), {k: text(f"kinds_{k}") for k in ("all", "fact", "superseded")}, asked.kinds
                )
            sources = {"": text("any"), "user": text("source_user"), "ai": text("source_ai")}
            choice("source", text("source"), sources, asked.filters.get("source", ""))
            for key in ("session_id", "speaker"):
                field(key, text(key), asked.filters.get(key, ""))
            for key in ("since", "until"):
                field(key, text(key), asked.filters.get(key, ""), "date")
            if not asked.query:
                field("contains", text("contains"), asked.filters.get("contains", ""))
            with ui.element("div").classes("actions"):
                submit(text("apply"))
                if asked.filters or asked.kinds != "all":
                    link(text("clear"), asked.url(filters={}, kinds="all"))


def _found(person: Person, text: Texts, response: LTMResponse) -> None:
    heading(text("found"))
    link(text("back_to_timeline"), person.asked.url(query=""))
    if not response.memories:
        empty(text("nothing_found"))
    if response.partial:
        with ui.element("p").classes("state warn"):
            span(text("partial"))
    with ui.element("ol").classes("found"):
        for memory in response.memories:
            with ui.element("li"):
                MemoryView(person, text, memory).show()


class Timeline:
    """Memories, newest first, grouped by session; more by pages."""

    def __init__(self, person: Person, text: Texts) -> None:
        self._person = person
        self._text = text
        self._last: _Session | None = None

    def show(self) -> None:
        """Show the first page."""
        self._place = ui.element("div").classes("timeline")
        with self._place:
            self._load()

    def _load(self) -> None:
        loaded(self._text, self._person.page, self._show_first)

    def _show_first(self, page: LTMResponse) -> None:
        text = self._text
        if not page.memories:
            empty(text("nothing_matches") if self._person.asked.filters else text("no_memories"))
            return
        if self._person.asked.filters and self._person.viewer.may(Right.DELETE):
            button(text("delete_matching"), self._delete_matching)
        self._sessions = ui.element("div")
        self._more = ui.element("div").classes("more")
        self._append(page)

    def _append(self, page: LTMResponse) -> None:
        with self._sessions:
            for group in by_session(page.memories, self._person.viewer.zone):
                if self._last is None or not self._last.is_continued_by(group):
                    self._last = _Session(self._person, self._text, group)
                self._last.append(group.memories)
        self._more.clear()
        if page.next_cursor is not None:
            with self._more:
                button(self._text("more"), lambda: self._show_more(page.next_cursor))

    def _show_more(self, cursor: str | None) -> None:
        self._more.clear()
        with self._more:
            loaded(self._text, lambda: self._person.page(cursor=cursor), self._append)

    async def _delete_matching(self) -> None:
        person, text = self._person, self._text
        count = await attempted(text, person.delete_matching(dry_run=True))
        if count is None:
            return
        conditions = [f"{text(key)}: {value}" for key, value in person.asked.filters.items()]
        question = text("delete_matching_question", count=f"{count:,}")
        notes = [text("delete_facts_too"), text("delete_turns_too")]
        if await confirmed(text, question, [*conditions, *notes], text("delete")):
            deleted = await attempted(text, person.delete_matching(dry_run=False))
            if deleted is not None:
                self._place.clear()
                self._last = None
                with self._place:
                    with ui.element("p").classes("state").props('role="status"'):
                        span(text("deleted", count=f"{deleted:,}"))
                    self._load()


class _Session:
    """A session of a timeline: its heading, from when to when, and its memories."""

    def __init__(self, person: Person, text: Texts, group: SessionGroup) -> None:
        self._person = person
        self._text = text
        self._group = group
        self._newest = group.memories[0].timestamp
        self._place = ui.element("section").classes("session")
        with self._place:
            with ui.element("h2"):
                if group.session_id is None:
                    span(text("no_session"))
                else:
                    span(text("session"))
                    filters = {**person.asked.filters, "session_id": group.session_id}
                    name_link(group.session_id, person.asked.url(filters=filters))
            self._dates = ui.element("p").classes("dates quiet")

    def is_continued_by(self, group: SessionGroup) -> bool:
        return self._group.is_continued_by(group)

    def append(self, memories: Sequence[Memory]) -> None:
        """Show further memories, older than those before."""
        viewer, oldest = self._person.viewer, memories[-1].timestamp
        self._dates.clear()
        with self._dates:
            moment(viewer, self._text, oldest)
            if oldest != self._newest:
                span("–")
                moment(viewer, self._text, self._newest)
        with self._place:
            for memory in memories:
                MemoryView(self._person, self._text, memory).show()
