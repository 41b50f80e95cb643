"""The page Ask: a search by one or two settings, with what would come, why, and what just missed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from keepsake_client.errors import KeepsakeError
from nicegui import ui
from redis.exceptions import RedisError

from services.gateway.access import Right
from services.gateway.console.components import button, empty, failure, heading, link, loaded
from services.gateway.console.erased import when_erased
from services.gateway.console.guard import ROOT
from services.gateway.console.page import ConsolePages
from services.gateway.console.pages.ask.results import Results
from services.gateway.console.pages.ask.setting import MinScore, field, setting_fields
from services.gateway.console.people.asked import Asked as AskedPerson
from services.gateway.console.people.person import Person
from services.gateway.console.recall import Asked, Found, Setting, search
from services.gateway.console.texts import Texts
from services.gateway.console.viewer import Viewer

NAMES = ("A", "B")


def add(pages: ConsolePages) -> None:
    """Register the page."""

    async def build(viewer: Viewer, text: Texts, query: dict[str, str]) -> None:
        ui.add_head_html(f'<link rel="stylesheet" href="{ROOT}/static/turn.css">')  # of the parts of a score
        heading(text("title"), 1)
        caller = viewer.caller()
        asked = Asked.of({"user": caller.user or "", **query})
        columns = _form(viewer, text, asked)
        if not asked.query or not asked.user:
            empty(text("help"))
            return

        Answers(pages, viewer, text, asked, columns).fill()

    pages.add("ask", "/ask", build, Right.SEARCH)


class Answers:
    """The answers to a question, shown until the user is forgotten.

    Args:
        columns: for each setting the place of its results, and its slider.
    """

    def __init__(
        self,
        pages: ConsolePages,
        viewer: Viewer,
        text: Texts,
        asked: Asked,
        columns: Sequence[tuple[ui.element, MinScore]],
    ) -> None:
        self._gateway, self._viewer, self._text = pages.gateway, viewer, text
        self._asked, self._columns = asked, columns
        self._place = when_erased(pages.feed, self._check)

    def fill(self) -> None:
        """Ask, and show the answers."""
        self._place.clear()
        with self._place:
            loaded(self._text, self._ask, self._show)

    async def _ask(self) -> list[Found | KeepsakeError]:
        return await asyncio.gather(*(self._attempt(setting) for setting in self._asked.settings))

    async def _attempt(self, setting: Setting) -> Found | KeepsakeError:
        try:
            return await search(self._gateway, self._viewer, self._asked, setting)
        except KeepsakeError as error:
            return error

    def _show(self, answers: list[Found | KeepsakeError]) -> None:
        found = [answer if isinstance(answer, Found) else None for answer in answers]
        for place, (answer, (column, min_score)) in enumerate(zip(answers, self._columns, strict=True)):
            with column:
                if isinstance(answer, Found):
                    other = found[1 - place] if len(found) > 1 else None
                    Results(self._gateway, self._viewer, self._text, self._asked, answer, other, min_score)
                else:
                    failure(self._text, answer)

    async def _check(self) -> None:
        """Clear what is shown of a user of whom nothing is kept any more, or of whom that cannot be known."""
        if await self._is_kept():
            return
        for column, min_score in self._columns:
            column.clear()
            min_score.on_move = lambda _: None
        self._place.clear()
        with self._place:
            empty(self._text("erased"))
            button(self._text("do_ask"), self.fill)

    async def _is_kept(self) -> bool:
        try:
            return await Person(self._gateway, self._viewer, AskedPerson(self._asked.user)).is_kept()
        except (KeepsakeError, RedisError, OSError):
            return False


def _form(viewer: Viewer, text: Texts, asked: Asked) -> list[tuple[ui.element, MinScore]]:
    """The form, which asks by the URL of this page; for each setting the place of its results, and its slider."""
    settings = tuple(dict(setting) for setting in asked.settings)
    given = {"user": asked.user, "query": asked.query}
    columns = []
    with ui.element("form").classes("ask") as form:
        with ui.element("div").classes("question"):
            field(text("user"), given, "user").props("autocomplete=off")
            field(text("query"), given, "query").classes("search wide").props("autocomplete=off")
            button(text("do_ask"), lambda: None).props("type=submit")
        with ui.element("div").classes("columns" if len(settings) > 1 else ""):
            for name, setting in zip(NAMES, settings, strict=False):
                with ui.element("section").classes("panel"):
                    heading(text("setting", name=name) if len(settings) > 1 else text("options"))
                    min_score = setting_fields(viewer, text, setting)
                    columns.append((ui.element("div"), min_score))
        _comparing(text, asked)

    def go() -> None:
        _, _, query = Asked(given["user"], given["query"].strip(), settings).url.partition("?")
        ui.navigate.to(f"?{query}")  # of this page: before a path NiceGUI would put the console's root once more

    form.on("submit.prevent", go)
    return columns


def _comparing(text: Texts, asked: Asked) -> None:
    first = asked.settings[0]
    if len(asked.settings) > 1:
        link(text("compare_no_more"), Asked(asked.user, asked.query, (first,)).url)
    else:
        link(text("compare"), Asked(asked.user, asked.query, (first, dict(first))).url)
