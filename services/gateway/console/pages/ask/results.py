"""The results of one setting: what would come, why, what just missed, and how long it took."""

from __future__ import annotations

from urllib.parse import urlencode

from keepsake_client.turns import Candidate, Verdict
from nicegui import ui

from services.gateway.access import Right
from services.gateway.app import Gateway
from services.gateway.console.cases import MAX_MEMORIES, case_of, line_of
from services.gateway.console.components import (
    attempted,
    bar,
    button,
    content,
    duration,
    empty,
    link,
    moment,
    span,
)
from services.gateway.console.guard import ROOT
from services.gateway.console.pages.ask.setting import MinScore
from services.gateway.console.recall import Asked, Found, moves, options_of, scope_of_setting, verdicts_at
from services.gateway.console.texts import Texts
from services.gateway.console.turn_candidates import balance
from services.gateway.console.turn_facts import PARTS
from services.gateway.console.turn_story import memory_link
from services.gateway.console.viewer import Viewer


class Results:
    """The candidates of one search, which change with the slider of `min_score` without another search.

    Args:
        other: the answer to the setting that this one is compared with; None without one.
        min_score: the slider.
    """

    def __init__(
        self,
        gateway: Gateway,
        viewer: Viewer,
        text: Texts,
        asked: Asked,
        found: Found,
        other: Found | None,
        min_score: MinScore,
    ) -> None:
        self._gateway, self._viewer, self._text, self._asked, self._found = gateway, viewer, text, asked, found
        self._turn_text = viewer.texts("turn")
        self._rows: list[tuple[ui.element, ui.label]] = []
        self._summary = _paragraph("status")
        self._took()
        if not found.candidates:
            empty(text("nothing"))
        moved = moves(found.candidates, other.candidates) if other else [0] * len(found.candidates)
        with ui.element("ol").classes("found"):
            for place, (candidate, by) in enumerate(zip(found.candidates, moved, strict=True), 1):
                self._candidate(place, candidate, by)
        cut = found.response.cut
        if cut is not None:
            min_score.on_move = self._show_at
            min_score.learn_default(cut.min_score)
            self._show_at(cut.min_score)

    def _show_at(self, min_score: float) -> None:
        """Show what would become of the candidates by this `min_score`."""
        verdicts = verdicts_at(self._found.candidates, min_score, self._found.limit)
        for verdict, (row, label) in zip(verdicts, self._rows, strict=True):
            row.classes(remove="out") if verdict == "returned" else row.classes(add="out")
            label.set_text(self._turn_text(f"verdict_{verdict}"))
        self._summary.set_text(self._counted(verdicts, min_score))

    def _counted(self, verdicts: list[Verdict], min_score: float) -> str:
        cut, returned = self._found.response.cut, verdicts.count("returned")
        words = self._text("would_come", n=returned, best=len(verdicts), min_score=f"{min_score:.2f}")
        if cut is not None:
            words += " " + self._text("compared", ranked=f"{cut.ranked:,}", filtered=cut.filtered, echoes=cut.echoes)
        return words

    def _took(self) -> None:
        found, text = self._found, self._turn_text
        bar([(text(f"stage_{name}"), ms) for name, ms in found.stages], found.took_ms)
        with ui.element("p").classes("quiet facts"):
            span(text("took", ms=duration(text, found.took_ms)))
            for place, (name, ms) in enumerate(found.stages):
                with ui.element("span"):
                    ui.element("span").classes(f"swatch stage-{place}").props('aria-hidden="true"')
                    span(f"{text(f'stage_{name}')} {duration(text, ms)}")
            link(self._text("as_turn"), f"{ROOT}/turn?{urlencode({'id': found.request_id})}")
        if found.response.partial:
            with ui.element("p").classes("warn"):
                span(text("partial"))

    def _candidate(self, place: int, candidate: Candidate, moved: int | None) -> None:
        text = self._turn_text
        with ui.element("li") as row:
            with ui.element("p").classes("facts"):
                span(f"{place}", "place")
                span(f"{candidate.score:.3f}", "score")
                label = span(text(f"verdict_{candidate.verdict}"), "verdict")
                if moved != 0:
                    self._moved(moved)
            content(self._viewer, text, candidate.content)
            with ui.element("dl").classes("parts"):
                for part in PARTS:
                    with ui.element("div"):
                        with ui.element("dt").classes("quiet"):
                            span(text(f"part_{part}"))
                        with ui.element("dd").classes("number"):
                            balance(candidate.parts.get(part))
            self._origin(candidate)
        self._rows.append((row, label))

    def _moved(self, by: int | None) -> None:
        if by is None:
            span(self._text("only_here"), "moved")
        else:
            span(self._text("better" if by > 0 else "worse", n=abs(by)), "moved")

    def _origin(self, candidate: Candidate) -> None:
        text = self._turn_text
        with ui.element("p").classes("facts quiet"):
            source = f"source_{candidate.source}"
            span(text("kind_fact") if candidate.kind == "fact" else text(source) if text.has(source) else "?")
            moment(self._viewer, text, candidate.timestamp)
            if candidate.session_id is not None:
                span(candidate.session_id)
            memory_link(self._viewer, text, self._asked.user, candidate.id, names_users=True)
            if self._viewer.may(Right.EXPORT) and self._viewer.sees_contents:
                save = button(self._text("should_be_first"), lambda: self._save(candidate))
                save.props["title"] = self._text("saves_case", most=f"{MAX_MEMORIES:,}")

    async def _save(self, wanted: Candidate) -> None:
        line = await attempted(self._text, self._case(wanted))
        if line is not None:
            name = f"keepsake-case-{self._found.request_id[-12:]}.jsonl"
            ui.download.content(line, name, "application/x-ndjson")
            ui.notify(self._text("case_saved", name=name))

    async def _case(self, wanted: Candidate) -> bytes:
        found, viewer = self._found, self._viewer
        caller = viewer.permit(Right.EXPORT)
        user_id, scope = caller.user_of(self._asked.user), scope_of_setting(caller, found.setting)
        options = {**options_of(found.setting, viewer.zone), **{name: value for name, value in scope.items() if value}}
        options.pop("deadline_ms", None)
        question = {
            "id": found.request_id,
            "question": self._asked.query,
            "asked_at": round(found.at, 3),
            "options": options,
        }
        case = await case_of(self._gateway.ltm, user_id, scope, question, wanted)
        viewer.changed("case_saved", user_id=user_id, memory_id=wanted.id, memories=len(case["memories"]))
        return line_of(case)


def _paragraph(role: str) -> ui.label:
    with ui.element("p").props(f'role="{role}"'):
        return span("")
