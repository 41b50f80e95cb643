"""The first screen of a turn: what was said, what was found and why, what the model was told, and what it replied."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlencode

from keepsake_client.protocol import TraceRecord
from keepsake_client.turns import Candidate
from nicegui import ui

from services.gateway.access import Right
from services.gateway.console.components import content, duration, link, moment, name, name_link, panel, span
from services.gateway.console.guard import ROOT
from services.gateway.console.passed import stages_of
from services.gateway.console.people.asked import person_url
from services.gateway.console.texts import Texts
from services.gateway.console.turn_facts import main_part, returned, search_of_reply
from services.gateway.console.viewer import Viewer
from services.runtime.turn import Search, Turn

#: Memories that the first screen shows.
FIRST: Final = 3


class TurnStory:
    """Four panels, side by side where there is room.

    Args:
        names_users: whether records name users by their ids, so that a memory can be linked to.
    """

    def __init__(self, viewer: Viewer, text: Texts, turn: Turn, *, names_users: bool) -> None:
        self._viewer, self._text, self._turn, self._names_users = viewer, text, turn, names_users
        with ui.element("div").classes("story"):
            with panel(text("said")):
                self._said()
            with panel(text("found")):
                self._found(search_of_reply(turn))
            with panel(text("told")):
                self._prompt_in_short()
            with panel(text("replied")):
                self._replied()

    def _said(self) -> None:
        turn, text = self._turn, self._text
        content(self._viewer, text, turn.text)
        with ui.element("p").classes("facts quiet"):
            if turn.user:
                user_link(self._viewer, turn.user, names_users=self._names_users)
            moment(self._viewer, text, turn.at)
        with ui.element("p").classes("facts"):
            self._said_state(turn.message)

    def _said_state(self, message: TraceRecord | None) -> None:
        text = self._text
        if message is None:
            span(text("message_unknown"), "quiet")
        elif message.outcome != "ok":
            span(text("message_failed", code=message.outcome), "bad")
        else:
            took = sum(ms for _, ms in stages_of(message))
            span(text("message_indexed", ms=duration(text, took)), "good")
            if message.message_id:
                memory = memory_of(self._turn, message.message_id)
                if memory is not None:
                    memory_link(self._viewer, text, self._turn.user, memory.id, names_users=self._names_users)

    def _found(self, search: Search | None) -> None:
        text = self._text
        if search is None:
            span(text("no_search"), "quiet")
            return
        trace, record = search.trace, search.record
        if trace is not None and trace.outcome != "ok":
            span(text("failed", code=trace.outcome), "bad line")
        if record is not None and record.cut is not None:
            told = returned(record.candidates)
            how = self._how(trace)
            with ui.element("p").classes("facts"):
                span(text("memories_told", n=len(told), ranked=record.cut.ranked, how=how))
            if record.cut.partial:
                span(text("partial"), "warn line")
            self._first(told)
        elif trace is not None and trace.memories is not None:
            with ui.element("p").classes("facts"):
                span(text("memories_told", n=trace.memories, ranked="?", how=self._how(trace)))
        if trace is not None and trace.late_ms is not None:
            span(text("late", ms=duration(text, trace.late_ms)), "warn line")
        if record is not None and record.cut is not None:
            link(text("all_candidates"), "#candidates")

    def _how(self, trace: TraceRecord | None) -> str:
        """How long it took, and of how much time."""
        if trace is None:
            return "–"
        took = duration(self._text, sum(ms for _, ms in stages_of(trace)))
        if trace.deadline_ms is None:
            return self._text("took", ms=took)
        return self._text("took_of", ms=took, budget=duration(self._text, trace.deadline_ms))

    def _first(self, told: list[Candidate]) -> None:
        text = self._text
        if not told:
            span(text("nothing_found"), "quiet")
        with ui.element("ol").classes("first"):
            for candidate in told[:FIRST]:
                with ui.element("li"):
                    content(self._viewer, text, candidate.content)
                    with ui.element("p").classes("facts quiet"):
                        span(text("score", score=f"{candidate.score:.2f}"))
                        if part := main_part(candidate):
                            span(text("mainly", part=text(f"part_{part}")))
                        memory_link(self._viewer, text, self._turn.user, candidate.id, names_users=self._names_users)

    def _prompt_in_short(self) -> None:
        text, record, prompt = self._text, self._turn.reply_record, self._turn.prompt
        if record is not None and record.model:
            is_built_in = record.model == "built-in"
            span(text("built_in") if is_built_in else text("model", model=record.model))
        if prompt is None:
            content(self._viewer, text, None)
            return
        with ui.element("p").classes("facts quiet"):
            span(text("prompt_of", n=len(prompt), chars=sum(len(one.content) for one in prompt)))
        system = [one for one in prompt if one.role in ("system", "developer")] or prompt
        if system:
            content(self._viewer, text, system[0].content)
        link(text("whole_prompt"), "#prompt")

    def _replied(self) -> None:
        text, turn, memory = self._text, self._turn, self._turn.reply_memory
        if memory.why != "no_reply":
            content(self._viewer, text, turn.reply)
        times = turn.reply_trace.times if turn.reply_trace else {}
        if "asked" in times and "replied" in times:
            with ui.element("p").classes("facts quiet"):
                took = duration(text, (times["replied"] - times["asked"]) * 1000)
                span(text("reply_took", ms=took))
        tone = {"remembered": "good", "waiting": "warn", "not_remembered": "warn", "unknown": "quiet"}[memory.state]
        with ui.element("p").classes("facts"):
            span(text(f"reply_{memory.why}", detail=memory.detail), tone)
            if memory.message_id:
                link(text("see_reply"), turn_url(memory.message_id))


def memory_of(turn: Turn, message_id: str) -> Candidate | None:
    """The memory that a message became, where a search of the turn ranked it."""
    candidates = [one for search in turn.searches if search.record for one in search.record.candidates]
    return next((one for one in candidates if one.message_id == message_id and one.kind == "message"), None)


def turn_url(identifier: str) -> str:
    """Where the page of a turn is."""
    return f"{ROOT}/turn?{urlencode({'id': identifier}, errors='replace')}"


def user_link(viewer: Viewer, user: str, *, names_users: bool) -> None:
    """A user, as a link to what is remembered of them, where that is permitted."""
    if names_users and viewer.may(Right.READ):
        name_link(user, person_url(user))
    else:
        name(user)


def memory_link(viewer: Viewer, text: Texts, user: str, memory_id: str, *, names_users: bool) -> None:
    """A link to a memory, where that is permitted."""
    if names_users and user and viewer.may(Right.READ):
        link(text("see_memory"), person_url(user, memory_id))
