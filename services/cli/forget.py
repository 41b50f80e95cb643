"""`ltm forget`: deletes memories of a user, by ids or filters, or everything, after it has shown how many."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from services.cli.ask import User, ask
from services.cli.forget_user import forget_everything
from services.cli.options import DEFAULT_DATA_DIRECTORY, DataDir, Timeout, found_stack
from services.cli.output import Output, confirm, memories_word, printable
from services.cli.selection import Agent, AllAgents, Contains, Session, Since, Source, Speaker, Until, selected
from services.runtime.settings import Settings


def forget(
    user: User,
    ids: Annotated[list[str] | None, typer.Option("--id", metavar="ID", help="This memory; repeatable.")] = None,
    session: Session = None,
    speaker: Speaker = None,
    source: Source = None,
    since: Since = None,
    until: Until = None,
    contains: Contains = None,
    agent: Agent = None,
    all_agents: AllAgents = False,
    everything: Annotated[bool, typer.Option("--everything", help="All that is kept of the user, everywhere.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count them, and delete nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before deleting.")] = False,
    timeout: Timeout = 120.0,
    data_dir: DataDir = DEFAULT_DATA_DIRECTORY,
) -> None:
    """Delete memories of a user, for good: those of --id, those that meet all the filters, or --everything."""
    data = selected(
        session=session,
        speaker=speaker,
        source=source,
        since=since,
        until=until,
        contains=contains,
        agent=agent,
        all_agents=all_agents,
    )
    if everything:
        if ids or data:
            raise typer.BadParameter("goes with neither --id, a filter nor an agent", param_hint="--everything")
        forget_everything(user, dry_run=dry_run, yes=yes, timeout_s=timeout, data_dir=data_dir)
        return
    if ids and "filters" in data:
        raise typer.BadParameter("goes with no filter: an id says which memory is meant", param_hint="--id")
    if not ids and "filters" not in data:
        raise typer.BadParameter("say which: --id, one of the filters (--session, --contains, …), or --everything")
    if ids:
        data["ids"] = ids
    _delete(found_stack(data_dir).settings, user, data, timeout, dry_run=dry_run, yes=yes)


def _delete(settings: Settings, user: str, data: dict[str, Any], timeout: float, *, dry_run: bool, yes: bool) -> None:
    """Count the memories, ask, and delete them."""
    output = Output()
    count = ask(settings, "memory_delete", user, {**data, "dry_run": True}, timeout)["count"]
    if dry_run or (count == 0 and "ids" in data):
        output.line(f"{memories_word(count)} of {printable(user)}; none was deleted")
        return
    if not yes:
        confirm(f"Delete {memories_word(count)} of {printable(user)}, for good?")
    deleted = ask(settings, "memory_delete", user, data, timeout)["count"]
    output.line(f"{memories_word(deleted)} of {printable(user)} deleted")
