"""The page people."""

from __future__ import annotations

from services.gateway.access import Right
from services.gateway.console.components import empty, heading
from services.gateway.console.page import ConsolePages
from services.gateway.console.texts import Texts
from services.gateway.console.viewer import Viewer


def add(pages: ConsolePages) -> None:
    """Register the page."""

    async def build(viewer: Viewer, text: Texts, query: dict[str, str]) -> None:
        heading(text("title"), 1)
        empty("…")

    pages.add("people", "/people", build, Right.TRACE)
