"""`ltm status`: which servers and processes answer, and the depth of each queue."""

from __future__ import annotations

from datetime import tzinfo
from typing import Annotated

import typer

from services.cli.options import DEFAULT_DATA_DIRECTORY, DataDir, found_stack
from services.cli.output import Output, messages_word, printable
from services.stack.processes import NAMES, check_names
from services.stack.status import StatusReader
from services.stack.status_report import Extraction, Part, StatusReport

_STYLES = {"answers": "green", "refuses writes": "bold red", "down": "bold red", "unknown": "bold red"}
_EXTRACTION_STYLES = {"working": "green", "stopped": "bold red"}
_WORDS = {"refuses writes": "REFUSES WRITES", "down": "DOWN", "unknown": "cannot see"}


def status(
    name: Annotated[
        str | None,
        typer.Argument(help="Check only this server or process.", autocompletion=lambda: list(NAMES)),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIRECTORY,
) -> None:
    """Show which servers and processes answer, and what waits; exit 1 if anything is down, unknown or stopped."""
    check_names([name] if name else [])
    reader, output = StatusReader(found_stack(data_dir)), Output()
    if name:
        part = reader.part(name)
        output.json(part.model_dump()) if as_json else _show(part, output)
        raise typer.Exit(0 if part.state == "answers" else 1)
    report = reader.report()
    if as_json:
        output.json(report.model_dump(mode="json"))
    else:
        _show_report(report, output, reader.timezone)
    raise typer.Exit(0 if report.ok else 1)


def _show_report(report: StatusReport, output: Output, zone: tzinfo) -> None:
    for part in (*report.parts, *([report.search] if report.search else [])):
        _show(part, output)
    if report.extraction:
        _show_extraction(report.extraction, output, zone)
    for queue, waiting in report.lists.items():
        output.line(f"queue {queue:<20} waiting {waiting}")
    if report.not_dispatched is not None:
        output.line(f"stream {report.stream:<19} not yet dispatched {report.not_dispatched}")
    for counter, count in report.counters.items():
        output.line(f"count {printable(counter):<20} {count}")
    for queue, numbers in report.queues.items():
        output.line(f"queue {queue:<20} " + "  ".join(f"{kind} {number}" for kind, number in numbers.items()))
    if dead := sum(numbers["dead"] for numbers in report.queues.values()):
        output.line(f"{dead} failed for good: `ltm dead list`", "bold red")
    for reason in report.unseen:
        output.line(f"cannot see: {reason}", "bold red")
    for note in report.notes:
        output.line(note, "yellow")


def _show_extraction(found: Extraction, output: Output, zone: tzinfo) -> None:
    state: str = found.state
    if found.state != "working":
        state += f" since {found.since.astimezone(zone):%Y-%m-%d %H:%M}" if found.since else ""
        state += f": {printable(found.reason)}" if found.reason else ""
    parts = [state, f"{messages_word(found.messages)} of {found.users:,} user{'' if found.users == 1 else 's'} wait"]
    if found.oldest:
        parts[-1] += f", the oldest since {found.oldest.astimezone(zone):%Y-%m-%d %H:%M}"
    parts.append(f"today {found.calls:,} calls, {found.tokens:,} tokens")
    output.line(f"{'extraction':<26} {'; '.join(parts)}", _EXTRACTION_STYLES.get(found.state, "yellow"))
    if found.set_aside:
        output.line(f"{messages_word(found.set_aside)} set aside by extraction: `ltm extract list`", "bold red")


def _show(part: Part, output: Output) -> None:
    state = _WORDS.get(part.state, part.state)
    if part.address:
        about = f"{state:<8} {part.address}" + (f" ({part.detail})" if part.detail else "")
    else:
        about = f"{state}: {part.detail}" if part.detail else state
    if part.state == "answers" and (told := printable(str(part.instances))):
        about += f"; {told}"
    output.line(f"{part.name:<26} {about}", _STYLES.get(part.state, "dim"))
