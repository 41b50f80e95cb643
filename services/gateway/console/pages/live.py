"""The live page: what passes now, and the figures of the last hour."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import nicegui
from keepsake_client.errors import KeepsakeError
from nicegui import ui

from services.gateway.access import Right
from services.gateway.console.components import button, empty, heading, reason_of, span
from services.gateway.console.feed import FIGURES_EVERY, LiveFeed
from services.gateway.console.live_figures import LivePanels
from services.gateway.console.live_table import LiveTable, row_of
from services.gateway.console.page import ConsolePages
from services.gateway.console.passed import KINDS, OUTCOMES, Passed
from services.gateway.console.texts import Texts
from services.gateway.console.viewer import Viewer
from services.gateway.rates import RateLimited
from services.gateway.visibility import Visibility
from services.runtime.settings import Settings

#: Rows shown at first, and how many more at each request for more.
STEP: Final = 100
MAX_SHOWN: Final = 1_000
#: At every so many polls it is asked whether the key is still valid.
CHECK_EVERY: Final = 4 * FIGURES_EVERY


def add(pages: ConsolePages) -> None:
    """Register the page."""
    feed = pages.feed
    nicegui.app.on_shutdown(feed.close)

    async def build(viewer: Viewer, text: Texts, query: dict[str, str]) -> None:
        LivePage(feed, viewer, text, pages.gateway.settings, query)

    pages.add("live", "/", build, Right.TRACE)


class LivePage:
    """The page as one viewer sees it, from its build until the browser has gone.

    Args:
        query: `user`, `kind` and `outcome` filter the rows.
    """

    def __init__(
        self, feed: LiveFeed, viewer: Viewer, text: Texts, settings: Settings, query: Mapping[str, str]
    ) -> None:
        self._feed, self._viewer, self._text, self._settings = feed, viewer, text, settings
        self._visible = Visibility.of(viewer.permit(Right.TRACE), settings)
        self._wanted = {name: query.get(name, "") for name in ("user", "kind", "outcome")}
        self._has_chosen = "kind" in query or "outcome" in query
        self._polls, self._missed, self._is_paused, self._loads = 0, 0, False, 0
        heading(text("title"), 1)
        self._failure = span("", "failure line").props('role="alert"')
        self._panels = LivePanels(text, sees_stack=viewer.may(Right.METRICS))
        self._filter()
        self._state = ui.element("div").props('role="status"')
        with self._state:
            span(text("loading"), "state quiet")
        self._table = LiveTable(text, STEP)
        self._table.set_visibility(False)
        self._more = button(text("more"), self._show_more)
        self._legend()
        ui.timer(0, self._begin, once=True)  # with the browser's connection, which brings its time zone

    def _begin(self) -> None:
        self._stop = self._feed.watch(self._changed)
        ui.context.client.on_delete(self._stop)
        if self._feed.is_loaded:
            self._changed([])

    def _filter(self) -> None:
        text = self._text
        with ui.element("form").classes("filter search").props('role="search"') as form:
            form.props["aria-label"] = text("filter")
            form.on("submit", js_handler="(event) => event.preventDefault()")
            with ui.element("label"):
                span(text("filter_user"), "quiet")
                field = ui.element("input").props('type="search" name="user" autocomplete="off" spellcheck="false"')
                # Not `value`: Vue would set it again, over what was typed, whenever the page changes.
                field.props["defaultValue"] = self._wanted["user"]
                field.on("input", self._choosing("user"), throttle=0.3, js_handler="(e) => emit(e.target.value)")
            kinds = {"": text("all")} | {kind: text(f"kinds_{kind}") for kind in KINDS}
            self._kind = choice(text("filter_kind"), kinds, self._wanted["kind"], self._choosing("kind"))
            outcomes = {"": text("all")} | {outcome: text(f"outcome_{outcome}") for outcome in OUTCOMES}
            choice(text("filter_outcome"), outcomes, self._wanted["outcome"], self._choosing("outcome"))
            self._pause = button(text("pause"), self._toggle).props('type="button"')

    def _legend(self) -> None:
        with ui.element("p").classes("legend quiet"):
            span(self._text("legend"))
            for place, name in enumerate(("queue", "embed", "database", "rank", "publish")):
                ui.element("span").classes(f"swatch stage-{place}").props('aria-hidden="true"')
                span(self._text(f"stage_{name}"))

    def _choosing(self, name: str) -> Callable[[Any], None]:
        def choose(event: Any) -> None:
            self._wanted[name] = str(event.args)
            self._table.limit = STEP
            self._show_all()

        return choose

    def _toggle(self) -> None:
        self._is_paused, self._missed = not self._is_paused, 0
        self._pause.set_text(self._text("resume", n=0) if self._is_paused else self._text("pause"))
        if not self._is_paused:
            self._show_all()

    def _show_more(self) -> None:
        self._table.limit += STEP
        self._show_all()

    def _changed(self, changed: list[Passed]) -> None:
        """Show what the feed has read."""
        feed = self._feed
        if self._polls % CHECK_EVERY == 0 and not self._is_permitted():
            return
        self._failure.set_text(reason_of(self._text, feed.failure) if feed.failure else "")
        if feed.is_loaded and self._polls % FIGURES_EVERY == 0:
            self._panels.show(feed.figures(self._visible))
        if feed.stack is not None and self._viewer.may(Right.METRICS):
            self._panels.show_stack(feed.stack)
        self._polls += 1
        if not feed.is_loaded:
            return
        wanted = [row for row in changed if self._wants(row)]
        if self._loads == 0:
            self._show_first()
        elif self._loads != feed.loads:
            self._show_all()  # even while paused: what is on show may be gone
        elif self._is_paused:
            self._missed += len(wanted)
            self._pause.set_text(self._text("resume", n=self._missed))
        elif wanted and self._table.visible:
            self._table.add([row_of(row, self._viewer, self._text) for row in wanted[-self._table.limit :]])
        elif wanted:
            self._show_all()

    def _is_permitted(self) -> bool:
        """Whether the key is still valid, for what it was; what is shown stays, and is not added to."""
        try:
            is_same = Visibility.of(self._viewer.permit(Right.TRACE), self._settings) == self._visible
        except RateLimited:
            return True  # it is asked again
        except KeepsakeError as error:
            self._end(reason_of(self._text, error))
            return False
        if not is_same:
            self._end(self._text("stopped"))
        return is_same

    def _end(self, reason: str) -> None:
        self._stop()
        self._failure.set_text(reason)

    def _show_first(self) -> None:
        """Show the rows: turns, where there are any and nothing else is asked for, for searches are many."""
        if not self._has_chosen:
            seen = (row for row in self._feed.newest() if self._visible.sees(row.user))
            self._wanted["kind"] = "reply" if any(row.kind == "reply" for row in seen) else ""
            self._kind.props["value"] = self._wanted["kind"]
            self._kind.update()
        self._show_all()

    def _show_all(self) -> None:
        limit, rows = self._table.limit, []
        self._loads = self._feed.loads if self._feed.is_loaded else 0
        for row in self._feed.newest():
            if self._wants(row):
                rows.append(row_of(row, self._viewer, self._text))
            if len(rows) == limit:
                break
        self._table.show(rows, limit)
        self._table.set_visibility(bool(rows))
        self._more.set_visibility(len(rows) == limit < MAX_SHOWN)
        self._state.clear()
        with self._state:
            self._say_state(is_empty=not rows)

    def _say_state(self, *, is_empty: bool) -> None:
        text, settings = self._text, self._settings
        if settings.ltm_trace_max_len == 0:
            empty(text("traces_off"))
        elif is_empty and any(self._wanted.values()):
            empty(text("nothing_matches"))
        elif is_empty:
            empty(text("nothing"), "ltm demo")
        elif settings.ltm_turns != "contents":
            span(text("texts_off", value=settings.ltm_turns), "quiet")
        elif self._feed.texts_failure is not None:
            span(text("texts_refused"), "quiet")

    def _wants(self, row: Passed) -> bool:
        kind, outcome, user = self._wanted["kind"], self._wanted["outcome"], self._wanted["user"]
        return (
            kind in ("", row.kind)
            and outcome in ("", row.outcome)
            and user.casefold() in row.user.casefold()
            and self._visible.sees(row.user)
        )


def choice(label: str, options: Mapping[str, str], value: str, on_change: Callable[[Any], None]) -> ui.element:
    """A labelled choice of one of several options."""
    with ui.element("label"):
        span(label, "quiet")
        with ui.element("select") as element:
            for name, shown in options.items():
                option = ui.element("option").props(f'value="{name}"')
                with option:
                    span(shown)
        element.props["value"] = value

        def choose(event: Any) -> None:
            element.props["value"] = str(event.args)  # which Vue sets again whenever the page changes
            element.update()
            on_change(event)

        element.on("change", choose, js_handler="(e) => emit(e.target.value)")
    return element
