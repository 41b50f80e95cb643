"""The counters of the stack, those that count losses and faults first, each with what it means."""

from __future__ import annotations

from nicegui import ui

from services.gateway.console.components import empty, head, panel, span
from services.gateway.console.depths import DepthSampler
from services.gateway.console.texts import Texts
from services.runtime.stack_metrics import ALARMING


def counters(text: Texts, sampler: DepthSampler) -> None:
    """Show the counters as they were when the page was opened."""
    with panel(text("counters")):
        numbers, grown = sampler.figures.counters, sampler.counted_within_hour()
        if not any(numbers.values()):
            empty(text("none_counted"))
            return
        faults, others = sorted_counters(text, numbers)
        with ui.element("div").classes("scroll"):
            _table(text, "faults", faults, numbers, grown)
        if others:
            with ui.element("details"):
                with ui.element("summary"):
                    span(text("other_counters", n=len(others)))
                with ui.element("div").classes("scroll"):
                    _table(text, "counted", others, numbers, grown)


def sorted_counters(text: Texts, numbers: dict[str, int]) -> tuple[list[str], list[str]]:
    """The counters of losses and faults, those that have counted something before the others; and the rest.

    Of the former, the text is named `counter_`, of the rest `counted_`.
    """
    faults = [name for name in numbers if name in ALARMING or text.has(f"counter_{name}")]
    return sorted(faults, key=lambda name: numbers[name] == 0), [name for name in numbers if name not in faults]


def _table(text: Texts, first: str, names: list[str], numbers: dict[str, int], grown: dict[str, int]) -> None:
    with ui.element("table"):
        head(text, [first], ["within_hour", "all_time"])
        with ui.element("tbody"):
            for name in names:
                with ui.element("tr"):
                    with ui.element("th").props('scope="row"'):
                        with ui.element("code"):
                            span(name)
                        for words in (f"counter_{name}", f"counted_{name}"):
                            if text.has(words):
                                with ui.element("div").classes("quiet explained"):
                                    span(text(words))
                    is_fault = first == "faults"
                    _figure(grown.get(name, 0), "bad" if is_fault and grown.get(name) else "")
                    _figure(numbers[name], "warn" if is_fault and numbers[name] else "")


def _figure(number: int, classes: str) -> None:
    with ui.element("td").classes("number"):
        span(f"{number:,}", classes)
