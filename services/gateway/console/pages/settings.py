"""The page of the settings: every one with its source, and the health of what the stack depends on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from services.gateway.access import Right
from services.gateway.console.components import cell, empty, heading, loaded, moment, paced, panel, span
from services.gateway.console.page import ConsolePages
from services.gateway.console.settings_list import ListedSetting, listed_settings, matching
from services.gateway.console.texts import Texts
from services.gateway.console.viewer import Viewer
from services.runtime.extraction_figures import ExtractionFigures, read_figures
from services.runtime.stack_health import Health, read_health

_STATES = {"ok": "good", "down": "bad", "unknown": "warn", "left out": "quiet"}


def add(pages: ConsolePages) -> None:
    """Register the page."""
    settings, redis = pages.gateway.settings, pages.gateway.redis

    async def build(viewer: Viewer, text: Texts, query: dict[str, str]) -> None:
        heading(text("title"), 1)
        with panel(text("health")):
            loaded(text, partial(read_health, settings, redis), partial(_show_health, viewer, text))
        with panel(text("extraction")):
            loaded(text, partial(read_figures, redis), partial(_show_extraction, viewer, text))
        with panel(text("settings")):
            _Filter(text, listed_settings(settings, os.environ))

    pages.add("settings", "/settings", build, Right.METRICS)


def _show_health(viewer: Viewer, text: Texts, found: Sequence[Health]) -> None:
    with ui.element("div").classes("scroll"), ui.element("table"):
        _head(text, "part", "state", "version", "since", "detail")
        with ui.element("tbody"):
            for health in found:
                with ui.element("tr"):
                    with ui.element("th").props('scope="row"'):
                        span(health.name)
                    with ui.element("td"):
                        span(text(f"state_{health.state.replace(' ', '_')}"), _STATES[health.state])
                    cell(health.version or "")
                    with ui.element("td").classes("time"):
                        moment(viewer, text, health.since)
                    with ui.element("td").classes("detail"):
                        span(health.detail or "")
                        if health.used_by:
                            span(text("used_by", names=", ".join(health.used_by)), "quiet")


def _show_extraction(viewer: Viewer, text: Texts, figures: ExtractionFigures | None) -> None:
    if figures is None:
        empty(text("no_extraction"), "LTM_LLM_PROVIDER")
        return
    with ui.element("p"):
        span(text(f"is_{figures.state.replace(' ', '_')}"), "good" if figures.state == "working" else "warn")
        if figures.reason:
            span(f" {figures.reason}")
        if figures.since:
            moment(viewer, text, figures.since.timestamp())
    with ui.element("p"):
        span(text("extraction_waiting", messages=f"{figures.messages:,}", users=f"{figures.users:,}"))
        span(text("extraction_spent", calls=f"{figures.calls:,}", tokens=f"{figures.tokens:,}"))
        if figures.tokens_per_day is not None:
            span(text("extraction_bound", tokens=f"{figures.tokens_per_day:,}"))


class _Filter:
    """The list of settings, and what it is filtered by."""

    def __init__(self, text: Texts, found: Sequence[ListedSetting]) -> None:
        self._text = text
        self._found = found
        with ui.element("p"):
            span(text("whose"), "quiet")
        with ui.element("div").classes("filter search"):
            self._words = ui.input(label=text("filter"), on_change=self._show).props("outlined dense debounce=200")
            self._changed = ui.checkbox(text("changed_only"), on_change=self._show).props("dense")
        self._place = ui.element("div").classes("scroll")
        ui.timer(0, self._show, once=True)

    async def _show(self) -> None:
        found = matching(self._found, self._words.value or "", changed_only=self._changed.value)
        self._place.clear()
        with self._place:
            if not found:
                empty(self._text("none_matches"))
                return
            with ui.element("table").classes("settings"):
                _head(self._text, "setting", "value", "source")
                rows = ui.element("tbody")
        async for listed in paced(found):
            if rows.is_deleted:  # another filter has been set meanwhile
                return
            with rows:
                self._row(listed)

    def _row(self, listed: ListedSetting) -> None:
        setting, text = listed.setting, self._text
        source = text(f"source_{setting.source.replace(' ', '_')}")
        with ui.element("tr").classes("changed" if listed.is_changed else ""):
            with ui.element("th").props('scope="row"'):
                span(setting.variable)
                TextElement(tag="p", text=listed.description.replace("`", "")).classes("quiet description")
            cell(text("unset") if setting.value is None else setting.value, "value")
            cell(f"{source} {setting.read_from}" if setting.read_from else source)


def _head(text: Texts, *columns: str) -> None:
    with ui.element("thead"), ui.element("tr"):
        for column in columns:
            with ui.element("th").props('scope="col"'):
                span(text(column))
