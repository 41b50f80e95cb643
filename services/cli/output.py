"""Output of the commands: with colours on a terminal, plain lines elsewhere; safe whatever the text."""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime, tzinfo
from typing import Any

import typer
from keepsake_client.errors import InvalidMessage, KeepsakeError
from rich.console import Console

from services.runtime.controls import escape_controls
from services.runtime.errors import InvalidSetting

_LINE_BREAK = re.compile(r"\r\n|\r|\n")


def printable(text: str) -> str:
    """User-generated text in one line: line breaks and tabs become spaces, other controls `\\u001b` and the like."""
    return escape_controls(re.sub(r"\r\n|[\r\n\t]", " ", text))


def escaped(text: str) -> str:
    """Text of a log made safe for a terminal, and still told apart: what is not printable becomes its escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def paragraph(text: str, indent: str) -> str:
    """`printable` with the line breaks kept, and every line but the first indented."""
    return f"\n{indent}".join(map(printable, _LINE_BREAK.split(text)))


def memories_word(count: int) -> str:
    """A number of memories in words."""
    return "1 memory" if count == 1 else f"{count:,} memories"


def messages_word(count: int) -> str:
    """A number of messages in words."""
    return "1 message" if count == 1 else f"{count:,} messages"


def confirm(question: str) -> None:
    """Ask on the terminal, and end the command where the answer is not yes, or there is no terminal to ask on."""
    if not sys.stdin.isatty():
        raise typer.BadParameter("there is no terminal to ask on: add --yes")
    typer.confirm(question, abort=True, err=True)


def described(memory: dict[str, Any], zone: tzinfo) -> str:
    """A memory of a response in one line: score, date, source or `fact`, who of several people said it, and content."""
    score, day = memory.get("score"), _day(memory.get("timestamp"), zone)
    parts = [f"{score:.2f}" if isinstance(score, int | float) else "  - ", *([day] if day else [])]
    if kind := "fact" if memory.get("kind") == "fact" else memory.get("source"):
        parts.append(f"{printable(str(kind)):<4}")
    speaker, content = memory.get("speaker"), str(memory.get("content", ""))
    name = speaker.get("name") if isinstance(speaker, dict) else None
    return "  ".join([*parts, printable(f"{name}: {content}" if name else content)]) + notes(memory, zone)


def with_its_facts(memory: dict[str, Any], zone: tzinfo) -> list[str]:
    """A memory that a search has found, and the facts that go with it, a line each."""
    facts = memory["metadata"].get("facts")  # also of a publisher's making
    of_message = [fact for fact in facts if isinstance(fact, dict)] if isinstance(facts, list) else []
    attached = [{**fact, "kind": "fact", "metadata": fact} for fact in of_message]
    return [described(memory, zone), *(f"      {described(fact, zone)}" for fact in attached)]


def notes(memory: dict[str, Any], zone: tzinfo) -> str:
    """What is said behind a fact: the time that it is about and, where it was replaced, when and by which."""
    if memory.get("kind") != "fact":
        return ""
    metadata = memory.get("metadata")
    said = [f"of {printable(str(memory['when']))}"] if memory.get("when") else []
    if isinstance(metadata, dict) and "superseded_at" in metadata:
        by = metadata.get("superseded_by")
        parts = ["replaced", _day(metadata["superseded_at"], zone), by and f"by {printable(str(by))}"]
        said.append(" ".join(part for part in parts if part))
    return f"  ({', '.join(said)})" if said else ""


def _day(seconds: Any, zone: tzinfo) -> str | None:
    """A timestamp as a date; None where it is none, as in the memories that a foreign chat service sends."""
    if not isinstance(seconds, int | float):
        return None
    try:
        return f"{datetime.fromtimestamp(seconds, zone):%Y-%m-%d}"
    except (ValueError, OverflowError, OSError):
        return None


class Output:
    """Prints lines; safe to use from several threads.

    Controls are escaped, and what the encoding of a terminal lacks becomes `?`: a command that has done its work must
    not fail at saying so.
    """

    def __init__(self) -> None:
        self._console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)

    def line(self, text: str = "", style: str | None = None) -> None:
        """Text, never wrapped; of its controls, line breaks and tabs alone have an effect."""
        self._print(escape_controls(text), style)

    def json(self, value: Any) -> None:
        """A value as indented JSON. Escaped are controls and what the encoding lacks, no other script."""
        text = escape_controls(json.dumps(value, ensure_ascii=False, indent=2))
        self._print(_encodable(text, self._console.encoding))

    def raw(self, text: str) -> None:
        """A line of a log as it is, for programs. Escaped as in JSON is what the encoding lacks, and nothing else."""
        print(_encodable(text, sys.stdout.encoding))

    def _print(self, text: str, style: str | None = None) -> None:
        encoding = self._console.encoding
        self._console.print(text.encode(encoding, "replace").decode(encoding), style=style)


def print_error(text: str) -> None:
    """Print one line of the command's own on stderr."""
    print(f"ltm: {printable(text)}", file=sys.stderr)


def report(error: KeepsakeError) -> int:
    """Print an error as one line on stderr, and return the exit code: 2 for a wrong setting, 1 for the others."""
    print_error(error.wire if isinstance(error, InvalidMessage) else str(error))
    return 2 if isinstance(error, InvalidSetting) else 1


def _encodable(text: str, encoding: str) -> str:
    # Outside of strings, JSON is ASCII, which every encoding of a terminal has.
    return "".join(c if c.encode(encoding, "ignore") else json.dumps(c)[1:-1] for c in text)
