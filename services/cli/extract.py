"""`ltm extract`: list what waits or was set aside, try it again, pause and resume, and read a user's messages anew."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Annotated

import typer

from services.cli.options import DEFAULT_DATA_DIRECTORY, DataDir
from services.cli.output import Output, confirm, messages_word, printable
from services.long_term_memory.extraction.operations import Operations, SetAside, Waiting, open_operations
from services.runtime.settings import Settings
from services.stack.servers import servers

#: Of a message that is listed; `ltm memory USER ID` shows it whole.
SHOWN_CHARS = 60

User = Annotated[str, typer.Argument(metavar="USER", help="The user's id.")]
All = Annotated[bool, typer.Option("--all", help="Those of all users.")]

app = typer.Typer(
    name="extract",
    help="Facts that an LLM finds in what was said: what waits, what was set aside, pause, and read anew.",
    no_args_is_help=True,
)


@app.command("list")
def list_waiting(data_dir: DataDir = DEFAULT_DATA_DIRECTORY) -> None:
    """List the users whose messages wait, and the messages that were set aside, each with the reason."""
    output = Output()
    with _opened(data_dir) as (operations, settings):
        zone = settings.timezone
        waiting, aside = operations.waiting(), operations.set_aside()
    for owner in waiting:
        due = _moment(owner.due_at, zone) if owner.due_at else "with the next words of the user"
        waits = f"{messages_word(owner.messages)} since {_moment(owner.oldest, zone)}, due {due}"
        output.line(f"{_name(owner):<20}  {waits}")
    for message in aside:
        _show(message, zone, output)
    if not waiting and not aside:
        output.line("nothing waits, and nothing was set aside", "dim")


@app.command()
def retry(
    user: Annotated[str | None, typer.Argument(metavar="USER", help="Those of this user.")] = None,
    every: All = False,
    data_dir: DataDir = DEFAULT_DATA_DIRECTORY,
) -> None:
    """Have messages that were set aside read again."""
    if bool(user) == every:
        raise typer.BadParameter("give a USER, or --all")
    with _opened(data_dir) as (operations, _):
        number = operations.retry(user)
    Output().line(f"{messages_word(number)} will be read again")


@app.command()
def pause(data_dir: DataDir = DEFAULT_DATA_DIRECTORY) -> None:
    """Have no messages read until `ltm extract resume`; a call that is under way is finished."""
    with _opened(data_dir) as (operations, _):
        operations.pause()
    Output().line("paused: what is said waits")


@app.command()
def resume(data_dir: DataDir = DEFAULT_DATA_DIRECTORY) -> None:
    """Have messages read again, after `pause` or where the provider's refusals had stopped it."""
    with _opened(data_dir) as (operations, _):
        operations.resume()
    Output().line("resumed")


@app.command()
def rebuild(
    user: User,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before deleting.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIRECTORY,
) -> None:
    """Delete a user's facts and the slots that extraction filled, and have all messages read again."""
    # Here: the other commands do without numpy, which takes 0.15 s.
    from services.long_term_memory.extraction.rebuilding import rebuild as rebuild_facts  # noqa: PLC0415

    output = Output()
    with _opened(data_dir) as (operations, settings):
        cost = operations.cost(user)
        days = math.ceil(cost.tokens / max(settings.ltm_extract_tokens_per_user, 1))
        output.line(
            f"{cost.facts:,} facts are deleted, with the slots that extraction filled;"
            f" {messages_word(cost.messages)} are read again in about {cost.calls:,} calls and {cost.tokens:,} tokens."
            + (f" LTM_EXTRACT_TOKENS_PER_USER spreads them over {days:,} days." if days > 1 else "")
        )
        if not yes:
            confirm(f"Rebuild the facts of {printable(user)}?")
        number = rebuild_facts(operations.connection, user)
    output.line(f"{messages_word(number)} wait to be read again")


@contextmanager
def _opened(data_dir: Path) -> Iterator[tuple[Operations, Settings]]:
    """The operations on the stack's database, and the settings."""
    with servers(data_dir, os.environ, "database_url") as (settings, _), open_operations(settings) as operations:
        yield operations, settings


def _show(message: SetAside, zone: tzinfo, output: Output) -> None:
    text = printable(message.content)
    shown = text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"
    output.line(f"set aside: {printable(message.reason)}", "bold")
    output.line(f"  {message.memory_id}  {_name(message)}  {_moment(message.said_at, zone)}  {shown}")


def _name(owner: Waiting | SetAside) -> str:
    """The user, and the character where there is one."""
    return printable(owner.user_id if owner.agent_id is None else f"{owner.user_id} @{owner.agent_id}")


def _moment(moment: datetime, zone: tzinfo) -> str:
    return f"{moment.astimezone(zone):%Y-%m-%d %H:%M}"
