"""What waits, and waited within the last hour: a row with its course for each list and queue."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from keepsake_client.errors import Unavailable
from nicegui import ui

from services.gateway.console.components import empty, failure, head, panel, span
from services.gateway.console.depths import HEIGHT, INTERVAL_S, WIDTH, Course, DepthSampler
from services.gateway.console.texts import Texts
from services.gateway.console.viewer import Viewer
from services.runtime.stack_metrics import StackFigures

#: Of the messages of a queue that do not wait for a worker.
_OTHER_STATES: Final = ("dead", "working", "delayed")


class _Row:
    """The row of one depth.

    Args:
        name: of the depth: `backlog`, `oldest_s`, `list:NAME` or `queue:NAME`.
    """

    def __init__(self, text: Texts, name: str) -> None:
        self._text = text
        self._name = name
        with ui.element("tr"):
            with ui.element("th").props('scope="row"'):
                span(text(name))
                with ui.element("div").classes("quiet explained"):
                    span(text(f"{name}_is"))
            with ui.element("td"):
                self._chart = ui.element("svg").classes("course").props('role="img" preserveAspectRatio="none"')
                self._chart.props["viewBox"] = f"-1 -1 {WIDTH + 2} {HEIGHT + 2}"
                with self._chart:
                    self._line = ui.element("path")
            self._now, *self._others, self._most = (_figure() for _ in range(2 + len(_OTHER_STATES)))

    def show(self, course: Course, figures: StackFigures) -> None:
        """Show the figures of this moment; only what has changed is sent to the browser."""
        self._now.set_text(self._worded(course.now))
        self._most.set_text(self._worded(course.most))
        states = figures.queues.get(self._name.removeprefix("queue:"), {})
        for shown, state in zip(self._others, _OTHER_STATES, strict=True):
            shown.set_text(f"{states[state]:,}" if state in states else "")
        is_bad = bool(states.get("dead"))
        self._others[0].classes(add="bad" if is_bad else "", remove="" if is_bad else "bad")
        _set(self._line, "d", course.line)
        words = self._text("course", name=self._text(self._name), now=self._now.text, most=self._most.text)
        _set(self._chart, "aria-label", words)

    def _worded(self, depth: float | None) -> str:
        if depth is None:
            return "?"
        return self._text("seconds", n=f"{depth:,.0f}") if self._name == "oldest_s" else f"{depth:,.0f}"


def waiting(viewer: Viewer, text: Texts, sampler: DepthSampler) -> None:
    """Show what waits, and go on showing it."""
    with panel(text("waiting")):
        state = ui.element("div")
        with ui.element("div").classes("scroll"), ui.element("table").classes("depths"):
            head(text, ["what", "last_hour"], ["waits_now", *_OTHER_STATES, "most"])
            body = ui.element("tbody")
        rows: dict[str, _Row] = {}
        said: list[str] = []

        def show() -> None:
            figures = sampler.figures
            for name in _names(figures):
                if name not in rows:
                    with body:
                        rows[name] = _Row(text, name)
            for name, row in rows.items():
                row.show(sampler.course(name), figures)
            if (sentences := _sentences(viewer, text, sampler)) != said:
                said[:] = sentences
                state.clear()
                with state:
                    if not figures.up:
                        failure(text, Unavailable())
                    for sentence in sentences:
                        empty(sentence)

        show()
        ui.timer(INTERVAL_S, show)


def _names(figures: StackFigures) -> list[str]:
    """The depths that have a row, in their order."""
    lists, queues = (f"list:{name}" for name in figures.lists), (f"queue:{name}" for name in figures.queues)
    return ["backlog", "oldest_s", *lists, *queues]


def _sentences(viewer: Viewer, text: Texts, sampler: DepthSampler) -> list[str]:
    """What the table does not show, in words."""
    figures = sampler.figures
    found = [text("unseen", part=part, reason=reason) for part, reason in figures.unseen.items()]
    if sampler.samples and len(sampler.samples) < (sampler.samples.maxlen or 0):
        began = datetime.fromtimestamp(sampler.samples[0].at, viewer.zone)
        found.append(text("sampled_since", began=f"{began:%H:%M}"))
    return found


def _figure() -> ui.label:
    with ui.element("td").classes("number"):
        return span("")


def _set(element: ui.element, prop: str, value: str) -> None:
    if element.props.get(prop) != value:
        element.props[prop] = value
        element.update()
