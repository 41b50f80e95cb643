"""One memory of a person: who said it when, its content and score; on demand its history, and what changes it."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from keepsake_client.protocol import LTMResponse, Memory
from nicegui import ui

from services.gateway.access import Right
from services.gateway.console.components import (
    action,
    attempted,
    button,
    confirmed,
    content,
    heading,
    link,
    loaded,
    moment,
    name,
    span,
)
from services.gateway.console.guard import ROOT
from services.gateway.console.people.person import Person
from services.gateway.console.people.profile import as_json
from services.gateway.console.texts import Texts
from services.gateway.console.viewer import Viewer

#: Characters of a content in a question.
_QUOTED = 200


class MemoryView:
    """One memory.

    Args:
        is_superseded: it is a fact that another has replaced.
    """

    def __init__(self, person: Person, text: Texts, memory: Memory, *, is_superseded: bool = False) -> None:
        self._person = person
        self._viewer = person.viewer
        self._text = text
        self._memory = memory
        self._is_superseded = is_superseded or "superseded_at" in memory.metadata

    def show(self) -> ui.element:
        """Show it; returns its element."""
        self._element = ui.element("article").classes("memory")
        with self._element:
            self._show_content()
            self._details = ui.element("div").classes("details")
        return self._element

    def _show_content(self) -> None:
        self._content = ui.element("div").classes("superseded" if self._is_superseded else "")
        with self._content:
            with ui.element("div").classes("said quiet"):
                self._show_origin()
                action(self._text("details"), self._toggle)
                if (turn_id := _turn_id(self._memory)) and self._viewer.may(Right.TRACE):
                    link(self._text("turn"), f"{ROOT}/turn?{urlencode({'id': turn_id})}")
            content(self._viewer, self._text, self._memory.content)

    def _show_origin(self) -> None:
        """Show who said it and when, and how well it matches."""
        memory, text = self._memory, self._text
        if memory.score is not None:
            _score(text, memory)
        moment(self._viewer, text, memory.timestamp)
        span(text(f"source_{memory.source}"))
        if memory.speaker is not None:
            name(memory.speaker.name or memory.speaker.id or "")
        for label, value in (("agent", memory.agent_id), ("about", memory.about), ("when", memory.when)):
            if value is not None:
                span(text(label))
                name(value)
        if self._is_superseded:
            span(text("superseded_since"))
            moment(self._viewer, text, _seconds(memory.metadata.get("superseded_at")))

    def _toggle(self) -> None:
        if self._details.default_slot.children:
            self._details.clear()
            return
        with self._details:
            loaded(self._text, lambda: self._person.memory(self._memory.id), self._show_details)

    def _show_details(self, response: LTMResponse) -> None:
        memory, text = response.memories[0], self._text
        with ui.element("dl"):
            with _entry(text("memory_id")):
                span(memory.id)
            with _entry(text("updated_at")):
                _iso_moment(self._viewer, text, memory.updated_at)
            with _entry(text("metadata")):
                content(self._viewer, text, as_json(memory.metadata))
        if response.history:
            self._show_history(response)
        with ui.element("div").classes("actions"):
            if self._viewer.may(Right.WRITE) and self._viewer.sees_contents:
                button(text("correct"), lambda: self._correct(memory))
            if self._viewer.may(Right.DELETE):
                button(text("delete"), self._delete)

    def _show_history(self, response: LTMResponse) -> None:
        heading(self._text("history"), 3)
        with ui.element("ul").classes("history"):
            for change in reversed(response.history or []):
                with ui.element("li"):
                    with ui.element("div").classes("said quiet"):
                        _iso_moment(self._viewer, self._text, change.changed_at or "")
                        span(change.event)
                    for words in (change.old_content, change.new_content):
                        if words:
                            content(self._viewer, self._text, words)

    async def _correct(self, memory: Memory) -> None:
        """Ask for the corrected content until it is stored, or given up; what was typed stays."""
        text = self._text
        with ui.dialog() as dialog, ui.card().classes("dialog"):
            heading(text("correct_title"))
            typed = ui.textarea(label=text("content"), value=memory.content).props('outlined autogrow dir="auto"')
            with ui.element("div").classes("actions"):
                button(text("cancel"), dialog.close)
                button(text("save"), lambda: dialog.submit(True))
        corrected = None
        while corrected is None and await dialog:
            corrected = await attempted(text, self._person.correct(memory.id, typed.value or ""))
        dialog.delete()
        if corrected is not None:
            self._refresh(corrected)

    def _refresh(self, memory: Memory) -> None:
        self._memory = memory
        self._details.clear()
        with self._element:
            old = self._content
            self._show_content()
            old.delete()
            self._content.move(target_index=0)

    async def _delete(self) -> None:
        text = self._text
        quoted = [self._memory.content[:_QUOTED]] if self._viewer.sees_contents else []
        notes = [text("delete_facts_too")] if self._memory.kind == "message" else []
        notes.append(text("delete_turns_too"))
        if not await confirmed(text, text("delete_question"), [*quoted, *notes], text("delete")):
            return
        if await attempted(text, self._person.delete(self._memory.id)) is not None:
            with self._element:
                self._element.clear()
                with ui.element("p").classes("state").props('role="status"'):
                    span(text("deleted_one"))


def _entry(label: str) -> ui.element:
    """The place of what a label names, in a list of such."""
    with ui.element("dt"):
        span(label)
    return ui.element("dd")


def _iso_moment(viewer: Viewer, text: Texts, written: str) -> None:
    try:
        moment(viewer, text, datetime.fromisoformat(written).timestamp())
    except ValueError:
        span(written)


def _score(text: Texts, memory: Memory) -> None:
    """The score, and its parts where they are known."""
    span(text("score", score=f"{memory.score:.2f}"), "score")
    parts = memory.metadata.get("score_parts")
    if isinstance(parts, dict):
        words = (
            f"{text(f'part_{part}') if text.has(f'part_{part}') else part} {value:+.2f}"
            for part, value in parts.items()
            if isinstance(value, int | float)
        )
        span(" · ".join(words), "parts")


def _turn_id(memory: Memory) -> str | None:
    """The id by which the turn of a memory is found: of its message, or of the request that added it."""
    for key in ("message_id", "request_id"):
        if found := memory.metadata.get(key):
            return str(found)
    return None


def _seconds(value: Any) -> float | None:
    return value if isinstance(value, int | float) else None
