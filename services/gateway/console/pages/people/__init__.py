"""The page people: finds a user, and shows what is remembered of one."""

from __future__ import annotations

from services.gateway.access import Right
from services.gateway.console.page import ConsolePages
from services.gateway.console.pages.people import finding, person
from services.gateway.console.people.asked import Asked
from services.gateway.console.people.person import Person
from services.gateway.console.texts import Texts
from services.gateway.console.viewer import Viewer


def add(pages: ConsolePages) -> None:
    """Register the page."""

    async def build(viewer: Viewer, text: Texts, query: dict[str, str]) -> None:
        caller = viewer.permit(Right.READ)
        asked = Asked.read(query, caller)
        if asked is None:
            finding.show(pages.gateway, viewer, text, query.get("prefix", ""))
        else:
            person.show(Person(pages.gateway, viewer, asked), text)

    pages.add("people", "/people", build, Right.READ)
