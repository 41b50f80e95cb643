"""The candidates of a search as a table: the score of each taken apart, what became of it, and where the cut fell."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final

from keepsake_client.turns import Candidate, Cut
from nicegui import ui

from services.gateway.console.components import bar, content, duration, heading, moment, span
from services.gateway.console.passed import stages_of
from services.gateway.console.texts import Texts
from services.gateway.console.turn_facts import PARTS, options_of, place_of_cut, reason_of_cut
from services.gateway.console.turn_story import memory_link
from services.gateway.console.viewer import Viewer
from services.runtime.turn import Search

#: Log-odds of a whole bar: three of them are 20 to 1.
WHOLE_BAR: Final = 5.0


class SearchPanel:
    """One search: its query and options, its stages, and its candidates.

    Args:
        user: whose turn it is, as records name it.
        names_users: whether that is the id.
    """

    def __init__(self, viewer: Viewer, text: Texts, search: Search, user: str, *, names_users: bool) -> None:
        self._viewer, self._text, self._user, self._names_users = viewer, text, user, names_users
        self._facts(search)
        if search.trace is not None and (stages := stages_of(search.trace)):
            self._stages(stages, search.trace.deadline_ms)
        if search.record is not None and search.record.cut is not None:
            self._table(search.record.candidates, search.record.cut)

    def _facts(self, search: Search) -> None:
        text, record = self._text, search.record
        with ui.element("dl").classes("pairs"):
            if record is not None:
                _pair(text("query"), lambda: content(self._viewer, text, record.query))
                options = json.dumps(options_of(record, names=self._viewer.sees_contents), ensure_ascii=False)
                _pair(text("options"), lambda: span(options, "options"))
            _pair("request_id", lambda: span(search.request_id, "options"))

    def _stages(self, stages: tuple[tuple[str, float], ...], deadline_ms: int | None) -> None:
        text, total = self._text, sum(ms for _, ms in stages)
        heading(text("stages"), 3)
        bar([(text(f"stage_{name}"), ms) for name, ms in stages], max(total, deadline_ms or 0))
        with ui.element("p").classes("legend quiet"):
            for place, (name, ms) in enumerate(stages):
                ui.element("span").classes(f"swatch stage-{place}").props('aria-hidden="true"')
                span(f"{text(f'stage_{name}')} {duration(text, ms)}")
            took = duration(text, total)
            budget = duration(text, deadline_ms) if deadline_ms else None
            span(text("took_of", ms=took, budget=budget) if budget else text("took", ms=took))

    def _table(self, candidates: list[Candidate], cut: Cut) -> None:
        text = self._text
        if cut.filtered or cut.echoes:
            with ui.element("p").classes("quiet"):
                span(text("left_out", filtered=cut.filtered, echoes=cut.echoes))
        place = place_of_cut(candidates)
        with ui.element("div").classes("scroll").props('tabindex="0"'), ui.element("table").classes("candidates"):
            with ui.element("caption").classes("quiet"):
                span(text("candidates", n=len(candidates), ranked=cut.ranked))
            self._head()
            with ui.element("tbody"):
                for number, candidate in enumerate(candidates[:place], 1):
                    self._row(number, candidate)
                with ui.element("tr").classes("cut"), ui.element("td").props(f'colspan="{len(PARTS) + 4}"'):
                    reason = reason_of_cut(candidates, cut)
                    span(text(f"cut_{reason}", limit=cut.limit, min_score=f"{cut.min_score:g}"))
                for number, candidate in enumerate(candidates[place:], place + 1):
                    self._row(number, candidate)

    def _head(self) -> None:
        text = self._text
        names = ("column_place", "column_memory", "column_score", *(f"part_{part}" for part in PARTS), "column_verdict")
        with ui.element("thead"), ui.element("tr"):
            for name in names:
                column = ui.element("th").props('scope="col"')
                with column.classes("" if name in ("column_memory", "column_verdict") else "number"):
                    span(text(name))

    def _row(self, number: int, candidate: Candidate) -> None:
        text, is_returned = self._text, candidate.verdict == "returned"
        with ui.element("tr").classes("" if is_returned else "out"):
            with ui.element("td").classes("number"):
                span(str(number))
            with ui.element("td").classes("memory"):
                content(self._viewer, text, candidate.content)
                self._origin(candidate)
            with _cell(text("column_score")):
                span(f"{candidate.score:.3f}")
            for part in PARTS:
                with _cell(text(f"part_{part}")).classes("part"):
                    balance(candidate.parts.get(part))
            with ui.element("td").classes("verdict"):
                span(text(f"verdict_{candidate.verdict}"), "good" if is_returned else "quiet")

    def _origin(self, candidate: Candidate) -> None:
        text = self._text
        with ui.element("p").classes("facts quiet"):
            source = f"source_{candidate.source}"
            if candidate.kind == "fact":
                span(text("kind_fact"))
            else:
                span(text(source) if text.has(source) else candidate.source)
            moment(self._viewer, text, candidate.timestamp)
            memory_link(self._viewer, text, self._user, candidate.id, names_users=self._names_users)


def _cell(label: str) -> ui.element:
    """A cell with a figure, whose label is shown on a phone, where the table has no head."""
    cell = ui.element("td").classes("number")
    cell.props["data-label"] = label
    return cell


def balance(value: float | None) -> None:
    """A part of a score as a figure with a bar: for it to the right, against it to the left."""
    if value is None:
        span("–", "quiet")
        return
    span(f"{value:+.2f}" if round(value, 2) else "0")
    share = min(1.0, abs(value) / WHOLE_BAR) * 50
    with ui.element("div").classes("balance").props('aria-hidden="true"'):
        side = ui.element("div").classes("for" if value >= 0 else "against")
        side.style(f"width: {share:.1f}%; {'left' if value >= 0 else 'right'}: 50%")


def _pair(name: str, show: Callable[[], object]) -> None:
    with ui.element("div"):
        with ui.element("dt").classes("quiet"):
            span(name)
        with ui.element("dd"):
            show()
