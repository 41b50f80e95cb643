"""`ltm status`: which servers and processes answer, and the depth of each queue."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli.options import DEFAULT_DATA_DIRECTORY, DataDir, found_stack
from services.cli.output import Output, printable
from services.stack.processes import NAMES, check_names
from services.stack.status import Part, StatusReader, StatusReport

_STYLES = {"answers": "green", "refuses writes": "bold red", "down": "bold red", "unknown": "bold red"}
_WORDS = {"refuses writes": "REFUSES WRITES", "down": "DOWN", "unknown": "cannot see"}


def status(
    name: Annotated[
        str | None,
        typer.Argument(help="Check only this server or process.", autocompletion=lambda: list(NAMES)),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIRECTORY,
) -> None:
    """Show whether each server and process answers, and the queue depths; exit 1 if anything is down or unknown."""
    check_names([name] if name else [])
    reader, output = StatusReader(found_stack(data_dir)), Output()
    if name:
        part = reader.part(name)
        output.json(part.model_dump()) if as_json else _show(part, output)
        raise typer.Exit(0 if part.state == "answers" else 1)
    report = reader.report()
    output.json(report.model_dump()) if as_json else _show_report(report, output)
    raise typer.Exit(0 if report.ok else 1)


def _show_report(report: StatusReport, output: Output) -> None:
    for part in (*report.parts, *([report.search] if report.search else [])):
        _show(part, output)
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


def _show(part: Part, output: Output) -> None:
    state = _WORDS.get(part.state, part.state)
    if part.address:
        about = f"{state:<8} {part.address}" + (f" ({part.detail})" if part.detail else "")
    else:
        about = f"{state}: {part.detail}" if part.detail else state
    output.line(f"{part.name:<26} {about}", _STYLES.get(part.state, "dim"))
