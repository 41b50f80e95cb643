"""Output of the commands: with colours on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from rich.console import Console


def printable(text: str) -> str:
    """User-generated text made safe for a terminal: one line, without control characters."""
    return "".join(char if char.isprintable() else " " for char in text)


def escaped(text: str) -> str:
    """Text of a log made safe for a terminal, and still told apart: what is not printable becomes its escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def paragraph(text: str, indent: str) -> str:
    """`printable` with the line breaks kept, and every line but the first indented."""
    return f"\n{indent}".join(map(printable, text.splitlines()))


def described(memory: dict[str, Any]) -> str:
    """A memory of a response in one line: score, date, source and content."""
    score, moment = memory.get("score"), memory.get("timestamp")
    parts = [f"{score:.2f}" if isinstance(score, int | float) else "  - "]
    if isinstance(moment, int | float):
        parts.append(datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d"))
    if memory.get("source"):
        parts.append(f"{memory['source']!s:<4}")
    return "  ".join([*parts, printable(str(memory.get("content", "")))])


class Output:
    """Prints lines; safe to use from several threads."""

    def __init__(self) -> None:
        self._console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)

    def line(self, text: str = "", style: str | None = None) -> None:
        """One line, never wrapped."""
        self._console.print(text, style=style)

    def json(self, value: Any) -> None:
        """A value as indented JSON, without escapes for other scripts."""
        # JSON can represent lone surrogates; UTF-8 cannot.
        text = json.dumps(value, ensure_ascii=False, indent=2).encode("utf-8", "replace").decode()
        self._console.print(text)
