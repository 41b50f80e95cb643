"""The facts of a person, those that others have replaced struck through; the words that say them on demand."""

from __future__ import annotations

from keepsake_client.protocol import Memory
from nicegui import ui

from services.gateway.console.components import action, button, empty, heading, loaded, span
from services.gateway.console.pages.people.memories import filter_form
from services.gateway.console.pages.people.memory import MemoryView
from services.gateway.console.people.facts import FactKind, FactPages
from services.gateway.console.people.person import Person
from services.gateway.console.texts import Texts

#: Memories that are shown as the evidence of one fact.
MAX_EVIDENCE = 20


def show(person: Person, text: Texts) -> None:
    """Show the filters and the facts."""
    filter_form(person, text)
    _Facts(person, text).show()


class _Facts:
    """Facts, newest first; more by pages."""

    def __init__(self, person: Person, text: Texts) -> None:
        kinds: list[FactKind] = ["fact", "superseded"] if person.asked.kinds == "all" else [person.asked.kinds]
        self._pages = FactPages(person.page, kinds)
        self._person = person
        self._text = text

    def show(self) -> None:
        loaded(self._text, self._pages.next, self._show_first)

    def _show_first(self, facts: list[tuple[FactKind, Memory]]) -> None:
        if not facts:
            empty(self._text("nothing_matches" if self._person.asked.filters else "no_facts"))
            return
        self._list = ui.element("div").classes("facts")
        self._more = ui.element("div").classes("more")
        self._append(facts)

    def _append(self, facts: list[tuple[FactKind, Memory]]) -> None:
        with self._list:
            for kind, fact in facts:
                with ui.element("div").classes("fact"):
                    MemoryView(self._person, self._text, fact, is_superseded=kind == "superseded").show()
                    show_fact_evidence(self._person, self._text, fact)
        self._more.clear()
        if self._pages.has_more:
            with self._more:
                button(self._text("more"), self._show_more)

    def _show_more(self) -> None:
        self._more.clear()
        with self._more:
            loaded(self._text, self._pages.next, self._append)


def show_fact_evidence(person: Person, text: Texts, fact: Memory) -> None:
    """Show a button for the words that say a fact, and for the fact that has replaced it."""
    show_evidence(person, text, _ids(fact.metadata.get("evidence")), _replaced_by(fact))


def show_evidence(person: Person, text: Texts, evidence: list[str], replaced_by: list[str] | None = None) -> None:
    """Show a button for the words that say something, and for the fact that has replaced it."""
    place = ui.element("div").classes("evidence")

    async def load() -> tuple[list[Memory], list[Memory]]:
        return await person.memories(evidence[:MAX_EVIDENCE]), await person.memories(replaced_by or [])

    def show(found: tuple[list[Memory], list[Memory]]) -> None:
        words, replacing = found
        if not words:
            empty(text("no_evidence"))
        for memory in words:
            MemoryView(person, text, memory).show()
        if len(evidence) > MAX_EVIDENCE:
            span(text("more_evidence", count=len(evidence) - MAX_EVIDENCE), "quiet")
        for memory in replacing:
            heading(text("replaced_by"), 3)
            MemoryView(person, text, memory).show()

    def open_it() -> None:
        place.clear()
        with place:
            loaded(text, load, show)

    with place:
        action(text("evidence", count=len(evidence)), open_it)


def _ids(value: object) -> list[str]:
    return [str(memory_id) for memory_id in value] if isinstance(value, list) else []


def _replaced_by(fact: Memory) -> list[str]:
    replacing = fact.metadata.get("superseded_by")
    return [str(replacing)] if replacing else []
