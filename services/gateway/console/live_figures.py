"""The panels of the live page: percentiles and rates of searches and messages, what waits, and the processes."""

from __future__ import annotations

from nicegui import ui

from services.gateway.console.components import duration, panel, span
from services.gateway.console.figures import Figures, Spread
from services.gateway.console.texts import Texts
from services.runtime.stack_metrics import StackFigures


class LivePanels:
    """The panels, in a grid; `show` and `show_stack` set their texts.

    Args:
        sees_stack: whether the key permits metrics.
    """

    def __init__(self, text: Texts, *, sees_stack: bool) -> None:
        self._text = text
        self._processes: dict[str, bool] | None = None
        with ui.element("div").classes("grid figures"):
            with panel(text("searches")):
                self._searches = _Percentiles(text, text("search_is"))
                self._outcomes = span("", "line")
            with panel(text("messages")):
                self._messages = _Percentiles(text, text("message_is"))
            with panel(text("waiting")):
                if sees_stack:
                    self._backlog, self._oldest = span("", "line"), span("", "line quiet")
                    self._queues, self._dead = span("", "line"), span("", "line bad")
                else:
                    span(text("no_metrics"), "quiet")
            with panel(text("processes")):
                self._list = ui.element("ul").classes("processes")
                if not sees_stack:
                    span(text("no_metrics"), "quiet")

    def show(self, figures: Figures) -> None:
        """Show the figures."""
        self._searches.show(figures.searches, figures.span_s)
        self._messages.show(figures.messages, figures.span_s)
        found = figures.outcomes
        numbers = {name: found.get(name, 0) for name in ("partial", "late", "expired", "failed")}
        self._outcomes.set_text(self._text("bad_ones", **numbers))

    def show_stack(self, stack: StackFigures) -> None:
        """Show what waits, and which processes run."""
        text, unknown = self._text, "–"
        backlog = unknown if stack.backlog is None else f"{stack.backlog:,}"
        self._backlog.set_text(text("backlog", n=backlog))
        self._oldest.set_text(
            "" if not stack.oldest_s or not stack.backlog else text("oldest", s=f"{stack.oldest_s:,.1f}")
        )
        dead = sum(states.get("dead", 0) for states in stack.queues.values())
        queued = sum(sum(states.values()) for states in stack.queues.values()) - dead
        self._queues.set_text(text("in_queues", n=f"{queued:,}" if stack.queues else unknown))
        self._dead.set_text(text("dead", n=f"{dead:,}") if dead else "")
        if stack.processes != self._processes:
            self._processes = stack.processes
            self._list.clear()
            with self._list:
                self._show_processes(stack.processes)

    def _show_processes(self, processes: dict[str, bool]) -> None:
        for name, is_alive in processes.items():
            with ui.element("li"):
                span(name)
                span(self._text("alive" if is_alive else "no_sign"), "good" if is_alive else "bad")
        if not processes:
            with ui.element("li"):
                span(self._text("no_processes"), "quiet")


class _Percentiles:
    """Three percentiles, and the rate.

    Args:
        of: what they are the durations of.
    """

    def __init__(self, text: Texts, of: str) -> None:
        self._text = text
        self._values: list[ui.label] = []
        with ui.element("dl").classes("percentiles"):
            for name in ("p50", "p95", "p99"):
                with ui.element("div"):
                    with ui.element("dt"):
                        span(text(name), "quiet")
                    with ui.element("dd"):
                        self._values.append(span("–"))
        span(of, "line quiet")
        self._rate = span("", "line")

    def show(self, spread: Spread, span_s: float) -> None:
        for label, value in zip(self._values, (spread.p50, spread.p95, spread.p99), strict=True):
            label.set_text("–" if value is None else duration(self._text, value))
        unit, time_span = ("min", span_s / 60) if span_s >= 120 else ("s", span_s)
        numbers = {"all": f"{spread.number:,}", "n": f"{spread.per_minute:,.1f}"}
        self._rate.set_text(self._text(f"rate_{unit}", span=max(1, round(time_span)), **numbers))
