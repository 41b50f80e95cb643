"""`ltm backup` and `ltm restore`: all that a stack keeps, in one file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from services.backup.archive import Manifest, check_absent
from services.cli.options import DEFAULT_DATA_DIRECTORY, DataDir
from services.cli.output import Output
from services.runtime.logging import configure_logging
from services.runtime.settings import load_settings
from services.stack.servers import servers

File = Annotated[Path, typer.Argument(metavar="FILE", help="The backup.")]
DatabaseOnly = Annotated[
    bool,
    typer.Option("--database-only", help="Memories and profiles alone, without what Redis keeps."),
]
KeepSchema = Annotated[
    bool,
    typer.Option("--keep-schema", help="Do not migrate: for the earlier release that the backup was made of."),
]


def backup(file: File, database_only: DatabaseOnly = False, data_dir: DataDir = DEFAULT_DATA_DIRECTORY) -> None:
    """Write all memories, profiles, conversations and messages that are not indexed yet to one file.

    The stack may run, or be stopped. The file holds what people said, and is readable by you alone.
    """
    # Here: other commands do without Mem0, which takes 60 MB of memory.
    from services.backup.backup import back_up  # noqa: PLC0415

    configure_logging(load_settings(), "ltm")
    check_absent(file)  # before servers are started
    with servers(data_dir, os.environ, *_servers(database_only)) as (settings, _), _progress() as report:
        manifest = back_up(settings, file, report, database_only=database_only)
    output = Output()
    output.line(f"{file}: {_described(manifest)}, {file.stat().st_size / 1e6:,.1f} MB")
    for name, count in manifest.left_out.items():
        output.line(f"not in it: {count:,} {name}")
    if database_only:
        output.line("not in it: conversations, and messages that are not indexed yet")
    elif not settings.broker.get_secret_value().startswith(("redis", "unix")):
        output.line("not in it: messages on the queues of RabbitMQ")


def restore(
    file: File,
    database_only: DatabaseOnly = False,
    keep_schema: KeepSchema = False,
    data_dir: DataDir = DEFAULT_DATA_DIRECTORY,
) -> None:
    """Write a backup into an empty stack: a new data directory or database, or one that was only just started.

    Nothing is written where the file is damaged or of a newer release, or the stack is not empty.
    """
    from services.backup.restore import Restore  # noqa: PLC0415  # as above

    configure_logging(load_settings(), "ltm")
    run = Restore(file, database_only=database_only, keep_schema=keep_schema)
    with (
        servers(data_dir, os.environ, *_servers(database_only), create=True) as (settings, running),
        _progress() as report,
    ):
        run.run(settings, report)
    output, manifest = Output(), run.manifest
    output.line(f"restored {_described(manifest)}")
    if manifest.events is not None and database_only and manifest.events.rows:
        output.line(f"not restored: {manifest.events.rows:,} messages that were not indexed yet")
    embedder = manifest.embedder
    if not running and embedder and embedder.provider != settings.ltm_embedder_provider:
        output.line(
            f"The memories were embedded by {embedder.provider} {embedder.model}: start with that, or run `ltm reembed`"
        )


def _servers(database_only: bool) -> Iterator[str]:
    yield "database_url"
    if not database_only:
        yield "redis_url"


def _described(manifest: Manifest) -> str:
    counted = {
        "memories": manifest.tables["memories"].rows,
        "users": manifest.tables["users"].rows if "users" in manifest.tables else None,
        "profiles": manifest.tables["profiles"].rows,
        "conversations": manifest.conversations and manifest.conversations.rows,
        "messages not indexed yet": manifest.events and manifest.events.rows,
    }
    return ", ".join(f"{count:,} {name}" for name, count in counted.items() if count is not None)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    columns = (TextColumn("rows"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("rows", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
