"""`ltm export`: everything that is kept of a user, as a file of JSON Lines."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from keepsake_client import Client
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

from services.cli.ask import User
from services.cli.options import DEFAULT_DATA_DIRECTORY, DataDir, Timeout, found_stack
from services.cli.output import memories_word, print_error
from services.runtime.errors import StackError
from services.stack.probe import client_of

STDOUT = Path("-")
#: Memories on a page.
PAGE = 100


def export(
    user: User,
    file: Annotated[Path, typer.Argument(help="The file to write; - for standard output.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the file where it exists.")] = False,
    timeout: Timeout = 30.0,
    data_dir: DataDir = DEFAULT_DATA_DIRECTORY,
) -> None:
    """Write everything that is kept of a user to a file, one JSON object a line; `ltm import` reads it."""
    if file != STDOUT and file.exists() and not force:
        raise typer.BadParameter(f"{file} exists; --force replaces it", param_hint="FILE")
    counts: Counter[str] = Counter()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TaskProgressColumn(show_speed=True),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with (
        client_of(found_stack(data_dir).settings) as client,
        _written(file) as lines,
        # Where it is no terminal, rich leaves a blank line.
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("records", total=None)
        for record in exported(client, user, timeout):
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")
            counts[record["kind"]] += 1
            progress.advance(task)
    place = "written to standard output" if file == STDOUT else f"in {file}"
    profiles = "1 profile" if counts["profile"] == 1 else f"{counts['profile']} profiles"
    facts = f", {counts['fact']:,} fact{'' if counts['fact'] == 1 else 's'}" if counts["fact"] else ""
    print_error(f"{memories_word(counts['memory'])}{facts} and {profiles} {place}")


def exported(client: Client, user: str, timeout_s: float) -> Iterator[dict[str, Any]]:
    """Every record of a user, page by page."""
    cursor = None
    while True:
        page = client.user_export(user, limit=PAGE, cursor=cursor, deadline_ms=round(timeout_s * 1000))
        yield from page.records or []
        if (cursor := page.next_cursor) is None:
            return


@contextmanager
def _written(file: Path) -> Iterator[TextIO]:
    """The file, for its owner's eyes alone; it is there once all of it is written."""
    if file == STDOUT:
        yield sys.stdout
        return
    unfinished = file.with_name(f".{file.name}.unfinished")
    try:
        with os.fdopen(
            os.open(unfinished, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8"
        ) as lines:
            yield lines
            lines.flush()
            os.fsync(lines.fileno())
        unfinished.replace(file)
    except OSError as error:
        raise StackError(f"{file} cannot be written: {error.strerror}") from None
    finally:
        unfinished.unlink(missing_ok=True)
