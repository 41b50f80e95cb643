"""LiveTable: the table of the live page, whose rows are drawn by the browser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from keepsake_client.protocol import clean
from nicegui import ui

from services.gateway.console.components import clock, duration
from services.gateway.console.guard import ROOT
from services.gateway.console.passed import Outcome, Passed
from services.gateway.console.texts import Texts
from services.gateway.console.viewer import Viewer
from services.runtime.controls import escape_controls

#: The length of a whole bar, in milliseconds, of what has no deadline.
WHOLE_BAR_MS: Final = 600.0
#: Of a message: a backlog makes it wait for longer than a search may.
WHOLE_BAR_OF_MESSAGE_MS: Final = 5_000.0
_COLUMNS: Final = ("at", "kind", "user", "words", "stages", "took", "outcome")
_COLOURS: Final = {
    "queue": 0,
    "embed": 1,
    "database": 2,
    "rank": 3,
    "publish": 4,
    "wait": 4,
    "index": 1,
    "search": 0,
    "reply": 5,
}
_TONES: Final[dict[Outcome, str]] = {
    "ok": "good",
    "partial": "warn",
    "late": "warn",
    "expired": "bad",
    "unanswered": "warn",
    "failed": "bad",
}

Row = dict[str, Any]


class LiveTable(ui.element, component=Path(__file__).parent / "static" / "live_table.js"):
    """A table of rows, newest first; a row costs the server no elements.

    Args:
        text: of the live page.
        limit: how many rows are shown.
    """

    def __init__(self, text: Texts, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.rows: list[Row] = []
        self._props |= {"rows": [], "limit": limit, "caption": text("passed")}
        self._props["headings"] = {name: text(f"column_{name}") for name in _COLUMNS}

    def show(self, rows: Sequence[Row], limit: int) -> None:
        """Show these rows in place of all, newest first."""
        self.limit, self.rows = limit, list(rows)
        self._props |= {"rows": self.rows, "limit": limit}
        self.update()

    def add(self, rows: Sequence[Row]) -> None:
        """Add rows, oldest first; those that are shown already are replaced."""
        rows = rows[-self.limit :]
        new = {row["id"]: row for row in rows}
        kept = [new.pop(row["id"], row) for row in self.rows]
        self.rows = [*reversed(new.values()), *kept][: self.limit]
        self._props["rows"] = self.rows  # for a browser that connects again
        self.run_method("add", list(rows))

    def _displayed_contents(self, *, only_visible: bool) -> list[Any]:
        del only_visible
        return [value for row in self.rows for value in row.values() if isinstance(value, str)]


def row_of(passed: Passed, viewer: Viewer, text: Texts) -> Row:
    """A row as the table shows it to a viewer."""
    at = clock(viewer, passed.at)
    sees = viewer.sees_contents and passed.words is not None
    turn_id = passed.turn_id
    whole_ms = passed.deadline_ms or (WHOLE_BAR_OF_MESSAGE_MS if passed.kind == "message" else WHOLE_BAR_MS)
    whole_ms = max(whole_ms, passed.total_ms or 0)
    return {
        "id": passed.entry_id,
        "at": at.short if at else "",
        "exact": at.exact if at else "",
        "kind": _kind(passed, text),
        "user": escape_controls(passed.user),
        "url": f"{ROOT}/turn?{urlencode({'id': clean(turn_id)})}",
        "words": str(clean(passed.words)) if sees else escape_controls(turn_id),
        "has_words": sees,
        "reply": str(clean(passed.reply)) if sees and passed.reply else "",
        "stages": [
            {"colour": _COLOURS.get(name, 4), "width": round(100 * ms / whole_ms, 1)} for name, ms in passed.stages
        ],
        "spoken": ", ".join(f"{text(f'stage_{name}')} {duration(text, ms)}" for name, ms in passed.stages),
        "took": _took(passed, text),
        "outcome": _outcome(passed, text),
        "tone": _TONES[passed.outcome],
        "found": "" if passed.memories is None or passed.kind == "message" else text("found", n=passed.memories),
    }


def _kind(passed: Passed, text: Texts) -> str:
    if passed.kind == "message":
        return text("kind_message_ai" if passed.by_ai else "kind_message")
    return escape_controls(passed.type) if passed.kind in ("search", "change") else text("kind_reply")


def _took(passed: Passed, text: Texts) -> str:
    if passed.total_ms is None:
        return ""
    took = duration(text, passed.total_ms)
    return text("took_of", ms=took, budget=duration(text, passed.deadline_ms)) if passed.deadline_ms else took


def _outcome(passed: Passed, text: Texts) -> str:
    if passed.late_ms is not None and passed.outcome == "late":
        return text("outcome_late_by", ms=duration(text, passed.late_ms))
    if passed.outcome == "failed":
        return text("outcome_failed_as", code=escape_controls(passed.code))
    if passed.outcome == "ok" and passed.kind != "search":
        return text(f"outcome_ok_{passed.kind}")
    return text(f"outcome_{passed.outcome}")
