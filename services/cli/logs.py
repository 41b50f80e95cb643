"""`ltm logs`: the logs of the processes that `ltm up` started."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli.options import DEFAULT_DATA_DIRECTORY
from services.cli.output import Output, escaped
from services.stack.logs import LogLine, follow, last_lines, log_directory, log_files
from services.stack.processes import FORK_SERVER, NAMES, check_names

_STYLES = {"debug": "dim", "warning": "yellow", "error": "bold red", "critical": "bold red"}
#: Fields that have a place of their own in a line, or stand below it.
_PLACED = ("timestamp", "process", "level", "event", "exception")


def logs(
    name: Annotated[
        str | None,
        typer.Argument(help="Only those of this server or process.", autocompletion=lambda: [*NAMES, FORK_SERVER]),
    ] = None,
    following: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is written, until Ctrl-C.")
    ] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines of each log.")] = 50,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, as where the output is piped.")
    ] = False,
    data_dir: Annotated[
        Path | None, typer.Option(help="The stack's data directory; otherwise that which runs.")
    ] = None,
) -> None:
    """Show the logs of the processes of `ltm up`; those of Compose are shown by `docker compose logs`."""
    check_names([name] if name and name != FORK_SERVER else [])
    directory = log_directory(data_dir, DEFAULT_DATA_DIRECTORY, os.environ.get("REDIS_URL", ""))
    files, output = log_files(directory, name), Output()
    readable = sys.stdout.isatty() and not as_json
    for line in last_lines(files, lines):
        _show(line, output, readable=readable)
    if following:
        with suppress(KeyboardInterrupt):
            for line in follow(files, directory):
                _show(line, output, readable=readable)
                sys.stdout.flush()


def _show(line: LogLine, output: Output, *, readable: bool) -> None:
    if not readable:
        output.raw(line.raw)
        return
    fields = line.fields
    moment = escaped(str(fields.get("timestamp", "")))[11:23]
    about = "  ".join(f"{escaped(str(name))}={_value(value)}" for name, value in fields.items() if name not in _PLACED)
    text = f"{moment:<12}  {line.process:<25}  {escaped(str(fields.get('event', '')))}  {about}"
    output.line(text.rstrip(), _STYLES.get(str(fields.get("level"))))
    for below in str(fields.get("exception", "")).splitlines():
        output.line(f"    {escaped(below)}", "dim")


def _value(value: Any) -> str:
    text = value if isinstance(value, str) and value and not any(char in value for char in " =\"'") else None
    return escaped(text if text is not None else json.dumps(value, ensure_ascii=False))
