"""The fields of one setting of a search, and the slider of its `min_score`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from nicegui import ui
from nicegui.events import ValueChangeEventArguments

from services.gateway.console.components import button, span
from services.gateway.console.recall import Setting, local_minute
from services.gateway.console.texts import Texts
from services.gateway.console.viewer import Viewer

#: Fields that are shown at once; the others are below "More options", which is open where one of them is set.
_TIMES: Final = ("since", "until")
_WITH_NUMBERS: Final = ("recency_half_life_days", "deadline_ms")


class MinScore:
    """The slider of `min_score`: it says its value, and calls what shows the candidates as it moves.

    Args:
        setting: the slider writes it; without `min_score` the memory's default counts.
    """

    def __init__(self, text: Texts, setting: Setting) -> None:
        self._text = text
        self._setting = setting
        self._default: float | None = None
        self.on_move: Callable[[float], None] = lambda _: None
        with ui.element("div").classes("min-score"):
            span("min_score")
            self._slider = ui.slider(min=0, max=1, step=0.01, value=self.value or 0, on_change=self._moved)
            self._slider.props["aria-label"] = "min_score"
            self._words = span("").classes("number")
            button(text("by_default"), self._reset)
        self._say()

    @property
    def value(self) -> float | None:
        """What is set, or the default where that is known."""
        try:
            return float(self._setting["min_score"])
        except (KeyError, ValueError):
            return self._default

    def learn_default(self, default: float) -> None:
        """Show the default that a search has told, where nothing else is set."""
        if "min_score" not in self._setting:
            self._default = default
            self._show(default)

    def _moved(self, event: ValueChangeEventArguments[float | None]) -> None:
        if event.value is None or (value := round(event.value, 2)) == self.value:
            return
        self._setting["min_score"] = f"{value:g}"
        self._say()
        self.on_move(value)

    def _reset(self) -> None:
        self._setting.pop("min_score", None)
        self._show(self.value or 0.0)

    def _show(self, value: float) -> None:
        self._slider.set_value(value)
        self._say()
        self.on_move(value)

    def _say(self) -> None:
        value = self.value
        words = "" if value is None else f"{value:.2f}"
        self._words.set_text(words if "min_score" in self._setting else self._text("default", value=words).strip())


def field(label: str, values: dict[str, str], name: str) -> ui.input:
    """A field for a text, which is kept in `values` by its name."""

    def keep(event: ValueChangeEventArguments[Any]) -> None:
        values[name] = str(event.value or "")

    return ui.input(label, value=values.get(name, ""), on_change=keep).props("dense outlined")


def setting_fields(viewer: Viewer, text: Texts, setting: Setting) -> MinScore:
    """The fields of a setting."""
    with ui.element("div").classes("fields"):
        field(text("limit"), setting, "limit").props('type=number min=1 max=100 placeholder="5"').classes("short")
        min_score = MinScore(text, setting)
    more = set(setting) - {"limit", "min_score"}
    with ui.element("details").props("open" if more else ""):
        with ui.element("summary"):
            span(text("more_options"))
        with ui.element("div").classes("fields"):
            _filters(viewer, text, setting)
            field(text("agent_id"), setting, "agent_id")
            _switch(text, setting, "all_agents")
            _switch(text, setting, "include_superseded")
            for name in _WITH_NUMBERS:
                field(text(name), setting, name).props("type=number min=0 step=any")
    return min_score


def _filters(viewer: Viewer, text: Texts, setting: Setting) -> None:
    field(text("session_id"), setting, "session_id")
    field(text("exclude_session"), setting, "exclude_session")
    sources = {"": text("any_source"), "user": text("source_user"), "ai": text("source_ai")}

    def choose(event: ValueChangeEventArguments[Any]) -> None:
        setting["source"] = str(event.value or "")

    source = setting.get("source", "")
    chosen = ui.select(sources, label=text("source"), value=source if source in sources else "", on_change=choose)
    chosen.props("dense outlined options-dense")
    field(text("speaker"), setting, "speaker")
    for name in _TIMES:
        setting_time = local_minute(setting[name], viewer.zone) if name in setting else ""
        shown = field(text(name), setting, name).props("type=datetime-local stack-label")
        shown.set_value(setting_time)


def _switch(text: Texts, setting: Setting, name: str) -> None:
    def keep(event: ValueChangeEventArguments[Any]) -> None:
        setting[name] = "1" if event.value else ""

    ui.checkbox(text(name), value=name in setting, on_change=keep).props("dense")
