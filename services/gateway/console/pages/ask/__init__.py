"""The page Ask: a search by one or two settings, with what would come, why, and what just missed."""

from __future__ import annotations

import asyncio

from keepsake_client.errors import KeepsakeError
from nicegui import ui

from services.gateway.access import Right
from services.gateway.console.components import button, empty, failure, heading, link, loaded
from services.gateway.console.guard import ROOT
from services.gateway.console.page import ConsolePages
from services.gateway.console.pages.ask.results import Results
from services.gateway.console.pages.ask.setting import MinScore, field, setting_fields
from services.gateway.console.recall import Asked, Found, search
from services.gateway.console.texts import Texts
from services.gateway.console.viewer import Viewer

NAMES = ("A", "B")


def add(pages: ConsolePages) -> None:
    """Register the page."""
    gateway = pages.gateway

    async def build(viewer: Viewer, text: Texts, query: dict[str, str]) -> None:
        ui.add_head_html(f'<link rel="stylesheet" href="{ROOT}/static/turn.css">')  # of the parts of a score
        heading(text("title"), 1)
        caller = viewer.caller()
        asked = Asked.of({"user": caller.user or "", **query})
        columns = _form(viewer, text, asked)
        if not asked.query or not asked.user:
            empty(text("help"))
            return

        async def ask() -> list[Found | KeepsakeError]:
            return await asyncio.gather(*(_attempt(setting) for setting in asked.settings))

        async def _attempt(setting: dict[str, str]) -> Found | KeepsakeError:
            try:
                return await search(gateway, viewer, asked, setting)
            except KeepsakeError as error:
                return error

        def show(answers: list[Found | KeepsakeError]) -> None:
            found = [answer if isinstance(answer, Found) else None for answer in answers]
            for place, (answer, (column, min_score)) in enumerate(zip(answers, columns, strict=True)):
                with column:
                    if isinstance(answer, Found):
                        other = found[1 - place] if len(found) > 1 else None
                        Results(gateway, viewer, text, asked, answer, other, min_score)
                    else:
                        failure(text, answer)

        loaded(text, ask, show)

    pages.add("ask", "/ask", build, Right.SEARCH)


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
